//! The HTTP filter: what a request needs before Envoy's router sees it, and what its answer tells.

use std::rc::Rc;
use std::time::Duration;

use idleguard_core::plugin::HttpConfig;
use proxy_wasm::types::Action;

use crate::client_address::ClientAddress;
use crate::host;

/// How often Envoy is told what was counted.
const TICK: Duration = Duration::from_secs(1);

/// What the requests of one filter configuration share.
pub(crate) struct HttpRoot {
    client_address: Option<ClientAddress>,
}

impl HttpRoot {
    pub(crate) fn new(_id: u32, config: HttpConfig) -> Self {
        host::set_tick_period(TICK).unwrap_or_else(host::report);
        Self { client_address: config.client_ip.map(ClientAddress::new) }
    }

    pub(crate) fn on_tick(&self) {
        if let Some(client_address) = &self.client_address {
            client_address.report();
        }
    }
}

impl Drop for HttpRoot {
    fn drop(&mut self) {
        if let Some(client_address) = &self.client_address {
            client_address.report();
        }
    }
}

/// One request.
pub(crate) struct Request {
    root: Rc<HttpRoot>,
}

impl Request {
    pub(crate) fn new(root: Rc<HttpRoot>) -> Self {
        Self { root }
    }

    pub(crate) fn on_request_headers(&mut self) -> Action {
        if let Some(client_address) = &self.root.client_address
            && client_address.rewrite().is_break()
        {
            return Action::Pause;
        }
        Action::Continue
    }

    pub(crate) fn on_request_trailers(&mut self) -> Action {
        match &self.root.client_address {
            Some(client_address) if client_address.clean_trailers().is_break() => Action::Pause,
            _ => Action::Continue,
        }
    }

    pub(crate) fn on_response_headers(&mut self) -> Action {
        Action::Continue
    }

    /// It has ended, one way or another; the host still knows it.
    pub(crate) fn end(self) {}
}
