//! Plain clients: a thread, a socket, one request after the other. They cost little, and none of it is Envoy's.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

/// What is asked for, and how.
#[derive(Debug, Clone)]
pub struct Request {
    /// The path.
    pub path: &'static str,
    /// A connection of its own for each request.
    pub new_connections: bool,
}

impl Request {
    fn bytes(&self) -> Vec<u8> {
        let close = if self.new_connections { "connection: close\r\n" } else { "" };
        // What a proxy in front sends: the filters that care for addresses have something to care for.
        format!(
            "GET {} HTTP/1.1\r\nhost: app.example\r\nuser-agent: bench\r\naccept: */*\r\n\
             x-forwarded-for: 203.0.113.7, 10.0.0.2\r\n{close}\r\n",
            self.path
        )
        .into_bytes()
    }
}

struct Client {
    address: SocketAddr,
    request: Vec<u8>,
    keep: bool,
    tcp: Option<TcpStream>,
    buffer: Vec<u8>,
}

impl Client {
    fn new(address: SocketAddr, request: &Request) -> Self {
        Self {
            address,
            request: request.bytes(),
            keep: !request.new_connections,
            tcp: None,
            buffer: vec![0; 256 * 1024],
        }
    }

    fn connect(&mut self) -> Result<()> {
        if self.tcp.is_none() {
            let tcp = TcpStream::connect(self.address)?;
            tcp.set_nodelay(true)?;
            tcp.set_read_timeout(Some(Duration::from_secs(20)))?;
            self.tcp = Some(tcp);
        }
        Ok(())
    }

    fn exchange(&mut self) -> Result<()> {
        self.connect()?;
        let tcp = self.tcp.as_mut().context("a connection")?;
        tcp.write_all(&self.request)?;
        let mut filled = 0;
        let (head, length) = loop {
            let read = tcp.read(self.buffer.get_mut(filled..).context("a head that fits")?)?;
            ensure!(read > 0, "closed before the response");
            filled += read;
            let seen = &self.buffer[..filled];
            if let Some(end) = seen.windows(4).position(|four| four == b"\r\n\r\n") {
                ensure!(seen.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&seen[..end]));
                break (end + 4, content_length(&seen[..end]).context("a content length")?);
            }
        };
        let mut missing = (head + length).saturating_sub(filled);
        while missing > 0 {
            let read = tcp.read(&mut self.buffer)?;
            ensure!(read > 0, "closed within the response");
            missing = missing.saturating_sub(read);
        }
        if !self.keep {
            self.tcp = None;
        }
        Ok(())
    }
}

fn content_length(head: &[u8]) -> Option<usize> {
    let head = std::str::from_utf8(head).ok()?;
    head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.trim().parse().ok())
}

/// Clients that keep their connections from one turn to the next.
pub struct Clients(Vec<Client>);

impl Clients {
    /// So many of them; they connect when they send.
    pub fn new(address: SocketAddr, request: &Request, clients: usize) -> Self {
        Self((0..clients).map(|_| Client::new(address, request)).collect())
    }

    /// Sends this many requests, each client the next one as soon as it has its answer.
    pub fn send(&mut self, requests: usize) -> Result<()> {
        let each = requests.div_ceil(self.0.len());
        thread::scope(|scope| {
            let running: Vec<_> = self
                .0
                .iter_mut()
                .map(|client| scope.spawn(move || (0..each).try_for_each(|_| client.exchange())))
                .collect();
            running
                .into_iter()
                .try_for_each(|client| client.join().map_err(|_| io::Error::other("a client panicked"))?)
        })
    }
}

/// Sends this many requests from this many clients, each as soon as it has its answer.
pub fn closed_loop(address: SocketAddr, request: &Request, clients: usize, requests: usize) -> Result<()> {
    Clients::new(address, request, clients).send(requests)
}

/// Connections that stand, on which requests are sent in turn.
pub struct Open(Vec<Vec<Client>>);

/// Threads that send.
const SENDERS: usize = 16;

impl Open {
    /// Connects so many.
    pub fn connect(address: SocketAddr, connections: usize) -> Result<Self> {
        let request = Request { path: "/small", new_connections: false };
        let each = connections.div_ceil(SENDERS);
        let mut senders = Vec::new();
        for _ in 0..SENDERS {
            let mut clients = Vec::with_capacity(each);
            for _ in 0..each {
                let mut client = Client::new(address, &request);
                client.buffer = vec![0; 4096];
                client.connect()?;
                clients.push(client);
            }
            senders.push(clients);
        }
        Ok(Self(senders))
    }

    /// Sends at a fixed rate, whatever the answers do, and returns each request's time from when it was due.
    pub fn at_rate(mut self, rate: f64, duration: Duration) -> Result<Vec<Duration>> {
        let begin = Instant::now() + Duration::from_millis(20);
        let failed = AtomicBool::new(false);
        let each = (duration.as_secs_f64() * rate / SENDERS as f64) as usize;
        thread::scope(|scope| {
            let failed = &failed;
            let senders = self.0.iter_mut().enumerate();
            let running: Vec<_> = senders
                .map(|(index, clients)| {
                    scope.spawn(move || -> Result<Vec<Duration>> {
                        let mut latencies = Vec::with_capacity(each);
                        let count = clients.len();
                        for turn in 0..each {
                            let due = begin + Duration::from_secs_f64((turn * SENDERS + index) as f64 / rate);
                            thread::sleep(due.saturating_duration_since(Instant::now()));
                            if failed.load(Ordering::Relaxed) {
                                break;
                            }
                            let client = &mut clients[turn % count];
                            client.exchange().inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
                            latencies.push(due.elapsed());
                        }
                        Ok(latencies)
                    })
                })
                .collect();
            let mut all = Vec::new();
            for sender in running {
                all.extend(sender.join().map_err(|_| io::Error::other("a client panicked"))??);
            }
            Ok(all)
        })
    }
}

impl Drop for Open {
    /// By RST: a FIN would keep ten thousand ports for a minute.
    fn drop(&mut self) {
        for client in self.0.iter().flatten() {
            if let Some(tcp) = &client.tcp {
                let _ = rustix::net::sockopt::set_socket_linger(tcp, Some(Duration::ZERO)); // then it is a FIN
            }
        }
    }
}
