//! Real Envoys, scripted load balancers and load, for tests, the demo and benchmarks.
