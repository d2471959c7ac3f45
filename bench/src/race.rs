//! The race: a stable far end, 400 clients whose gaps lie around the idle limit. Whatever fails, the proxy did it; and what
//! the fence costs in connections is at its worst here.

use std::time::Duration;

use anyhow::Result;
use idleguard_harness::{
    envoy::{Config, Envoy, Options},
    load::{Load, Pattern},
    stub_lb::{Mode, StubLb},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{correctness::Shape, subjects};

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// The load.
    pub shape: Shape,
    /// idleguard, or Envoy's own `idle_timeout`.
    pub idleguard: bool,
    /// The seed of the gaps.
    pub seed: u64,
    /// Requests sent.
    pub requests: u64,
    /// Of these, failed.
    pub failed: u64,
    /// Connections that the far end accepted.
    pub opened: u64,
}

impl Run {
    /// Connections opened per 1,000 requests.
    pub fn opened_per_1_000(&self) -> f64 {
        self.opened as f64 * 1_000.0 / self.requests.max(1) as f64
    }
}

const LIMIT: &str = "0.3s";
const GAP: (Duration, Duration) = (Duration::from_millis(260), Duration::from_millis(340));

/// Both subjects under both loads, one after the other: together they would disturb each other.
pub async fn run(seeds: u64, seconds: u64) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    for seed in 1..=seeds {
        for shape in Shape::ALL {
            // Who comes first alternates: what the machine does otherwise drifts.
            for idleguard in [seed % 2 == 0, seed % 2 == 1] {
                let lb = StubLb::start(Mode::Stable);
                let config = Config::project()?.free_ports().upstream(lb.address());
                let config = if idleguard {
                    let told = json!({ "lb_idle_timeout": "333ms", "margin": "33ms", "retry_stale": "off" });
                    subjects::policy(config, &told)
                } else {
                    config.without_idleguard().envoy_idle_timeout("payments", LIMIT)
                };
                let envoy = Envoy::start(&config, Options { concurrency: 2, ..Options::default() }).await?;
                let pattern = match shape {
                    Shape::Steady => Pattern::Scattered { gap: GAP },
                    Shape::Bursts => Pattern::Bursts { gap: GAP },
                };
                let load = Load::post(envoy.ingress(), pattern).clients(400).seed(seed);
                let report = load.run(Duration::from_secs(seconds)).await;
                let (requests, failed) = (report.requests, report.failed());
                let run = Run { shape, idleguard, seed, requests, failed, opened: lb.counters().opened };
                eprintln!("  {} {idleguard}: {failed} of {requests} failed, {} connections", shape.label(), run.opened);
                runs.push(run);
            }
        }
    }
    Ok(runs)
}
