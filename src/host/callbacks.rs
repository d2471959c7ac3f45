//! The callbacks that the module exports, in the place of the SDK's, which have the same names and panic for a context that they don't
//! know (`build.rs` has the linker take these). An exported name counts as unsafe because it could clash with another; here it is to.

use proxy_wasm::types::{Action, PeerType};

use crate::contexts;

#[unsafe(export_name = "proxy_on_context_create")]
extern "C" fn on_context_create(context: u32, parent: u32) {
    contexts::create(context, parent);
}

#[unsafe(export_name = "proxy_on_configure")]
extern "C" fn on_configure(root: u32, size: usize) -> bool {
    contexts::on_configure(root, size)
}

#[unsafe(export_name = "proxy_on_tick")]
extern "C" fn on_tick(root: u32) {
    contexts::on_tick(root);
}

#[unsafe(export_name = "proxy_on_delete")]
extern "C" fn on_delete(context: u32) {
    contexts::on_delete(context);
}

#[unsafe(export_name = "proxy_on_request_headers")]
extern "C" fn on_request_headers(stream: u32, _count: usize, _end: u32) -> Action {
    contexts::on_request_headers(stream)
}

#[unsafe(export_name = "proxy_on_request_trailers")]
extern "C" fn on_request_trailers(stream: u32, _count: usize) -> Action {
    contexts::on_request_trailers(stream)
}

#[unsafe(export_name = "proxy_on_response_headers")]
extern "C" fn on_response_headers(stream: u32, _count: usize, _end: u32) -> Action {
    contexts::on_response_headers(stream)
}

#[unsafe(export_name = "proxy_on_new_connection")]
extern "C" fn on_new_connection(stream: u32) -> Action {
    contexts::on_new_connection(stream);
    Action::Continue
}

#[unsafe(export_name = "proxy_on_downstream_data")]
extern "C" fn on_downstream_data(stream: u32, size: usize, end: u32) -> Action {
    contexts::on_downstream_data(stream, size, end != 0);
    Action::Continue
}

#[unsafe(export_name = "proxy_on_upstream_data")]
extern "C" fn on_upstream_data(stream: u32, size: usize, end: u32) -> Action {
    contexts::on_upstream_data(stream, size, end != 0);
    Action::Continue
}

#[unsafe(export_name = "proxy_on_downstream_connection_close")]
extern "C" fn on_downstream_close(stream: u32, peer: u32) {
    const LOCAL: u32 = PeerType::Local as u32;
    contexts::on_downstream_close(stream, if peer == LOCAL { PeerType::Local } else { PeerType::Remote });
}

#[unsafe(export_name = "proxy_on_http_call_response")]
extern "C" fn on_http_call_response(root: u32, _token: u32, _headers: usize, _body: usize, _trailers: usize) {
    contexts::on_call_ended(root);
}

/// Callbacks that do nothing, in the place of the SDK's. `make build` takes them out: to enter the VM for nothing would be felt.
macro_rules! unused {
    ($answer:ty = $value:expr; $($name:ident($($argument:ident),*))*) => {
        $(#[unsafe(no_mangle)] extern "C" fn $name($(_: $argument),*) -> $answer { $value })*
    };
}

unused! { bool = true; proxy_on_vm_start(u32, usize) proxy_on_done(u32) }

unused! {
    Action = Action::Continue;
    proxy_on_request_body(u32, usize, u32)
    proxy_on_response_body(u32, usize, u32)
    proxy_on_response_trailers(u32, usize)
}

unused! {
    () = ();
    proxy_on_log(u32)
    proxy_on_queue_ready(u32, u32)
    proxy_on_upstream_connection_close(u32, u32)
    proxy_on_grpc_receive_initial_metadata(u32, u32, u32)
    proxy_on_grpc_receive(u32, u32, usize)
    proxy_on_grpc_receive_trailing_metadata(u32, u32, u32)
    proxy_on_grpc_close(u32, u32, u32)
    proxy_on_foreign_function(u32, u32, usize)
}
