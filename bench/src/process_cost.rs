//! What a process has cost so far, as the kernel counts it, and what it may open.

use std::fs;

use anyhow::{Context, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Nanoseconds on a processor, of all threads that live. (`schedstat`: `stat` counts in steps of 10 ms.)
pub fn cpu_ns(pid: u32) -> Result<u64> {
    let mut total = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).context("the process has ended")? {
        let path = thread?.path().join("schedstat");
        let Ok(text) = fs::read_to_string(&path) else { continue }; // a thread that has just ended
        let ns: u64 = text.split_whitespace().next().and_then(|word| word.parse().ok()).context("schedstat")?;
        total += ns;
    }
    Ok(total)
}

/// Bytes of memory in use.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).context("the process has ended")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kb: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kb * 1024)
}

/// Takes as many open files as the system allows, and says how many that is. Children inherit it.
pub fn open_files() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    if let Some(maximum) = limit.maximum {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(maximum), maximum: Some(maximum) });
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
