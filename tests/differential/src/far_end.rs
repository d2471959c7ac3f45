//! The far end of scripted cases: it answers each request as the case says.
//!
//! To add a kind of far end: a variant of [`Kind`], and a function beside `scripted` and `relay` that returns what it saw.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use crate::{
    drive::{Protocol, http1::Http1, http2, wire::Wire},
    passage::Side,
    real::Real,
    record::{Connection, End},
    script::{Do, Signals},
};

/// What the far end is in one case.
#[derive(Debug, Clone)]
pub enum Kind {
    /// Answers by script: for each path `/<n>` the attempts, the last of which repeats.
    Script(Vec<Vec<Vec<Do>>>),
    /// Acts when a connection comes, before any request, and then answers by script.
    OnAccept(Vec<Do>, Vec<Vec<Vec<Do>>>),
    /// A real server, if it is installed; it is started before, and becomes a relay.
    Real(Real),
    /// Passes everything to a real server, and writes down what it passes.
    Relay(SocketAddr),
}

/// One case under way.
pub(crate) struct Run {
    pub(crate) signals: Arc<Signals>,
    pub(crate) finish: watch::Sender<bool>,
    kind: Kind,
    protocol: Protocol,
    attempts: Mutex<HashMap<usize, usize>>,
    connections: Mutex<Vec<JoinHandle<Connection>>>,
}

impl Run {
    pub(crate) fn new(kind: Kind, protocol: Protocol) -> Self {
        Self {
            signals: Arc::default(),
            finish: watch::channel(false).0,
            kind,
            protocol,
            attempts: Mutex::default(),
            connections: Mutex::default(),
        }
    }

    /// What to do with the request for this target, which may come again.
    pub(crate) fn steps(&self, target: &str) -> Vec<Do> {
        let (Kind::Script(answers) | Kind::OnAccept(_, answers)) = &self.kind else { return Vec::new() };
        let digits: String =
            target.trim_start_matches('/').chars().take_while(|letter| letter.is_ascii_digit()).collect();
        let which = digits.parse().unwrap_or(0);
        let mut attempts = self.attempts.lock().expect("no panic under the lock");
        let attempt = attempts.entry(which).or_insert(0);
        *attempt += 1;
        let Some(scripts) = answers.get(which).or(answers.last()) else { return Vec::new() };
        scripts.get(*attempt - 1).or(scripts.last()).cloned().unwrap_or_default()
    }

    /// What was seen on each connection.
    pub(crate) async fn record(&self) -> Vec<Connection> {
        self.finish.send_replace(true);
        let handles = std::mem::take(&mut *self.connections.lock().expect("no panic under the lock"));
        let mut seen = Vec::new();
        for handle in handles {
            seen.push(handle.await.expect("no panic on a connection").settled());
        }
        seen.sort();
        seen
    }
}

/// Waits for the end of the case.
pub(crate) async fn finished(finish: &mut watch::Receiver<bool>) {
    let _ = finish.wait_for(|finished| *finished).await; // the sender lives as long as the case
}

/// A listening socket. It ends with this value.
pub(crate) struct FarEnd {
    pub(crate) address: SocketAddr,
    current: Arc<Mutex<Option<Arc<Run>>>>,
    task: JoinHandle<()>,
}

impl FarEnd {
    pub(crate) async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let current: Arc<Mutex<Option<Arc<Run>>>> = Arc::default();
        let runs = Arc::clone(&current);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Some(run) = runs.lock().expect("no panic under the lock").clone() else { continue };
                let connection = tokio::spawn(serve(stream, Arc::clone(&run)));
                run.connections.lock().expect("no panic under the lock").push(connection);
            }
        });
        Ok(Self { address, current, task })
    }

    /// From here on connections belong to this case.
    pub(crate) fn set(&self, run: Option<Arc<Run>>) {
        *self.current.lock().expect("no panic under the lock") = run;
    }
}

impl Drop for FarEnd {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: TcpStream, run: Arc<Run>) -> Connection {
    match (&run.kind, run.protocol) {
        (Kind::Relay(server), _) => relay(stream, *server, &run).await,
        (_, Protocol::Http1) => scripted(stream, &run).await,
        (_, Protocol::Http2) => http2::serve(stream, run).await,
    }
}

async fn scripted(stream: TcpStream, run: &Run) -> Connection {
    let mut finish = run.finish.subscribe();
    let mut http = Http1::new(Wire::new(stream).noted(&run.signals, Side::FarEnd), Side::FarEnd, "");
    if let Kind::OnAccept(steps, _) = &run.kind {
        http.run(steps, "", &run.signals).await;
    }
    while http.wire.end == End::Open {
        let has_next = tokio::select! {
            biased;
            has_next = http.next() => has_next,
            () = finished(&mut finish) => {
                http.wire.finish().await;
                break;
            }
        };
        if !has_next {
            break;
        }
        let Some(start) = http.read_head().await else { break };
        let target = start.split(' ').nth(1).unwrap_or_default();
        http.run(&run.steps(target), "", &run.signals).await;
        tokio::select! {
            biased;
            () = http.read_end_of_this() => {}
            () = finished(&mut finish) => {
                http.wire.finish().await;
                break;
            }
        }
    }
    Connection { messages: http.messages, end: http.wire.end }
}

async fn relay(mut near: TcpStream, server: SocketAddr, run: &Run) -> Connection {
    let mut finish = run.finish.subscribe();
    let mut passed = Vec::new();
    let mut end = End::Open;
    let Ok(mut far) = TcpStream::connect(server).await else { return Connection { messages: Vec::new(), end } };
    let (mut from_near, mut from_far) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    let mut far_is_done = false;
    loop {
        tokio::select! {
            read = near.read(&mut from_near) => match read {
                Ok(length @ 1..) => {
                    run.signals.came(Side::FarEnd);
                    passed.extend_from_slice(&from_near[..length]);
                    let _ = far.write_all(&from_near[..length]).await; // it may have closed; the other direction tells
                }
                Ok(_) => { end = End::Fin; break; }
                Err(_) => { end = End::Rst; break; }
            },
            read = far.read(&mut from_far), if !far_is_done => match read {
                Ok(length @ 1..) => {
                    run.signals.sent(Side::FarEnd);
                    let _ = near.write_all(&from_far[..length]).await; // as above
                }
                _ => { far_is_done = true; let _ = near.shutdown().await; }
            },
            () = finished(&mut finish) => { end = End::Ours; break; }
        }
    }
    if far_is_done && end == End::Fin {
        end = End::Ours; // the server closed first
    }
    Connection { messages: Http1::requests(&passed), end }
}
