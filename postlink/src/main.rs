//! `idleguard-postlink IN OUT`: drops the callbacks that idleguard does not use from its module, and the code behind them.
//!
//! The SDK exports every callback there is. Envoy enters the VM for each that a module exports, which costs about half a
//! microsecond, for nothing. (docs/envoy.md, fact 17)

use std::process::ExitCode;

/// What Envoy calls: the callbacks that `src/filter` implements, and what every module needs.
const USED: &[&str] = &[
    "_initialize",
    "memory",
    "proxy_abi_version_0_2_1",
    "proxy_on_memory_allocate",
    "proxy_on_context_create",
    "proxy_on_configure",
    "proxy_on_tick",
    "proxy_on_done",
    "proxy_on_delete",
    "proxy_on_new_connection",
    "proxy_on_downstream_data",
    "proxy_on_upstream_data",
    "proxy_on_downstream_connection_close",
    "proxy_on_request_headers",
    "proxy_on_response_headers",
];

/// Callbacks that idleguard wraps: its own export takes the place of the SDK's.
const WRAPPED: &[(&str, &str)] = &[("idleguard_on_tick", "proxy_on_tick")];

fn run(from: &str, to: &str) -> Result<usize, String> {
    let mut module = walrus::Module::from_file(from).map_err(|error| format!("{from}: {error:#}"))?;
    for (own, name) in WRAPPED {
        let find = |name: &str| module.exports.iter().find(|export| export.name == name).map(|export| export.id());
        let (Some(own), Some(theirs)) = (find(own), find(name)) else {
            return Err(format!("{from} does not export {own} and {name}"));
        };
        module.exports.delete(theirs);
        module.exports.get_mut(own).name = (*name).to_owned();
    }
    for used in USED {
        if !module.exports.iter().any(|export| export.name == *used) {
            return Err(format!("{from} does not export {used}"));
        }
    }
    let unused: Vec<_> = module
        .exports
        .iter()
        .filter(|export| !USED.contains(&export.name.as_str()))
        .map(|export| export.id())
        .collect();
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
