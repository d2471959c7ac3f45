//! The contexts that Envoy made, by their ids, and what each callback means to one.
//!
//! The SDK has a dispatcher of its own. It panics for an id that it doesn't know and for a callback within a callback of the
//! same kind, and a panic stops the filter for all traffic on its worker. Here, what can't be is nothing to do, and traffic
//! goes on.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;

use proxy_wasm::traits::{HttpContext, StreamContext};
use proxy_wasm::types::{Action, PeerType};

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

#[derive(Default)]
struct Contexts {
    /// One for each filter configuration, so few that looking through them is quick.
    roots: Vec<(u32, Shared<Root>)>,
    streams: HashMap<u32, Shared<Stream>, BuildHasherDefault<IdHasher>>,
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

fn with_stream<T>(id: u32, act: impl FnOnce(&mut Stream) -> T) -> Option<T> {
    let stream = with_contexts(|contexts| contexts.streams.get(&id).cloned()).flatten()?;
    stream.try_borrow_mut().ok().map(|mut stream| act(&mut stream))
}

fn with_connection<T>(id: u32, act: impl FnOnce(&mut ConnectionFilter) -> T) -> Option<T> {
    let act = |stream: &mut Stream| match stream {
        Stream::Connection(filter) => Some(act(filter)),
        Stream::Http(_) => None,
    };
    with_stream(id, act).flatten()
}

fn with_request<T>(id: u32, act: impl FnOnce(&mut HttpFilter) -> T) -> Option<T> {
    let act = |stream: &mut Stream| match stream {
        Stream::Http(filter) => Some(act(filter)),
        Stream::Connection(_) => None,
    };
    with_stream(id, act).flatten()
}

/// A new root context if `parent` is 0, else a stream of that root context; without such a root it is let pass.
pub(crate) fn create(id: u32, parent: u32) {
    let replaced: (Option<Shared<Root>>, Option<Shared<Stream>>) = if parent == 0 {
        let root = Rc::new(RefCell::new(Root::new(id)));
        let replace = |contexts: &mut Contexts| {
            let replaced = contexts.take_root(id);
            contexts.roots.push((id, root));
            replaced
        };
        (with_contexts(replace).flatten(), None)
    } else {
        let stream = root(parent).and_then(|root| Some(root.try_borrow().ok()?.stream(id)));
        let stream = stream.map(|stream| Rc::new(RefCell::new(stream)));
        (None, with_contexts(|contexts| contexts.streams.insert(id, stream?)).flatten())
    };
    drop(replaced); // no borrow is held now: whoever is dropped tells the worker, and Envoy
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
    let gone = with_contexts(|contexts| match contexts.streams.remove(&id) {
        None => (contexts.take_root(id), None),
        stream => (None, stream),
    });
    if let Some((_, Some(stream))) = &gone
        && let Ok(mut stream) = stream.try_borrow_mut()
        && let Stream::Http(filter) = &mut *stream
    {
        filter.on_delete();
    }
    drop(gone); // as in `create`
}

pub(crate) fn on_new_connection(id: u32) -> Action {
    with_connection(id, StreamContext::on_new_connection).unwrap_or(Action::Continue)
}

pub(crate) fn on_downstream_data(id: u32, size: usize, end: bool) -> Action {
    with_connection(id, |filter| filter.on_downstream_data(size, end)).unwrap_or(Action::Continue)
}

pub(crate) fn on_upstream_data(id: u32, size: usize, end: bool) -> Action {
    with_connection(id, |filter| filter.on_upstream_data(size, end)).unwrap_or(Action::Continue)
}

pub(crate) fn on_downstream_close(id: u32, peer: PeerType) {
    with_connection(id, |filter| filter.on_downstream_close(peer));
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
