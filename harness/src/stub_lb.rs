//! A load balancer that does to idle connections what it is told to, and writes down what it saw.
//!
//! Real load balancers drop idle connections in different ways, some of them hard to provoke. Here each way is a [`Mode`],
//! to the millisecond and changeable while connections are open. It runs on a thread of its own, so that a busy test does
//! not delay it, and reads the kernel's arrival times, so that a busy machine does not make it drop what came in time.
//!
//! ```
//! use std::time::Duration;
//! use idleguard_harness::stub_lb::{Mode, StubLb};
//!
//! let lb = StubLb::start(Mode::SilentRst(Duration::from_secs(2)));
//! println!("listening on {}", lb.address());
//! lb.set(Mode::Stable);
//! assert_eq!(lb.counters().requests, 0);
//! ```

mod connection;
mod io;
mod mode;
mod record;
mod routes;

use std::{
    net::{Ipv4Addr, SocketAddr},
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use hyper::service::service_fn;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
    sync::{oneshot, watch},
    time::{sleep_until, timeout},
};
use tokio_rustls::TlsAcceptor;

use self::{
    connection::{Connection, Due},
    io::{Socket, Stream},
    record::Book,
};
pub use self::{
    mode::Mode,
    record::{By, Close, Counters, How, Record, Reuse, Standing, View},
};
use crate::{delay::DelayRelay, listen::listen};

/// How a load balancer is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// What happens to idle connections.
    pub mode: Mode,
    /// Seconds in a `Keep-Alive: timeout=N` header on every response.
    pub keep_alive: Option<u64>,
    /// TLS with these protocols offered by ALPN (`"h2"`, `"http/1.1"`). Without TLS both are spoken, too.
    pub tls: Option<Vec<&'static str>>,
    /// Delay of every byte and every close, each way, as a network would.
    pub delay: Duration,
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            mode: Mode::Stable,
            keep_alive: None,
            tls: None,
            delay: Duration::ZERO,
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
        }
    }
}

/// A running load balancer. It ends when this is dropped.
#[derive(Debug)]
pub struct StubLb {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    relay: Option<DelayRelay>,
}

/// What every connection can see.
#[derive(Debug)]
struct Shared {
    control: watch::Sender<Control>,
    book: Mutex<Book>,
}

#[derive(Debug, Clone)]
struct Control {
    mode: Mode,
    keep_alive: Option<u64>,
    restarts: u64,
    restart: How,
}

impl Shared {
    fn mode(&self) -> Mode {
        self.control.borrow().mode
    }

    fn keep_alive(&self) -> Option<u64> {
        self.control.borrow().keep_alive
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect("nothing panics while it holds the book")
    }
}

// === impl StubLb ===

impl StubLb {
    /// Starts one on a free loopback port.
    pub fn start(mode: Mode) -> Self {
        Self::with(Options { mode, ..Options::default() }).expect("a free loopback port")
    }

    /// Starts one; fails if the port is taken.
    pub fn with(options: Options) -> std::io::Result<Self> {
        let listener = listen(if options.delay.is_zero() { options.listen } else { (Ipv4Addr::LOCALHOST, 0).into() })?;
        let direct = listener.local_addr()?;
        let relay =
            (!options.delay.is_zero()).then(|| DelayRelay::start(options.listen, direct, options.delay)).transpose()?;
        let address = relay.as_ref().map_or(direct, DelayRelay::address);
        let control = Control { mode: options.mode, keep_alive: options.keep_alive, restarts: 0, restart: How::Fin };
        let shared = Arc::new(Shared { control: watch::Sender::new(control), book: Mutex::default() });
        let tls = options.tls.as_deref().map(crate::tls::acceptor);
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new().name("stub-lb".into()).spawn({
            let shared = shared.clone();
            move || serve(listener, &shared, tls, stopped)
        })?;
        Ok(Self { address, shared, stop: Some(stop), thread: Some(thread), relay })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes what happens to idle connections, those included that are open.
    pub fn set(&self, mode: Mode) {
        self.shared.control.send_modify(|control| control.mode = mode);
    }

    /// Changes the `Keep-Alive: timeout=N` header of the responses to come.
    pub fn set_keep_alive(&self, seconds: Option<u64>) {
        self.shared.control.send_modify(|control| control.keep_alive = seconds);
    }

    /// Closes every connection by FIN, as a restart does, and goes on accepting.
    pub fn close_all(&self) {
        self.close_all_by(How::Fin);
    }

    /// Closes every connection in this way, and goes on accepting.
    pub fn close_all_by(&self, how: How) {
        self.shared.control.send_modify(|control| {
            control.restarts += 1;
            control.restart = how;
        });
    }

    /// The totals so far.
    pub fn counters(&self) -> Counters {
        self.shared.book().counters
    }

    /// Every connection that is open, and the last ones that have ended, in the order of acceptance.
    pub fn records(&self) -> Vec<Record> {
        self.shared.book().records()
    }

    /// Where each connection stands: those that are open, and those that have ended since.
    pub fn view(&self, since: Instant) -> Vec<View> {
        self.shared.book().view(since, Instant::now())
    }

    /// What happens to idle connections at present.
    pub fn mode(&self) -> Mode {
        self.shared.mode()
    }

    /// The requests on connections that had served before, since the last call; the latest 20,000 if there were more.
    pub fn take_reuses(&self) -> Vec<Reuse> {
        self.shared.book().take_reuses()
    }

    /// Paths and queries of the requests that were in flight when the load balancer itself ended their connection (by a
    /// restart or an abort), since the last call.
    pub fn take_broken(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.book().broken)
    }

