//! The manifests in `deploy/`, as people use them: rendered by kubectl, validated, and consistent in themselves; the image; and the
//! example of dynamic configuration in a real Envoy. That the manifests work is shown under the real control planes, by
//! `make test-mesh`.
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects, missing_docs)]
#![allow(clippy::disallowed_methods)] // real Envoys need real time

mod dynamic;
mod image;
mod kustomize;
mod lanes;
mod schemas;
mod scouts;
