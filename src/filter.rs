//! The shell: Envoy's callbacks in, calls of the core, host calls out. One root context a filter configuration, one stream
//! context a request or an upstream connection.

mod connection;
mod destinations;
mod http;
mod probe;

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use proxy_wasm::traits::{Context, HttpContext, RootContext, StreamContext};
use proxy_wasm::types::ContextType;

use crate::config::{self, Config};
use crate::host;

use self::connection::{ConnectionFilter, ConnectionRoot};
use self::http::{HttpFilter, HttpRoot};

mod entry {
    proxy_wasm::main! {{
        proxy_wasm::set_root_context(|root| Box::new(super::Root::new(root)));
    }}
}

/// How often a filter that has no connections to look after tells Envoy what it counted.
const REPORT_PERIOD: Duration = Duration::from_secs(1);

thread_local! {
    /// Whose probe's request is to be sent when the current tick is over.
    static TO_PROBE: Cell<Option<Rc<ConnectionRoot>>> = const { Cell::new(None) };
}

fn send_probes() {
    if let Some(root) = TO_PROBE.take() {
        root.send_probe();
    }
}

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
            Config::Connection(config) => {
                host::after_tick(send_probes);
                Filter::Connection(Rc::new(ConnectionRoot::new(self.id, config)))
            }
        });
        Ok(())
    }
}

impl Context for Root {}

impl RootContext for Root {
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

    fn on_tick(&mut self) {
        match &self.filter {
            Some(Filter::Connection(root)) => {
                if root.on_tick() {
                    TO_PROBE.set(Some(Rc::clone(root)));
                }
            }
            Some(Filter::Http(root)) => root.on_tick(),
            None => {}
        }
    }

    fn get_type(&self) -> Option<ContextType> {
        match self.filter {
            Some(Filter::Connection(_)) => Some(ContextType::StreamContext),
            // Envoy creates no streams for a configuration that was refused; the SDK panics without a type.
            Some(Filter::Http(_)) | None => Some(ContextType::HttpContext),
        }
    }

    fn create_http_context(&self, _context: u32) -> Option<Box<dyn HttpContext>> {
        let root = match &self.filter {
            Some(Filter::Http(root)) => Some(Rc::clone(root)),
            _ => None,
        };
        Some(Box::new(HttpFilter::new(root)))
    }

    fn create_stream_context(&self, context: u32) -> Option<Box<dyn StreamContext>> {
        let root = match &self.filter {
            Some(Filter::Connection(root)) => Some(Rc::clone(root)),
            _ => None,
        };
        Some(Box::new(ConnectionFilter::new(context, root)))
    }
}
