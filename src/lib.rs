//! idleguard: an Envoy filter that keeps requests off upstream connections which the load balancer is about to drop,
//! and tells the application who the real client is.
//!
//! The crate is a pure core in a thin shell. The core takes bytes, headers and timestamps, and returns decisions; it
//! knows neither the host nor the clock. The shell, [`host`] and [`filter`], exists on `wasm32` only.
//!
//! | module | question it answers |
//! | --- | --- |
//! | [`time`] | when is it, and what does `"750ms"` mean? |
//! | [`address`] | is this text an address, and how is it written canonically? |
//! | [`forwarded`] | what do `X-Forwarded-For` and RFC 7239 `Forwarded` say, read from the right? |
//! | [`client_ip`] | who is the client, and which headers does the application get? |
//! | [`framing`] | is an exchange in flight on this connection? |
//! | [`learner`] | when does the far end drop an idle connection? |
//! | [`probe`] | when to ask it, and what does its answer say? |
//! | [`shared`] | what do workers tell each other of it? |
//! | [`config`] | what did the operator write, and what is wrong with it? |

pub mod address;
pub mod client_ip;
pub mod config;
pub mod connection;
pub mod destination;
pub mod fence;
pub mod forwarded;
pub mod framing;
pub mod header_map;
pub mod idle_list;
pub mod learner;
pub mod learning;
pub mod metrics;
pub mod policy;
pub mod pool;
pub mod probe;
pub mod shared;
pub mod time;
pub mod turns;
pub mod worker;

#[cfg(target_arch = "wasm32")]
mod filter;
#[cfg(target_arch = "wasm32")]
mod host;
