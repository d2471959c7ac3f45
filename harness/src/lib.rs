//! Real Envoys, scripted load balancers and load, for tests, the demo and benchmarks.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`stub_lb`] | a load balancer that drops idle connections in the way it is told |
//! | [`delay`] | distance, for loopback |
//! | [`load`] | keep-alive clients that count every failure |
//! | [`soak`] | everything at once for a long time |
//! | [`plot`] | its measurements as SVG |
//! | [`envoy`] | a real Envoy, from an edited configuration |
//! | [`servers`] | real nginx, HAProxy and Node |
//! | [`http`] | one request |
//! | [`demo`] | the same traffic with and without idleguard, and a page that shows it |
//! | [`browser`] | headless Chromium |
//! | [`prometheus`] | a real Prometheus that scrapes an Envoy, and the queries of a dashboard |
//! | [`process`], [`project`], [`arguments`] | children that never outlive us; where things are; what users type |

pub mod arguments;
pub mod browser;
pub mod delay;
pub mod demo;
pub mod envoy;
pub mod http;
mod listen;
pub mod load;
pub mod plot;
pub mod process;
pub mod project;
pub mod prometheus;
pub mod servers;
pub mod soak;
pub mod stub_lb;
mod tls;
