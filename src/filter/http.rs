//! The HTTP filter: what a request needs before Envoy's router sees it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use proxy_wasm::traits::{Context, HttpContext};
use proxy_wasm::types::Action;

use crate::config::HttpConfig;
use crate::connection::Generation;
use crate::destination::End;
use crate::header_map;
use crate::host;
use crate::policy::{Policy, RetryStale};
use crate::worker::DestinationId;

use super::destinations::{self, with_destination, with_worker};

/// The route's cluster.
const CLUSTER_NAME: &[u8] = b"xds\0cluster_name";

/// A number, 0 if the request went as requests do.
const RESPONSE_FLAGS: &[u8] = b"response\0flags";

/// Where the generation goes if the cluster's connections are not seen: the filter state `wasm.idleguard.generation`.
const GENERATION: &[u8] = b"idleguard.generation";

/// What the requests of one filter configuration share.
pub(super) struct HttpRoot {
    id: u32,
    config: HttpConfig,
    /// Clusters that requests were routed to, with their entries in `config`.
    destinations: RefCell<BTreeMap<Vec<u8>, DestinationId>>,
}

impl HttpRoot {
    pub(super) fn new(id: u32, config: HttpConfig) -> Self {
        let destinations = config
            .destinations
            .iter()
            .filter_map(|(name, policy)| {
                let destination = destinations::register(id, name, policy, false)?;
                Some((name.clone().into_bytes(), destination))
            })
            .collect();
        Self { id, config, destinations: RefCell::new(destinations) }
    }

    fn policy(&self, cluster: &[u8]) -> Option<&Policy> {
        let named = std::str::from_utf8(cluster).ok().and_then(|name| self.config.destinations.get(name));
        named.or(self.config.any_destination.as_ref())
    }

    /// The destination that a cluster is, if it has a policy.
    fn destination(&self, cluster: &[u8]) -> Option<DestinationId> {
        if let Some(id) = self.destinations.try_borrow().ok().and_then(|known| known.get(cluster).copied()) {
            return Some(id);
        }
        let policy = self.config.any_destination.as_ref()?;
        let id = destinations::register(self.id, std::str::from_utf8(cluster).ok()?, policy, false)?;
        if let Ok(mut destinations) = self.destinations.try_borrow_mut() {
            destinations.insert(cluster.to_vec(), id);
        }
        Some(id)
    }
}

impl Drop for HttpRoot {
    fn drop(&mut self) {
        destinations::unregister(self.id);
    }
}

/// One request.
pub(super) struct HttpFilter {
    root: Option<Rc<HttpRoot>>,
    /// What it was admitted to.
    admitted: Option<(DestinationId, Generation)>,
}

impl HttpFilter {
    pub(super) fn new(root: Option<Rc<HttpRoot>>) -> Self {
        Self { root, admitted: None }
    }

    fn steer(&mut self, root: &HttpRoot, cluster: &[u8], method: Option<&[u8]>) {
        let Some(id) = root.destination(cluster) else { return };
        let now = host::now();
        let Some(admission) = with_worker(|worker| worker.admit(id, now)).flatten() else { return };
        self.admitted = Some((id, admission.generation));
        let steered = if admission.guarded {
            host::set_filter_state(&admission.steer.filter_state)
        } else {
            host::set_property(GENERATION, admission.steer.name.as_bytes())
        };
        steered.unwrap_or_else(host::report);
        let retries = root.policy(cluster).is_some_and(|policy| policy.retry_stale == RetryStale::Idempotent);
        if retries && admission.may_be_reused && method.is_some_and(is_idempotent) {
            // Added, not replaced: the route's and the client's own conditions stay.
            host::add_request_header(b"x-envoy-retry-on", b"reset").unwrap_or_else(host::report);
        }
    }
}

/// Methods that may be sent twice (RFC 9110 §9.2.2).
fn is_idempotent(method: &[u8]) -> bool {
    matches!(method, b"GET" | b"HEAD" | b"OPTIONS" | b"TRACE" | b"PUT" | b"DELETE")
}

impl Context for HttpFilter {
    fn on_done(&mut self) -> bool {
        let Some((id, generation)) = self.admitted.take() else { return true };
        let now = host::now();
        let is_delicate = with_destination(id, |destination| destination.is_delicate(now)).unwrap_or_default();
        // Asked for only when it matters: a host call for every request would be felt.
        let end = if is_delicate && has_response_flags() { End::Aborted } else { End::Answered };
        with_worker(|worker| worker.end(id, generation, end));
        true
    }
}

/// Whether Envoy noted something unusual about the current request (a timeout, a client that went away, …).
fn has_response_flags() -> bool {
    match host::property(RESPONSE_FLAGS) {
        Ok(flags) => flags.is_none_or(|flags| flags.iter().any(|byte| *byte != 0)),
        Err(error) => {
            host::report(error);
            true
        }
    }
}

impl HttpContext for HttpFilter {
    fn on_http_request_headers(&mut self, _count: usize, _end: bool) -> Action {
        let Some(root) = self.root.take() else { return Action::Continue };
        with_worker(|worker| worker.on_event());
        let bytes = host::request_headers().unwrap_or_else(|error| {
            host::report(error);
            Vec::new()
        });
        let headers = header_map::pairs(&bytes).unwrap_or_default();
        let method = headers.iter().find(|(name, _)| *name == b":method").map(|(_, value)| *value);
        match host::property(CLUSTER_NAME) {
            Ok(Some(cluster)) => self.steer(&root, &cluster, method),
            Ok(None) => {} // no route: the router will answer
            Err(error) => host::report(error),
        }
        Action::Continue
    }
}

impl Drop for HttpFilter {
    fn drop(&mut self) {
        if let Some((id, generation)) = self.admitted {
            with_worker(|worker| worker.end(id, generation, End::Aborted));
        }
    }
}
