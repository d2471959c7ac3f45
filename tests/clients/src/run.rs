//! One client at work: waves of requests, with pauses around the load balancer's idle timeout.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::Duration,
};

use anyhow::{Context, Result};

use crate::clients::Client;

/// The load balancer's idle timeout.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(2);

/// Requests at once.
const WAVE: usize = 10;

/// How a client's requests went.
#[derive(Debug, Default, Clone)]
pub(crate) struct Report {
    pub(crate) sent: usize,
    /// Error texts, and how many there were of each.
    pub(crate) failures: BTreeMap<String, usize>,
}

impl Report {
    pub(crate) fn failed(&self) -> usize {
        self.failures.values().sum()
    }

    /// The texts, the most frequent first.
    pub(crate) fn texts(&self) -> Vec<&str> {
        let mut texts: Vec<_> = self.failures.iter().collect();
        texts.sort_by_key(|&(text, &count)| (std::cmp::Reverse(count), text));
        texts.into_iter().map(|(text, _)| text.as_str()).collect()
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        for (text, count) in &other.failures {
            *self.failures.entry(text.clone()).or_default() += count;
        }
    }
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the client, and has it send so many waves. `seed` decides the pauses.
pub(crate) fn run(
    client: &Client,
    folder: &Path,
    method: &str,
    address: &str,
    waves: usize,
    seed: u64,
) -> Result<Report> {
    let mut running = Running(
        Command::new(folder.join("run"))
            .arg(client.name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{}/run", folder.display()))?,
    );
    let mut to = running.0.stdin.take().context("its standard input")?;
    let mut lines = BufReader::new(running.0.stdout.take().context("its standard output")?).lines();
    let mut random = fastrand::Rng::with_seed(seed);
    let mut report = Report::default();
    for wave in 0..waves {
        writeln!(to, "{method} http://{address}/ {WAVE}")?;
        for _ in 0..WAVE {
            let line = lines.next().with_context(|| format!("{} has ended", client.title))??;
            report.sent += 1;
            if line != "ok" {
                *report.failures.entry(without_addresses(&line)).or_default() += 1;
            }
        }
        // Every third pause is short, so that connections are reused at all; the others are around the timeout, which is 40 ms of
        // a client's time away: 20 ms for the request, and 20 ms for what tells that the connection is closed.
        let pause = if wave % 3 == 2 { random.u64(0..500) } else { 1_900 + random.u64(0..160) };
        sleep(Duration::from_millis(pause));
    }
    Ok(report)
}

/// Equal errors are counted together: `…` stands for addresses with their ports.
fn without_addresses(text: &str) -> String {
    let mut parts = text.split("127.0.0.1:");
    let mut short = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        short.push('…');
        short.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    short.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    #[test]
    fn errors_are_counted_together_whatever_the_port() {
        let text = "Post \"http://127.0.0.1:1/\": read tcp 127.0.0.1:2->127.0.0.1:3: read:  reset";
        assert_eq!(super::without_addresses(text), "Post \"http://…/\": read tcp …->…: read: reset");
    }
}
