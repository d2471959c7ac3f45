//! The callbacks that the module exports, under names of its own: `idleguard_on_tick` becomes `proxy_on_tick` when the module is
//! finished (`postlink`), in the place of the SDK's, which panics for a context that it doesn't know.
//! An exported name counts as unsafe because it could clash with another; these begin with ours.

use proxy_wasm::types::{Action, PeerType};

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

#[unsafe(export_name = "idleguard_on_new_connection")]
extern "C" fn on_new_connection(stream: u32) -> Action {
    contexts::on_new_connection(stream);
    Action::Continue
}

#[unsafe(export_name = "idleguard_on_downstream_data")]
extern "C" fn on_downstream_data(stream: u32, size: usize, end: u32) -> Action {
    contexts::on_downstream_data(stream, size, end != 0);
    Action::Continue
}

#[unsafe(export_name = "idleguard_on_upstream_data")]
extern "C" fn on_upstream_data(stream: u32, size: usize, end: u32) -> Action {
    contexts::on_upstream_data(stream, size, end != 0);
    Action::Continue
}

#[unsafe(export_name = "idleguard_on_downstream_connection_close")]
extern "C" fn on_downstream_close(stream: u32, peer: u32) {
    const LOCAL: u32 = PeerType::Local as u32;
    contexts::on_downstream_close(stream, if peer == LOCAL { PeerType::Local } else { PeerType::Remote });
}

#[unsafe(export_name = "idleguard_on_http_call_response")]
extern "C" fn on_http_call_response(root: u32, _token: u32, _headers: usize, _body: usize, _trailers: usize) {
    contexts::on_call_ended(root);
}
