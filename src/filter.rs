//! The shell: Envoy's callbacks in, calls of the core, host calls out. One root context a filter configuration, one stream
//! context a request or an upstream connection.

mod connection;
pub(crate) mod contexts;
mod destinations;
mod http;
mod probe;

use std::rc::Rc;
use std::time::Duration;

use crate::config::{self, Config};
use crate::host;

use self::connection::{ConnectionFilter, ConnectionRoot};
use self::contexts::Stream;
use self::http::{HttpFilter, HttpRoot};

mod entry {
    // Exports `_initialize`; the callbacks are those of `host::callbacks`.
    proxy_wasm::main! {{}}
}

/// How often a filter that has no connections to look after tells Envoy what it counted.
const REPORT_PERIOD: Duration = Duration::from_secs(1);

/// The root context of one filter configuration.
struct Root {
    id: u32,
    filter: Option<Filter>,
}

enum Filter {
    Http(Rc<HttpRoot>),
    Connection(Rc<ConnectionRoot>),
}

impl Root {
    fn new(id: u32) -> Self {
        Self { id, filter: None }
    }

    /// A new request or connection; one that passes unseen while there is no configuration.
    fn stream(&self) -> Stream {
        match &self.filter {
            Some(Filter::Connection(root)) => Stream::Connection(ConnectionFilter::new(Rc::clone(root))),
            Some(Filter::Http(root)) => Stream::Http(HttpFilter::new(Some(Rc::clone(root)))),
            None => Stream::Http(HttpFilter::new(None)),
        }
    }

    fn configure(&mut self, size: usize) -> Result<(), String> {
        let json = host::configuration(size)
            .map_err(|error| format!("Envoy does not hand over the configuration: {error:?}"))?;
        let checked = config::parse(&json).map_err(|error| error.to_string())?;
        for warning in checked.warnings {
            log::warn!("{warning}");
        }
        self.filter = Some(match checked.config {
            Config::Http(config) => {
                host::set_tick_period(REPORT_PERIOD).unwrap_or_else(host::report);
                Filter::Http(Rc::new(HttpRoot::new(self.id, config)))
            }
            Config::Connection(config) => Filter::Connection(Rc::new(ConnectionRoot::new(self.id, config))),
        });
        Ok(())
    }

    /// Returns whether the configuration is accepted.
    fn on_configure(&mut self, size: usize) -> bool {
        host::init_log();
        match self.configure(size) {
            Ok(()) => true,
            Err(message) => {
                log::error!("{message}");
                false
            }
        }
    }

    /// Envoy may call back for new connections meanwhile.
    fn on_tick(&self) {
        match &self.filter {
            Some(Filter::Connection(root)) => root.on_tick(),
            Some(Filter::Http(root)) => root.on_tick(),
            None => {}
        }
    }
}
