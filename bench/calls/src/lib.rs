//! A filter that makes one call of the host [`TIMES`] times for each request: divided by that, what such a call costs.
//!
//! Its configuration names the call: one of the names in `bench/src/calls.rs`, or nothing.
//!
//! The calls are made as idleguard makes them. The SDK's wrappers would add what they allocate.
#![cfg(target_arch = "wasm32")]

use std::ptr::null_mut;
use std::rc::Rc;

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};

/// Calls in each request; `bench/src/calls.rs` divides by it.
const TIMES: usize = 50;

const REQUEST_HEADERS: u32 = 0;
const MONOTONIC: u32 = 1;

mod entry {
    proxy_wasm::main! {{
        proxy_wasm::set_root_context(|_| Box::new(super::Root { call: Default::default() }));
    }}
}

mod import {
    #[link(wasm_import_module = "env")]
    unsafe extern "C" {
        pub(super) fn proxy_get_header_map_pairs(map: u32, data: *mut *mut u8, size: *mut usize) -> u32;
        pub(super) fn proxy_replace_header_map_value(
            map: u32,
            name: *const u8,
            name_size: usize,
            value: *const u8,
            value_size: usize,
        ) -> u32;
        pub(super) fn proxy_get_property(
            path: *const u8,
            size: usize,
            data: *mut *mut u8,
            data_size: *mut usize,
        ) -> u32;
        pub(super) fn proxy_set_property(path: *const u8, size: usize, value: *const u8, value_size: usize) -> u32;
        pub(super) fn proxy_call_foreign_function(
            name: *const u8,
            name_size: usize,
            argument: *const u8,
            argument_size: usize,
            result: *mut *mut u8,
            result_size: *mut usize,
        ) -> u32;
    }

    #[link(wasm_import_module = "wasi_snapshot_preview1")]
    unsafe extern "C" {
        pub(super) fn clock_time_get(clock: u32, precision: u64, time: *mut u64) -> u16;
    }
}

struct Root {
    call: Rc<[u8]>,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        self.call = self.get_plugin_configuration().unwrap_or_default().into();
        true
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }

    fn create_http_context(&self, _id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Request { call: Rc::clone(&self.call) }))
    }
}

struct Request {
    call: Rc<[u8]>,
}

impl Context for Request {}

impl HttpContext for Request {
    fn on_http_request_headers(&mut self, _count: usize, _end: bool) -> Action {
        (0..TIMES).for_each(|_| call(&self.call));
        Action::Continue
    }
}

/// Runs a call that may hand over bytes, which are freed.
fn fetch(run: impl FnOnce(*mut *mut u8, *mut usize) -> u32) {
    let (mut data, mut size) = (null_mut(), 0);
    run(&raw mut data, &raw mut size);
    if size > 0 {
        // SAFETY: the SDK's allocator export made a boxed slice of exactly this size and gave it away.
        drop(unsafe { Vec::from_raw_parts(data, size, size) });
    }
}

fn call(name: &[u8]) {
    // SAFETY, of all: pointers and sizes are those of live slices, out-pointers are live for the call.
    let property = |path: &[u8]| {
        fetch(|data, size| unsafe { import::proxy_get_property(path.as_ptr(), path.len(), data, size) });
    };
    match name {
        b"headers" => fetch(|data, size| unsafe { import::proxy_get_header_map_pairs(REQUEST_HEADERS, data, size) }),
        b"peer" => property(b"filter_state\0idleguard.peer"),
        b"cluster" => property(b"xds\0cluster_name"),
        b"absent" => property(b"filter_state\0idleguard.absent"),
        b"replace" => {
            let (name, value) = (b"x-forwarded-for", b"203.0.113.7, 10.0.0.2");
            unsafe {
                let (name, value) = ((name.as_ptr(), name.len()), (value.as_ptr(), value.len()));
                import::proxy_replace_header_map_value(REQUEST_HEADERS, name.0, name.1, value.0, value.1);
            }
        }
        b"set" => {
            let (path, value) = (b"idleguard.client_ip", b"203.0.113.7");
            unsafe { import::proxy_set_property(path.as_ptr(), path.len(), value.as_ptr(), value.len()) };
        }
        b"generation" => {
            let function = b"set_envoy_filter_state";
            let argument = b"\x0a\x22envoy.network.upstream_server_name\x12\x0cidleguard-01\x18\x01";
            let (function, argument) = ((function.as_ptr(), function.len()), (argument.as_ptr(), argument.len()));
            fetch(|data, size| unsafe {
                import::proxy_call_foreign_function(function.0, function.1, argument.0, argument.1, data, size)
            });
        }
        b"clock" => {
            let mut time = 0;
            unsafe { import::clock_time_get(MONOTONIC, 1, &raw mut time) };
        }
        _ => {}
    }
}
