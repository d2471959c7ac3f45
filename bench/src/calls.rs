//! What a call of the host costs, and entering the VM: the parts of the CPU section's sums. A module makes the same call many
//! times for each request (`bench/calls`), so that it stands out of the noise.

use anyhow::{Context, Result};
use idleguard_harness::{
    envoy::{Envoy, Options},
    project,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    clients::{self, Request},
    far_end::FarEnd,
    process_cost,
    statistics::Spread,
    variants,
};

/// Calls in each request; the same number is in `bench/calls`.
const TIMES: f64 = 50.0;

/// Rounds that don't count, as in the CPU section.
const WARM_UP: usize = 3;

/// Requests in one turn.
const TURN: usize = 1_000;

/// A call: its name for the module, what it is, and how often idleguard makes it for a request with everything on (both filters;
/// `counts/baseline.json` has the sums).
const CALLS: [(&str, &str, u32); 8] = [
    ("headers", "read all request headers", 1),
    ("peer", "read a property: the peer", 1),
    ("cluster", "read a property: the cluster", 1),
    ("absent", "ask for a property that isn't there", 0),
    ("replace", "replace or add a request header", 3),
    ("set", "set a property: the client's address", 1),
    ("generation", "set the generation", 1),
    ("clock", "read the clock", 4),
];

/// The cost of one call.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Call {
    /// What it is.
    pub what: String,
    /// How often idleguard makes it for a request.
    pub in_a_request: u32,
    /// Microseconds of CPU.
    pub micros: Spread,
}

/// Measures all of them.
pub async fn run(rounds: usize) -> Result<Vec<Call>> {
    let far_end = FarEnd::start(1)?;
    let module = project::root().join(".run/calls.wasm");
    let module = module.canonicalize().with_context(|| format!("no {}: `make bench` makes it", module.display()))?;
    let mut running = Vec::new();
    for name in std::iter::once("").chain(CALLS.iter().map(|(name, ..)| *name)) {
        let config = variants::with_module(far_end.addresses(), &module, &json!(name))?;
        running.push(Envoy::start(&config, Options::default()).await.with_context(|| name.to_owned())?);
    }
    let request = Request { path: "/small", new_connections: false };
    let mut samples = vec![Vec::new(); CALLS.len()];
    for round in 0..WARM_UP + rounds {
        let mut nanos = vec![0.0; running.len()];
        for place in 0..running.len() {
            let index = (place + round) % running.len();
            let pid = running[index].pid();
            let before = process_cost::cpu_ns(pid)?;
            clients::closed_loop(running[index].ingress(), &request, 8, TURN)?;
            nanos[index] = (process_cost::cpu_ns(pid)? - before) as f64 / TURN as f64;
        }
        if round >= WARM_UP {
            for (samples, own) in samples.iter_mut().zip(&nanos[1..]) {
                samples.push((own - nanos[0]) / TIMES / 1e3);
            }
        }
    }
    let call = |((_, what, in_a_request), samples): (&(&str, &str, u32), Vec<f64>)| Call {
        what: (*what).to_owned(),
        in_a_request: *in_a_request,
        micros: Spread::of(samples),
    };
    Ok(CALLS.iter().zip(samples).map(call).collect())
}
