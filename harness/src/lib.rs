//! Real Envoys, scripted load balancers and load, for tests, the demo and benchmarks.

pub mod delay;
pub mod http;
pub mod load;
pub mod stub_lb;