    /// When a restart last ended a connection.
    pub fn restarted_at(&self) -> Option<Instant> {
        self.shared.book().restarted_at
    }

    /// Waits until the counters satisfy the condition; false if they don't within the time.
    pub async fn wait_for(&self, within: Duration, condition: impl Fn(Counters) -> bool) -> bool {
        let end = Instant::now() + within;
        while !condition(self.counters()) {
            if Instant::now() > end {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }
}

impl Drop for StubLb {
    fn drop(&mut self) {
        self.relay = None;
        self.stop.take(); // its receiver hears the end of the channel
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic there has been printed there
        }
    }
}

// === the server ===

fn serve(
    listener: std::net::TcpListener,
    shared: &Arc<Shared>,
    tls: Option<TlsAcceptor>,
    stopped: oneshot::Receiver<()>,
) {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener).expect("a listening socket");
        let accept = async {
            loop {
                match listener.accept().await {
                    Ok((tcp, _)) => drop(tokio::spawn(accepted(tcp, shared.clone(), tls.clone()))),
                    // Out of file descriptors, or the peer has gone already: neither is the end of the server.
                    Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
        };
        tokio::select! {
            () = accept => {}
            _ = stopped => {}
        }
    });
}

async fn accepted(tcp: TcpStream, shared: Arc<Shared>, tls: Option<TlsAcceptor>) {
    let connection = Connection::new(shared, Instant::now());
    let _ = tcp.set_nodelay(true); // fails on a connection that has gone already
    let stream = match tls {
        None => Stream::Plain(tcp),
        Some(acceptor) => match timeout(Duration::from_secs(10), acceptor.accept(tcp)).await {
            Ok(Ok(tls)) => {
                connection.on_sni(tls.get_ref().1.server_name());
                Stream::Tls(Box::new(tls))
            }
            Ok(Err(_)) | Err(_) => return connection.on_closed(Instant::now()),
        },
    };
    let socket = TokioIo::new(Socket::new(stream, connection.clone()));
    attend(socket, &connection).await;
}

/// Serves one connection until it ends by itself, is dropped for its idle age, or falls to a restart.
async fn attend(socket: TokioIo<Socket>, connection: &Arc<Connection>) {
    let mut control = connection.shared.control.subscribe();
    let restarts = control.borrow_and_update().restarts;
    let mut serving: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin({
        let connection = connection.clone();
        async move {
            let service = service_fn(|request| routes::answer(connection.clone(), request));
            let builder = auto::Builder::new(TokioExecutor::new());
            // How it ended is in the connection's record.
            let _ = builder.serve_connection_with_upgrades(socket, service).await;
        }
    });
    loop {
        let now = Instant::now();
        let due = match connection.check(now) {
            Due::Close => return,
            Due::Never => now + Duration::from_secs(24 * 3600),
            Due::At(due) => due,
        };
        let timer = pin!(sleep_until(due.into()));
        tokio::select! {
            biased; // what has arrived comes before what is due
            () = &mut serving => match connection.take_upgrade() {
                Some(upgrade) => serving = Box::pin(routes::echo(upgrade)),
                None => return,
            },
            () = routes::changed(&mut control) => {
                let control = control.borrow_and_update();
                if control.restarts != restarts {
                    connection.end(control.restart);
                    connection.shared.book().restarted_at = Some(Instant::now());
                    return;
                }
            }
            () = timer => {}
        }
    }
}
