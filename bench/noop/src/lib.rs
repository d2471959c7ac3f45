//! A filter that does nothing, at the same callbacks as idleguard: what entering the VM costs, whatever is done there.
//!
//! Its configuration is `http` or `connection`: the place where it stands.
#![cfg(target_arch = "wasm32")]

use proxy_wasm::traits::{Context, HttpContext, RootContext, StreamContext};
use proxy_wasm::types::ContextType;

mod entry {
    proxy_wasm::main! {{
        proxy_wasm::set_root_context(|_| Box::new(super::Root { kind: super::ContextType::HttpContext }));
    }}
}

struct Root {
    kind: ContextType,
}

impl Context for Root {}

impl RootContext for Root {
    fn on_configure(&mut self, _size: usize) -> bool {
        if self.get_plugin_configuration().as_deref() == Some(b"connection") {
            self.kind = ContextType::StreamContext;
        }
        true
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(self.kind)
    }

    fn create_http_context(&self, _id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Nothing))
    }

    fn create_stream_context(&self, _id: u32) -> Option<Box<dyn StreamContext>> {
        Some(Box::new(Nothing))
    }
}

struct Nothing;

impl Context for Nothing {}
impl HttpContext for Nothing {}
impl StreamContext for Nothing {}
