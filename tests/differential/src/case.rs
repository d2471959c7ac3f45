//! One row of the table: clients, a far end, and the setup between them.

use crate::{drive::Protocol, far_end::Kind, script::Do, setup::Setup};

/// A client: one connection.
#[derive(Debug, Clone)]
pub struct Client {
    /// What it speaks.
    pub protocol: Protocol,
    /// Its streams: path and steps. On HTTP/1.1 one after the other, on HTTP/2 beside each other.
    pub streams: Vec<(String, Vec<Do>)>,
}

/// One row of the table.
#[derive(Debug, Clone)]
pub struct Case {
    /// Its name: what one would type to run it alone.
    pub name: String,
    /// What happens, in half a sentence.
    pub about: String,
    /// What Envoy is like.
    pub setup: Setup,
    /// The clients, beside each other.
    pub clients: Vec<Client>,
    /// The far end.
    pub far_end: Kind,
    /// Request headers that idleguard is there to take out.
    pub taken_out: &'static [&'static str],
}

impl Case {
    /// A case with one client that speaks HTTP/1.1 and asks once.
    pub fn new(name: &str, about: &str, client: Vec<Do>, far_end: Vec<Do>) -> Self {
        Self {
            name: name.to_owned(),
            about: about.to_owned(),
            setup: Setup::Usual,
            clients: vec![Client { protocol: Protocol::Http1, streams: vec![("/0".to_owned(), client)] }],
            far_end: Kind::Script(vec![vec![far_end]]),
            taken_out: &[],
        }
    }

    /// The same in another setup.
    #[must_use]
    pub fn setup(mut self, setup: Setup) -> Self {
        self.setup = setup;
        self
    }

    /// The same with clients that speak HTTP/2.
    #[must_use]
    pub fn http2_client(mut self) -> Self {
        self.clients.iter_mut().for_each(|client| client.protocol = Protocol::Http2);
        self
    }

    /// The same, asked for by these streams on one connection, for the paths `/0`, `/1` and so on.
    #[must_use]
    pub fn streams(mut self, streams: Vec<Vec<Do>>) -> Self {
        let paths = streams.into_iter().enumerate().map(|(at, steps)| (format!("/{at}"), steps));
        self.clients[0].streams = paths.collect();
        self
    }

    /// The same before this far end.
    #[must_use]
    pub fn far_end(mut self, far_end: Kind) -> Self {
        self.far_end = far_end;
        self
    }

    /// The same; idleguard is there to take these headers out of requests.
    #[must_use]
    pub fn taken_out(mut self, names: &'static [&'static str]) -> Self {
        self.taken_out = names;
        self
    }

    /// The same with this path and query.
    #[must_use]
    pub fn path(mut self, path: &str) -> Self {
        self.clients[0].streams[0].0 = path.to_owned();
        self
    }
}
