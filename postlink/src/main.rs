//! `idleguard-postlink IN OUT`: puts idleguard's own callbacks in the place of the SDK's, and drops the code behind those.
//!
//! The SDK exports every callback there is. Envoy enters the VM for each that a module exports, which costs about half a
//! microsecond, for nothing (docs/envoy.md, fact 12). And the SDK's callbacks panic for a context that they don't know; ours,
//! exported as `idleguard_on_…`, do not.

use std::process::ExitCode;

/// What every module needs.
const KEPT: &[&str] = &["_initialize", "memory", "proxy_abi_version_0_2_1", "proxy_on_memory_allocate"];

/// The callbacks that `src/host/callbacks.rs` exports under the prefix [`OURS`], and Envoy calls under [`ENVOYS`].
const CALLBACKS: &[&str] = &[
    "context_create",
    "configure",
    "tick",
    "delete",
    "request_headers",
    "request_trailers",
    "response_headers",
    "new_connection",
    "downstream_data",
    "upstream_data",
    "downstream_connection_close",
    "http_call_response",
];

const OURS: &str = "idleguard_on_";
const ENVOYS: &str = "proxy_on_";

fn run(from: &str, to: &str) -> Result<usize, String> {
    let mut config = walrus::ModuleConfig::new();
    config.generate_name_section(false);
    let mut module = config.parse_file(from).map_err(|error| format!("{from}: {error:#}"))?;
    // A module without callbacks of its own (the benchmark's, which does nothing) keeps the SDK's of the same names.
    let prefix = if module.exports.iter().any(|export| export.name.starts_with(OURS)) { OURS } else { ENVOYS };
    let callbacks: Vec<String> = CALLBACKS.iter().map(|name| format!("{prefix}{name}")).collect();
    for used in KEPT.iter().copied().chain(callbacks.iter().map(String::as_str)) {
        if !module.exports.iter().any(|export| export.name == used) {
            return Err(format!("{from} does not export {used}"));
        }
    }
    let is_used = |name: &str| KEPT.contains(&name) || callbacks.iter().any(|callback| callback == name);
    if let Some(unknown) = module.exports.iter().find(|export| export.name.starts_with(OURS) && !is_used(&export.name))
    {
        return Err(format!("{from} exports {}, which this tool does not know", unknown.name));
    }
    let unused: Vec<_> =
        module.exports.iter().filter(|export| !is_used(&export.name)).map(|export| export.id()).collect();
    for export in unused {
        module.exports.delete(export);
    }
    for export in module.exports.iter_mut() {
        if let Some(name) = export.name.strip_prefix(OURS) {
            export.name = format!("{ENVOYS}{name}");
        }
    }
    if prefix == OURS {
        drop_methods_of_the_sdk(&mut module);
    }
    walrus::passes::gc::run(&mut module);
    let bytes = module.emit_wasm();
    std::fs::write(to, &bytes).map_err(|error| format!("{to}: {error}"))?;
    Ok(bytes.len())
}

/// The SDK's traits have many methods with default bodies. They stay in the table for indirect calls, since the linker saw the SDK's
/// dispatcher, which makes those; without it nobody does, and a function that traps takes their place.
fn drop_methods_of_the_sdk(module: &mut walrus::Module) {
    let mut body = walrus::FunctionBuilder::new(&mut module.types, &[], &[]);
    body.func_body().unreachable();
    let trap = body.finish(Vec::new(), &mut module.funcs);
    let is_of_the_sdk = |id: &walrus::FunctionId| {
        let name = module.funcs.get(*id).name.as_deref();
        name.is_some_and(|name| name.starts_with("_ZN10proxy_wasm"))
    };
    for element in module.elements.iter_mut() {
        if let walrus::ElementItems::Functions(functions) = &mut element.items {
            functions.iter_mut().filter(|id| is_of_the_sdk(id)).for_each(|id| *id = trap);
        }
    }
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
