//! What a process has cost so far, as the kernel counts it.

use std::fs;

use anyhow::{Context, Result};

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
