//! What people see: the dashboard, the alerts and the demo's page, with a real Envoy, Prometheus and browser behind them.
#![allow(missing_docs, clippy::unwrap_used)]

mod dashboards;
mod demo_page;

use std::time::Duration;

use idleguard_harness::{envoy::Config, project};

/// The project's `envoy.yaml` on free ports, or `None` (said, or a failure, see `IDLEGUARD_NO_SKIP`) if there is no Envoy or no
/// filter.
fn project_config() -> Option<Config> {
    project::or_skip(project::envoy())?;
    project::or_skip(project::wasm())?;
    Some(Config::project().expect("envoy.yaml").free_ports())
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
