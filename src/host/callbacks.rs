//! The callbacks that the module exports, under names of its own: `idleguard_on_tick` becomes `proxy_on_tick` when the module is
//! finished (`postlink`), in the place of the SDK's, which panics for a context that it doesn't know.
//! An exported name counts as unsafe because it could clash with another; these begin with ours.

use proxy_wasm::types::Action;

use crate::contexts;

#[unsafe(export_name = "idleguard_on_context_create")]
extern "C" fn on_context_create(context: u32, parent: u32) {
    contexts::create(context, parent);
}

#[unsafe(export_name = "idleguard_on_configure")]
extern "C" fn on_configure(root: u32, size: usize) -> bool {
    contexts::on_configure(root, size)
}

#[unsafe(export_name = "idleguard_on_tick")]
extern "C" fn on_tick(root: u32) {
    contexts::on_tick(root);
}

#[unsafe(export_name = "idleguard_on_delete")]
extern "C" fn on_delete(context: u32) {
    contexts::on_delete(context);
}

#[unsafe(export_name = "idleguard_on_request_headers")]
extern "C" fn on_request_headers(stream: u32, _count: usize, _end: u32) -> Action {
    contexts::on_request_headers(stream)
}

#[unsafe(export_name = "idleguard_on_request_trailers")]
extern "C" fn on_request_trailers(stream: u32, _count: usize) -> Action {
    contexts::on_request_trailers(stream)
}

#[unsafe(export_name = "idleguard_on_response_headers")]
extern "C" fn on_response_headers(stream: u32, _count: usize, _end: u32) -> Action {
    contexts::on_response_headers(stream)
}
