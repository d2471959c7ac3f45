//! The contexts that Envoy made, by their ids, and what each callback means to one.
//!
//! The SDK has a dispatcher of its own. It panics for an id that it doesn't know and for a callback within a callback of the
//! same kind, and a panic stops the filter for all traffic on its worker. Here, what can't be is nothing to do, and traffic
//! goes on.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

use idleguard_core::plugin::{self, Config};
use proxy_wasm::types::{Action, PeerType};

use crate::host;
use crate::http::{HttpRoot, Request};
use crate::scout::{Connection, ScoutRoot};

mod entry {
    // Exports `_initialize`; the callbacks are those of `host::callbacks`.
    proxy_wasm::main! {{}}
}

/// The root context of one filter configuration.
#[derive(Clone)]
enum Root {
    /// Not configured, or with a configuration that was refused.
    Unconfigured,
    Http(Rc<HttpRoot>),
    Scout(Rc<ScoutRoot>),
}

#[derive(Default)]
struct Contexts {
    /// One for each filter configuration, so few that looking through them is quick.
    roots: Vec<(u32, Root)>,
    requests: HashMap<u32, Request, BuildHasherDefault<IdHasher>>,
    /// The scouts', two for each.
    connections: Vec<(u32, Connection)>,
}

impl Contexts {
    fn root(&self, id: u32) -> Option<Root> {
        self.roots.iter().find(|(known, _)| *known == id).map(|(_, root)| root.clone())
    }

    /// Returns the root in whose place the new one comes.
    fn put_root(&mut self, id: u32, root: Root) -> Option<Root> {
        match self.roots.iter_mut().find(|(known, _)| *known == id) {
            Some((_, place)) => Some(std::mem::replace(place, root)),
            None => {
                self.roots.push((id, root));
                None
            }
        }
    }

    fn take_connection(&mut self, id: u32) -> Option<Connection> {
        let at = self.connections.iter().position(|(known, _)| *known == id)?;
        Some(self.connections.swap_remove(at).1)
    }

    fn take_root(&mut self, id: u32) -> Option<Root> {
        let at = self.roots.iter().position(|(known, _)| *known == id)?;
        Some(self.roots.swap_remove(at).1)
    }
}

thread_local! {
    static CONTEXTS: RefCell<Contexts> = RefCell::new(Contexts::default());
}

/// The callbacks don't run inside this, so the table is never in use already.
fn with_contexts<T>(act: impl FnOnce(&mut Contexts) -> T) -> Option<T> {
    CONTEXTS.with(|contexts| contexts.try_borrow_mut().ok().map(|mut contexts| act(&mut contexts)))
}

/// A new root context if `parent` is 0, else a stream of that root context; without such a root it is let pass.
pub(crate) fn create(id: u32, parent: u32) {
    let replaced = with_contexts(|contexts| {
        if parent == 0 {
            return (contexts.put_root(id, Root::Unconfigured), None, None);
        }
        match contexts.root(parent) {
            Some(Root::Http(root)) => (None, contexts.requests.insert(id, Request::new(root)), None),
            Some(Root::Scout(root)) => {
                let replaced = contexts.take_connection(id);
                contexts.connections.push((id, Connection::new(root)));
                (None, None, replaced)
            }
            Some(Root::Unconfigured) | None => (None, None, None),
        }
    });
    drop(replaced); // outside: whoever is dropped may call Envoy
}

/// Returns whether the configuration is accepted.
pub(crate) fn on_configure(id: u32, size: usize) -> bool {
    host::init_log();
    match configure(id, size) {
        Ok(root) => {
            drop(with_contexts(|contexts| contexts.put_root(id, root)));
            true
        }
        Err(message) => {
            log::error!("{message}");
            false
        }
    }
}

fn configure(id: u32, size: usize) -> Result<Root, String> {
    let bytes = host::configuration(size)
        .map_err(|error| format!("Envoy does not hand over the configuration (status {})", error.status))?;
    let checked = plugin::parse(&bytes).map_err(|error| error.to_string())?;
    for warning in checked.warnings {
        log::warn!("{warning}");
    }
    match checked.config {
        Config::Http(config) => Ok(Root::Http(Rc::new(HttpRoot::new(*config)))),
        Config::Scout(config) => Ok(Root::Scout(Rc::new(ScoutRoot::new(id, config)))),
    }
}

pub(crate) fn on_tick(id: u32) {
    match with_contexts(|contexts| contexts.root(id)).flatten() {
        Some(Root::Http(root)) => root.on_tick(),
        Some(Root::Scout(root)) => root.on_tick(),
        Some(Root::Unconfigured) | None => {}
    }
}

/// The end of a context. Envoy calls `proxy_on_done` just before, if a module has it; this one doesn't, because to enter the
/// VM once more for every request would be felt, and all that could be asked then can still be asked now.
pub(crate) fn on_delete(id: u32) {
    if let Some(request) = with_contexts(|contexts| contexts.requests.remove(&id)).flatten() {
        request.end();
    } else if let Some(connection) = with_contexts(|contexts| contexts.take_connection(id)).flatten() {
        connection.end(id);
    } else {
        drop(with_contexts(|contexts| contexts.take_root(id))); // as in `create`
    }
}

/// The request is taken out of the table while its callback runs, because what it calls may call back for another.
fn with_request(id: u32, act: impl FnOnce(&mut Request) -> Action) -> Action {
    let Some(mut request) = with_contexts(|contexts| contexts.requests.remove(&id)).flatten() else {
        return Action::Continue;
    };
    let action = act(&mut request);
    drop(with_contexts(|contexts| contexts.requests.insert(id, request)));
    action
}

pub(crate) fn on_request_headers(id: u32) -> Action {
    with_request(id, Request::on_request_headers)
}

pub(crate) fn on_request_trailers(id: u32) -> Action {
    with_request(id, Request::on_request_trailers)
}

pub(crate) fn on_response_headers(id: u32) -> Action {
    with_request(id, Request::on_response_headers)
}

/// A request of a root's own has ended.
pub(crate) fn on_call_ended(root: u32) {
    if let Some(Root::Scout(root)) = with_contexts(|contexts| contexts.root(root)).flatten() {
        root.on_call_ended();
    }
}

/// As [`with_request`].
fn with_connection(id: u32, act: impl FnOnce(&mut Connection)) {
    let Some(mut connection) = with_contexts(|contexts| contexts.take_connection(id)).flatten() else { return };
    act(&mut connection);
    with_contexts(|contexts| contexts.connections.push((id, connection)));
}

pub(crate) fn on_new_connection(id: u32) {
    with_connection(id, |connection| connection.on_new_connection(id));
}

pub(crate) fn on_downstream_data(id: u32, size: usize, end: bool) {
    with_connection(id, |connection| connection.on_downstream_data(id, size, end));
}

pub(crate) fn on_upstream_data(id: u32, size: usize, end: bool) {
    with_connection(id, |connection| connection.on_upstream_data(id, size, end));
}

pub(crate) fn on_downstream_close(id: u32, peer: PeerType) {
    with_connection(id, |connection| connection.on_downstream_close(id, peer));
}

/// Spreads ids, which Envoy counts up (Knuth, The Art of Computer Programming 3, §6.4: multiplicative hashing). A keyed hash
/// would cost more, and panics where the host has no random numbers.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0 ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
