//! Argument texts that `run` and `demo` share.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};

use crate::{envoy::Config, project};

/// A duration as the filter's configuration writes it: `750ms`, `55s`, `4m`, `1h`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => 0,
    };
    match number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)) {
        Some(millis) if millis > 0 => Ok(Duration::from_millis(millis)),
        _ => Err("want a duration such as 750ms, 55s, 4m or 1h".to_owned()),
    }
}

/// A host, by address or name, and a port.
pub fn host_port(text: &str) -> Result<(String, u16), String> {
    let wrong = "want host:port, such as 10.1.2.3:80 or lb.example:80";
    let (host, port) = text.rsplit_once(':').ok_or(wrong)?;
    let port = port.parse().map_err(|_| wrong)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() || host.contains('/') || port == 0 {
        return Err(wrong.to_owned());
    }
    Ok((host.to_owned(), port))
}

/// The given configuration, or the project's, with the given filter, or the project's.
pub fn configuration(yaml: Option<PathBuf>, wasm: Option<PathBuf>) -> Result<Config> {
    let yaml = yaml.unwrap_or_else(|| project::root().join("envoy.yaml"));
    let wasm = match wasm {
        Some(path) => path.canonicalize().with_context(|| format!("no filter at {}", path.display()))?,
        None => project::wasm()?,
    };
    Ok(Config::load(&yaml)?.wasm(&wasm))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("750ms"), Ok(Duration::from_millis(750)));
        assert_eq!(duration("4m"), Ok(Duration::from_secs(240)));
        for wrong in ["", "5", "s", "0s", "1.5s", "-1s", "99999999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn hosts_are_addresses_or_names_with_a_port() {
        assert_eq!(host_port("lb.example:80"), Ok(("lb.example".to_owned(), 80)));
        assert_eq!(host_port("[::1]:80"), Ok(("::1".to_owned(), 80)));
        for wrong in ["", "lb", ":80", "lb:0", "lb:x", "http://lb:80"] {
            assert!(host_port(wrong).is_err(), "{wrong}");
        }
    }
}
