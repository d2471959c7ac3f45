//! Real servers behind the far end's relay.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use idleguard_harness::{http, process::Process, project, servers::Server};
use tempfile::TempDir;

use crate::{case::Case, far_end::Kind};

/// A real server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Real {
    /// nginx.
    Nginx,
    /// HAProxy.
    Haproxy,
    /// Node's `http`.
    Node,
    /// Python's `http.server`.
    Python,
}

/// One that runs.
pub enum Running {
    /// The harness's.
    Server(Server),
    /// Python's.
    Python(Process, SocketAddr, TempDir),
}

impl Running {
    fn address(&self) -> SocketAddr {
        match self {
            Self::Server(server) => server.address(),
            Self::Python(_, address, _) => *address,
        }
    }
}

/// Long enough that no case meets it.
const KEEP_ALIVE: Duration = Duration::from_secs(300);

impl Real {
    async fn start(self) -> Result<Running> {
        Ok(match self {
            Self::Nginx => Running::Server(Server::nginx(KEEP_ALIVE).await?),
            Self::Haproxy => Running::Server(Server::haproxy(KEEP_ALIVE).await?),
            Self::Node => Running::Server(Server::node(KEEP_ALIVE, false).await?),
            Self::Python => python().await?,
        })
    }
}

/// Starts what the cases need; without a server its cases are left out, and a line says so.
pub async fn start(cases: &mut Vec<Case>) -> Result<Vec<Running>> {
    let mut servers = BTreeMap::new();
    for case in cases.iter() {
        if let Kind::Real(real) = case.far_end
            && !servers.contains_key(&real)
        {
            servers.insert(real, project::or_skip(real.start().await));
        }
    }
    cases.retain_mut(|case| {
        let Kind::Real(real) = case.far_end else { return true };
        let Some(Some(server)) = servers.get(&real) else { return false };
        case.far_end = Kind::Relay(server.address());
        true
    });
    Ok(servers.into_values().flatten().collect())
}

/// HTTP/1.1, with bodies both ways.
const PYTHON: &str = r#"
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        body = body or b"hello from python"
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_POST = do_GET
    def log_message(self, *arguments): pass
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"#;

async fn python() -> Result<Running> {
    let program = project::program("python3").context("python3 is not installed")?;
    let directory = tempfile::tempdir()?;
    let script = directory.path().join("server.py");
    fs::write(&script, PYTHON)?;
    let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let mut command = Command::new(program);
    command.arg(script).arg(address.port().to_string());
    let process = Process::start(command, &directory.path().join("output.log"))?;
    let end = Instant::now() + Duration::from_secs(30);
    while http::get(address, "/").await.is_err() {
        if Instant::now() > end {
            bail!("Python's server does not answer: {}", process.output());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(Running::Python(process, address, directory))
}
