//! What is measured while the soak runs: Envoy's process and its own counts, every second or so.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::{Context, Result};

use crate::envoy::Envoy;

/// One look.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Since the start.
    pub at: Duration,
    /// Resident memory of Envoy, in bytes.
    pub rss: u64,
    /// What Envoy has allocated, by its own count, in bytes.
    pub allocated: u64,
    /// Linear memory of all Wasm VMs, in bytes. It never shrinks.
    pub wasm: u64,
    /// Open file descriptors of Envoy.
    pub descriptors: u64,
    /// Wasm VMs.
    pub vms: u64,
    /// Connections to the LB.
    pub active: u64,
}

impl Sample {
    /// Looks now.
    pub async fn take(envoy: &Envoy, at: Duration) -> Result<Self> {
        let stats = envoy.stats().await?;
        let pid = envoy.pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kib: u64 = rss.trim().trim_end_matches(" kB").parse()?;
        Ok(Self {
            at,
            rss: kib * 1024,
            allocated: stats.get("server.memory_allocated").copied().unwrap_or(0),
            wasm: linear_memory(&fs::read_to_string(format!("/proc/{pid}/maps"))?),
            descriptors: fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64,
            vms: stats.get("wasm.envoy.wasm.runtime.v8.active").copied().unwrap_or(0),
            active: connections(&stats).iter().filter(|(name, _)| name.ends_with("cx_active")).map(|(_, n)| n).sum(),
        })
    }
}

/// Envoy's gauges of what is in flight or open to the LB, of both destinations (a lane counts under its base's name).
pub(super) fn connections(stats: &BTreeMap<String, u64>) -> Vec<(&str, u64)> {
    let names =
        ["payments", "orders"].map(|name| ["cx", "rq"].map(|of| format!("cluster.{name}.upstream_{of}_active")));
    let gauge = |name: &String| stats.get_key_value(name).map(|(name, value)| (name.as_str(), *value));
    names.iter().flatten().filter_map(gauge).collect()
}

/// The size of all Wasm memories in a process: V8 reserves gigabytes of address space for each, of which the beginning is
/// the memory itself (readable and writable) and the rest is inaccessible. Envoy has no figure for it.
fn linear_memory(maps: &str) -> u64 {
    const RESERVED: u64 = 2 << 30;
    let range = |line: &str| {
        let mut words = line.split(' ');
        let (from, to) = words.next()?.split_once('-')?;
        let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
        Some((from, to, words.next()?.to_owned()))
    };
    let ranges: Vec<_> = maps.lines().filter_map(range).collect();
    let is_memory = |pair: &&[(u64, u64, String)]| {
        let [(_, end, kind), (start, next_end, next)] = pair else { return false };
        kind.starts_with("rw-p") && next.starts_with("---p") && end == start && next_end - start >= RESERVED
    };
    ranges.windows(2).filter(is_memory).map(|pair| pair[0].1 - pair[0].0).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wasm_memory_is_the_writable_beginning_of_a_large_reservation() {
        let maps = "7f0000000000-7f0000130000 rw-p 00000000 00:00 0 \n\
                    7f0000130000-7f0280000000 ---p 00000000 00:00 0 \n\
                    7f0280000000-7f0280010000 rw-p 00000000 00:00 0 \n\
                    7f0280010000-7f0280020000 ---p 00000000 00:00 0 \n";
        assert_eq!(linear_memory(maps), 0x130000);
    }
}
