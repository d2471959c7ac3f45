//! The filter's callbacks take the place of the SDK's, which have the same names (`src/host/callbacks.rs`).

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|architecture| architecture == "wasm32") {
        println!("cargo::rustc-link-arg-cdylib=--allow-multiple-definition");
    }
}
