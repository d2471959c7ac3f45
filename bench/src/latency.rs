//! Latency at a fixed rate below saturation, against plain Envoy: requests leave when they are due, and their time counts from
//! then, so that a stall is not hidden by the requests that it held back.

use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::{
    clients::{self, Request},
    cpu,
    far_end::FarEnd,
    statistics::{Spread, quantile},
    variants::Variant,
};

/// The latency of one variant.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Latency {
    /// What was in the way.
    pub variant: Variant,
    /// Median in microseconds, over the rounds.
    pub p50_us: Spread,
    /// 99th percentile in microseconds, over the rounds.
    pub p99_us: Spread,
    /// Median against plain Envoy's in the same round.
    pub p50_ratio: Spread,
    /// 99th percentile against plain Envoy's in the same round.
    pub p99_ratio: Spread,
    /// Requests per second.
    pub rate: f64,
    /// Rounds.
    pub rounds: usize,
}

const VARIANTS: [Variant; 5] = [Variant::Plain, Variant::Lua, Variant::Lane, Variant::ClientIp, Variant::Everything];

/// Measures at this rate; each round lasts `slice` for each variant.
pub async fn run(rounds: usize, slice: Duration, rate: f64) -> Result<Vec<Latency>> {
    let far_end = FarEnd::start(1)?;
    let running = cpu::start(&VARIANTS, &far_end).await?;
    let request = Request { path: "/small", new_connections: false };
    let mut samples = vec![Vec::new(); running.len()];
    for round in 0..=rounds {
        for place in 0..running.len() {
            let index = (place + round) % running.len();
            let slice = if round == 0 { slice / 4 } else { slice };
            let latencies = clients::at_rate(running[index].envoy.ingress(), &request, 16, rate, slice)?;
            let mut micros: Vec<f64> = latencies.iter().map(|latency| latency.as_secs_f64() * 1e6).collect();
            micros.sort_by(f64::total_cmp);
            if round > 0 {
                samples[index].push((quantile(&micros, 0.5), quantile(&micros, 0.99)));
            }
        }
    }
    let plain = samples.first().cloned().unwrap_or_default();
    let spread = |own: &[(f64, f64)], pick: fn(&(f64, f64)) -> f64| Spread::of(own.iter().map(pick).collect());
    let ratio = |own: &[(f64, f64)], pick: fn(&(f64, f64)) -> f64| {
        Spread::of(own.iter().zip(&plain).map(|(own, plain)| pick(own) / pick(plain)).collect())
    };
    let results = running.iter().zip(&samples).map(|(running, own)| Latency {
        variant: running.variant,
        p50_us: spread(own, |both| both.0),
        p99_us: spread(own, |both| both.1),
        p50_ratio: ratio(own, |both| both.0),
        p99_ratio: ratio(own, |both| both.1),
        rate,
        rounds: own.len(),
    });
    Ok(results.collect())
}
