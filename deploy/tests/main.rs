//! The manifests in `deploy/`, as people use them: rendered by kubectl, validated, applied to what Istio and Envoy Gateway
//! generate in the way that they would, and seen to work in a real Envoy.
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects, missing_docs)]
#![allow(clippy::disallowed_methods)] // real Envoys need real time

mod dynamic;
mod envoy_gateway;
mod image;
mod istio;
mod kustomize;
mod proto;
mod schemas;
mod works;
mod xds;
