//! `idleguard-postlink IN OUT`: leaves of a module the callbacks that do something, and drops names and dead code.
//!
//! Envoy enters the VM for each callback that a module exports, which costs about half a microsecond, for nothing (docs/envoy.md, fact 12).

use std::process::ExitCode;

/// What is exported from the finished module: what every module needs, and the callbacks of `src/host/callbacks.rs` that do something.
const KEPT: &[&str] = &[
    "_initialize",
    "memory",
    "proxy_abi_version_0_2_1",
    "proxy_on_memory_allocate",
    "proxy_on_context_create",
    "proxy_on_configure",
    "proxy_on_tick",
    "proxy_on_delete",
    "proxy_on_request_headers",
    "proxy_on_request_trailers",
    "proxy_on_response_headers",
    "proxy_on_new_connection",
    "proxy_on_downstream_data",
    "proxy_on_upstream_data",
    "proxy_on_downstream_connection_close",
    "proxy_on_http_call_response",
];

fn run(from: &str, to: &str) -> Result<usize, String> {
    let mut config = walrus::ModuleConfig::new();
    config.generate_name_section(false);
    let mut module = config.parse_file(from).map_err(|error| format!("{from}: {error:#}"))?;
    if let Some(missing) = KEPT.iter().find(|kept| !module.exports.iter().any(|export| export.name == **kept)) {
        return Err(format!("{from} does not export {missing}"));
    }
    let is_unused = |export: &&walrus::Export| !KEPT.contains(&export.name.as_str());
    let unused: Vec<_> = module.exports.iter().filter(is_unused).map(walrus::Export::id).collect();
    for export in unused {
        module.exports.delete(export);
    }
    walrus::passes::gc::run(&mut module);
    let bytes = module.emit_wasm();
    std::fs::write(to, &bytes).map_err(|error| format!("{to}: {error}"))?;
    Ok(bytes.len())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [from, to] = arguments.as_slice() else {
        eprintln!("usage: idleguard-postlink IN OUT");
        return ExitCode::from(2);
    };
    match run(from, to) {
        Ok(size) => {
            println!("{to}: {size} bytes");
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("idleguard-postlink: {message}");
            ExitCode::FAILURE
        }
    }
}
