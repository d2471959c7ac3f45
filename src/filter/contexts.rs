//! The contexts that Envoy made, by their ids, and what each callback means to one.
//!
//! The SDK has a dispatcher of its own. It panics for an id that it doesn't know and for a callback within a callback of the
//! same kind, and a panic stops the filter for all traffic on its worker. Here, what can't be is nothing to do, and traffic
//! goes on.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

use proxy_wasm::traits::HttpContext;
use proxy_wasm::types::{Action, PeerType};

use crate::framing::Direction;

use super::Root;
use super::connection::ConnectionFilter;
use super::http::HttpFilter;

/// A request or a connection.
pub(super) enum Stream {
    Http(HttpFilter),
    Connection(ConnectionFilter),
}

/// Shared with the callback that runs, so that one within it finds the table free.
type Shared<T> = Rc<RefCell<T>>;

type Ids<T> = HashMap<u32, T, BuildHasherDefault<IdHasher>>;

#[derive(Default)]
struct Contexts {
    /// One for each filter configuration, so few that looking through them is quick.
    roots: Vec<(u32, Shared<Root>)>,
    requests: Ids<Shared<HttpFilter>>,
    /// Taken out by the callback that runs. There may be a hundred thousand, so each is one small allocation, without counts.
    connections: Ids<Option<Box<ConnectionFilter>>>,
}

impl Contexts {
    fn take_root(&mut self, id: u32) -> Option<Shared<Root>> {
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

fn root(id: u32) -> Option<Shared<Root>> {
    let find = |contexts: &mut Contexts| {
        contexts.roots.iter().find(|(known, _)| *known == id).map(|(_, root)| Rc::clone(root))
    };
    with_contexts(find).flatten()
}

fn with_request<T>(id: u32, act: impl FnOnce(&mut HttpFilter) -> T) -> Option<T> {
    let request = with_contexts(|contexts| contexts.requests.get(&id).cloned()).flatten()?;
    request.try_borrow_mut().ok().map(|mut request| act(&mut request))
}

fn with_connection(id: u32, act: impl FnOnce(&mut ConnectionFilter)) {
    let taken = with_contexts(|contexts| contexts.connections.get_mut(&id)?.take()).flatten();
    let Some(mut connection) = taken else { return };
    act(&mut connection);
    let put_back = |contexts: &mut Contexts| match contexts.connections.get_mut(&id) {
        Some(place @ None) => {
            *place = Some(connection);
            None
        }
        _ => Some(connection), // deleted meanwhile
    };
    if let Some(deleted) = with_contexts(put_back).flatten() {
        deleted.end(id);
    }
}

/// A new root context if `parent` is 0, else a stream of that root context; without such a root it is let pass.
pub(crate) fn create(id: u32, parent: u32) {
    if parent == 0 {
        let root = Rc::new(RefCell::new(Root::new(id)));
        let replace = |contexts: &mut Contexts| {
            let replaced = contexts.take_root(id);
            contexts.roots.push((id, root));
            replaced
        };
        drop(with_contexts(replace)); // outside: whoever is dropped tells the worker, and Envoy
        return;
    }
    match root(parent).and_then(|root| Some(root.try_borrow().ok()?.stream())) {
        Some(Stream::Http(filter)) => {
            let request = Rc::new(RefCell::new(filter));
            drop(with_contexts(|contexts| contexts.requests.insert(id, request))); // likewise
        }
        Some(Stream::Connection(filter)) => {
            let connection = Some(Box::new(filter));
            let replaced = with_contexts(|contexts| contexts.connections.insert(id, connection)?);
            if let Some(replaced) = replaced.flatten() {
                replaced.end(id);
            }
        }
        None => {}
    }
}

pub(crate) fn on_configure(id: u32, size: usize) -> bool {
    let configure = |root: Shared<Root>| Some(root.try_borrow_mut().ok()?.on_configure(size));
    root(id).and_then(configure).unwrap_or(false)
}

pub(crate) fn on_tick(id: u32) {
    if let Some(root) = root(id)
        && let Ok(root) = root.try_borrow()
    {
        root.on_tick(); // a connection opened in it is one of this root's: both only read it
    }
}

/// The end of a context. Envoy calls `proxy_on_done` just before, if a module has it; this one doesn't, because to enter the
/// VM once more for every request would be felt, and all that could be asked then can still be asked now.
pub(crate) fn on_delete(id: u32) {
    if let Some(request) = with_contexts(|contexts| contexts.requests.remove(&id)).flatten() {
        if let Ok(mut request) = request.try_borrow_mut() {
            request.on_delete(id);
        }
    } else if let Some(connection) = with_contexts(|contexts| contexts.connections.remove(&id)).flatten() {
        connection.map(|connection| connection.end(id)).unwrap_or_default();
    } else {
        drop(with_contexts(|contexts| contexts.take_root(id))); // as in `create`
    }
}

pub(crate) fn on_new_connection(id: u32) -> Action {
    with_connection(id, |connection| connection.on_new_connection(id));
    Action::Continue
}

pub(crate) fn on_downstream_data(id: u32, size: usize, end: bool) -> Action {
    with_connection(id, |connection| connection.on_data(id, Direction::Request, size, end));
    Action::Continue
}

pub(crate) fn on_upstream_data(id: u32, size: usize, end: bool) -> Action {
    with_connection(id, |connection| connection.on_data(id, Direction::Response, size, end));
    Action::Continue
}

pub(crate) fn on_downstream_close(id: u32, peer: PeerType) {
    with_connection(id, |connection| connection.on_downstream_close(id, peer));
}

pub(crate) fn on_request_headers(id: u32, count: usize, end: bool) -> Action {
    with_request(id, |filter| filter.on_http_request_headers(count, end)).unwrap_or(Action::Continue)
}

pub(crate) fn on_response_headers(id: u32, count: usize, end: bool) -> Action {
    with_request(id, |filter| filter.on_http_response_headers(count, end)).unwrap_or(Action::Continue)
}

/// Spreads ids, which Envoy counts up, and the names of clusters, of which there are few (Knuth, The Art of Computer
/// Programming 3, §6.4: multiplicative hashing). A keyed hash would cost more, and panics where the host has no random numbers.
#[derive(Default)]
pub(super) struct IdHasher(u64);

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
