//! Envoy's CPU time per request, against plain Envoy. All variants run side by side, and each is driven in turn, round after
//! round: whatever else the machine does meets all of them alike.

use anyhow::{Context, Result};
use idleguard_harness::envoy::{Envoy, Options};
use serde::{Deserialize, Serialize};

use crate::{
    clients::{self, Request},
    far_end::FarEnd,
    process_cost,
    statistics::Spread,
    variants::Variant,
};

/// Rounds that don't count: connections are opened, and V8 compiles what runs often once more, on threads of its own.
const WARM_UP: usize = 3;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Traffic {
    /// 27 bytes, connections kept.
    Small,
    /// 27 bytes, each client connection serves one request.
    NewConnections,
    /// 1 MB, connections kept.
    Large,
}

impl Traffic {
    /// All, in the order of tables and pictures.
    pub const ALL: [Self; 3] = [Self::Small, Self::NewConnections, Self::Large];

    /// As tables and pictures call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::Small => "small response, keep-alive",
            Self::NewConnections => "small response, new connection each",
            Self::Large => "1 MB response, keep-alive",
        }
    }

    fn request(self) -> Request {
        let path = if self == Self::Large { "/large" } else { "/small" };
        Request { path, new_connections: self == Self::NewConnections }
    }

    /// Requests in one turn: enough for the kernel's clock, few enough for many rounds.
    fn turn(self) -> usize {
        match self {
            Self::Small => 2_000,
            Self::NewConnections => 1_000,
            Self::Large => 120,
        }
    }
}

/// The cost of one variant under one kind of traffic.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cost {
    /// The traffic.
    pub traffic: Traffic,
    /// What was in the way.
    pub variant: Variant,
    /// Microseconds of CPU per request.
    pub micros: Spread,
    /// Against plain Envoy in the same round.
    pub ratio: Spread,
    /// Rounds.
    pub rounds: usize,
}

/// What is compared.
const VARIANTS: [Variant; 7] = [
    Variant::Plain,
    Variant::Native,
    Variant::Lua,
    Variant::WatchAll,
    Variant::Lane,
    Variant::ClientIp,
    Variant::Everything,
];

/// A variant that runs.
pub struct Running {
    /// Which.
    pub variant: Variant,
    /// Its Envoy.
    pub envoy: Envoy,
}

/// Starts one Envoy of one worker for each variant.
pub async fn start(variants: &[Variant], far_end: &FarEnd) -> Result<Vec<Running>> {
    let mut running = Vec::new();
    for &variant in variants {
        let envoy = Envoy::start(&variant.config(far_end.addresses())?, Options::default()).await;
        running.push(Running { variant, envoy: envoy.with_context(|| variant.label())? });
    }
    Ok(running)
}

/// Measures all variants under all traffic.
pub async fn run(rounds: usize) -> Result<Vec<Cost>> {
    let far_end = FarEnd::start(1)?;
    let running = start(&VARIANTS, &far_end).await?;
    let mut costs = Vec::new();
    for traffic in Traffic::ALL {
        eprintln!("  {}", traffic.label());
        let mut samples = vec![Vec::new(); running.len()];
        for round in 0..WARM_UP + rounds {
            for place in 0..running.len() {
                // Whoever comes first meets caches that the last one left: let it be another one each round.
                let index = (place + round) % running.len();
                let nanos = turn(&running[index], traffic)?;
                if round >= WARM_UP {
                    samples[index].push(nanos);
                }
            }
        }
        costs.extend(costs_of(traffic, &running, &samples));
    }
    Ok(costs)
}

/// Nanoseconds of CPU per request.
fn turn(running: &Running, traffic: Traffic) -> Result<f64> {
    let pid = running.envoy.pid();
    let before = process_cost::cpu_ns(pid)?;
    clients::closed_loop(running.envoy.ingress(), &traffic.request(), 8, traffic.turn())
        .with_context(|| running.variant.label())?;
    Ok((process_cost::cpu_ns(pid)? - before) as f64 / traffic.turn() as f64)
}

fn costs_of(traffic: Traffic, running: &[Running], samples: &[Vec<f64>]) -> Vec<Cost> {
    let of = |variant: Variant| {
        let place = running.iter().position(|running| running.variant == variant);
        place.and_then(|place| samples.get(place)).cloned().unwrap_or_default()
    };
    let against =
        |own: &[f64], other: &[f64]| Spread::of(own.iter().zip(other).map(|(own, other)| own / other).collect());
    let plain = of(Variant::Plain);
    running
        .iter()
        .map(|running| {
            let own = of(running.variant);
            Cost {
                traffic,
                variant: running.variant,
                micros: Spread::of(own.iter().map(|nanos| nanos / 1e3).collect()),
                ratio: against(&own, &plain),
                rounds: own.len(),
            }
        })
        .collect()
}
