//! idleguard: an Envoy filter that keeps requests off upstream connections which the load balancer is about to drop,
//! and tells the application who the real client is.
//!
//! The crate is a pure core in a thin shell. The core takes bytes, headers and timestamps, and returns decisions; it
//! knows neither the host nor the clock. The shell, `host`, `filter` and `callbacks`, exists on `wasm32` only.
//!
//! | module | question it answers |
//! | --- | --- |
//! | [`config`], [`policy`] | what did the operator write, and what is wrong with it? |
//! | [`worker`], [`destination`] | what does this Envoy thread know, and what is to be done now? |
//! | [`connection`], [`idle_list`] | where does a connection stand, and which ones have been idle for how long? |
//! | [`fence`], [`pool`] | into which generation of connections may this request be put? |
//! | [`flow`] | how many requests are on their way to a connection? |
//! | [`slab`], [`timers`] | where is a connection kept, and when is it looked at? |
//! | [`turns`] | what has the event loop done by now? |
//! | [`restarts`] | is the far end being restarted? |
//! | [`framing`] | is an exchange in flight on this connection? |
//! | [`learning`], [`learner`] | when does the far end drop an idle connection? |
//! | [`shared`] | what do workers tell each other of it? |
//! | [`probe`] | when to ask the far end, and what does its answer say? |
//! | [`unseen`] | what do requests tell where nobody shows the connections? |
//! | [`client_ip`] | who is the client, and which headers does the application get? |
//! | [`forwarded`], [`address`] | what do the forwarding headers say, read from the right; is this text an address? |
//! | [`header_map`], [`metrics`], [`time`] | the host's headers, read in place; every metric; durations and timestamps |

pub mod address;
pub mod client_ip;
pub mod config;
pub mod connection;
pub mod destination;
pub mod fence;
pub mod flow;
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
pub mod restarts;
pub mod shared;
pub mod slab;
pub mod time;
pub mod timers;
pub mod turns;
pub mod unseen;
pub mod worker;

#[cfg(target_arch = "wasm32")]
mod filter;
#[cfg(target_arch = "wasm32")]
mod host;
