//! idleguard: an Envoy filter that has idle upstream connections closed before the load balancer drops them, and tells the
//! application who the real client is.
//!
//! What is decided is in `idleguard_core`. This crate is the shell around it, and exists on `wasm32` only:
//!
//! | module | what it does |
//! | --- | --- |
//! | `host` | every call to Envoy and, in `callbacks`, from it |
//! | `contexts` | the contexts that Envoy made, by their ids |
//! | `client_address` | reads the peer and the headers, and applies the edits |
//! | `worker` | what one worker knows: its connections and destinations, and what Envoy is told of them |
//! | `shared` | what workers share |
//! | `scout` | asks the far end, on connections of its own, how long it keeps them |
//! | `http` | what a request needs before Envoy's router sees it, and what its answer tells |
#![cfg(target_arch = "wasm32")]

mod client_address;
mod contexts;
mod host;
mod http;
mod scout;
mod shared;
mod worker;
