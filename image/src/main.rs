//! `idleguard-image MODULE VERSION DIRECTORY`: writes the filter as an OCI image layout, and says its digests.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [module, version, directory] = arguments.as_slice() else {
        eprintln!("usage: idleguard-image MODULE VERSION DIRECTORY");
        return ExitCode::FAILURE;
    };
    let written = std::fs::read(module).map_err(|error| format!("{module}: {error}")).and_then(|bytes| {
        idleguard_image::write(&bytes, version, Path::new(directory)).map_err(|e| format!("{directory}: {e}"))
    });
    match written {
        Ok(written) => {
            println!("{module}  sha256 {}", written.module);
            println!("oci:{directory}:compat  sha256 {}", written.compat);
            println!("oci:{directory}:artifact  sha256 {}", written.artifact);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
