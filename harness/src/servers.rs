//! Real servers with short keep-alive timeouts, if they are installed.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;
use tokio::{net::TcpStream, time::sleep};

use crate::{http, process::Process, project, tls};

/// A running server. It is ended when this is dropped.
#[derive(Debug)]
pub struct Server {
    process: Process,
    address: SocketAddr,
    _directory: TempDir,
}

/// What to run, given a directory of its own and a port.
type Recipe = dyn Fn(&TempDir, u16) -> Result<Command> + Send + Sync;

impl Server {
    /// nginx, answering `ok`, with this `keepalive_timeout`. It closes idle connections by FIN.
    pub async fn nginx(keepalive_timeout: Duration) -> Result<Self> {
        let program = installed("nginx")?;
        Self::start(&move |directory, port| {
            let millis = keepalive_timeout.as_millis();
            let http = format!(
                "keepalive_timeout {millis}ms; keepalive_requests 1000000;
                server {{ listen 127.0.0.1:{port}; location / {{ return 200 'ok\n'; }} }}"
            );
            nginx(&program, directory.path(), &http)
        })
        .await
    }

    /// nginx with TLS, HTTP/1.1 and HTTP/2 by ALPN, answering `ok`, with this `keepalive_timeout` in whole seconds. On
    /// HTTP/1.1 it announces it (`Keep-Alive: timeout=N`).
    pub async fn nginx_tls(keepalive_seconds: u64) -> Result<Self> {
        let program = installed("nginx")?;
        Self::start_listening(&move |directory, port| {
            tls::write_pem(directory.path())?;
            let http = format!(
                "keepalive_timeout {keepalive_seconds}s {keepalive_seconds}s;
                server {{
                    listen 127.0.0.1:{port} ssl http2;
                    ssl_certificate cert.pem; ssl_certificate_key key.pem;
                    location / {{ return 200 'ok\n'; }}
                }}"
            );
            nginx(&program, directory.path(), &http)
        })
        .await
    }

    /// `nghttpd` of nghttp2, HTTP/2 with TLS, answering `ok`.
    pub async fn nghttpd() -> Result<Self> {
        let program = installed("nghttpd")?;
        Self::start_listening(&move |directory, port| {
            tls::write_pem(directory.path())?;
            fs::write(directory.path().join("index.html"), "ok\n")?;
            let mut command = Command::new(&program);
            command.arg("--address=127.0.0.1").arg("--htdocs").arg(directory.path()).arg(port.to_string());
            command.arg(directory.path().join("key.pem")).arg(directory.path().join("cert.pem"));
            Ok(command)
        })
        .await
    }

    /// nginx with directives of its own for `http`, given the port to listen on. It is ready when it listens: no request is sent.
    pub async fn nginx_with(http: impl Fn(u16) -> String + Send + Sync + 'static) -> Result<Self> {
        let program = installed("nginx")?;
        Self::start_listening(&move |directory, port| nginx(&program, directory.path(), &http(port))).await
    }

    /// HAProxy with a configuration of its own, given the port to listen on. It is ready when it listens.
    pub async fn haproxy_with(configuration: impl Fn(u16) -> String + Send + Sync + 'static) -> Result<Self> {
        let program = installed("haproxy")?;
        Self::start_listening(&move |directory, port| {
            let path = directory.path().join("haproxy.cfg");
            fs::write(&path, configuration(port))?;
            let mut command = Command::new(&program);
            command.arg("-db").arg("-f").arg(path);
            Ok(command)
        })
        .await
    }

    /// HAProxy, answering `ok`, with this `timeout http-keep-alive`. It closes idle connections by FIN.
    pub async fn haproxy(keep_alive: Duration) -> Result<Self> {
        let program = installed("haproxy")?;
        Self::start(&move |directory, port| {
            let millis = keep_alive.as_millis();
            let configuration = format!(
                "global\n maxconn 2048\n\
                 defaults\n mode http\n timeout client 30s\n timeout server 30s\n timeout connect 5s\n \
                 timeout http-keep-alive {millis}ms\n timeout http-request 10s\n\
                 frontend lb\n bind 127.0.0.1:{port}\n http-request wait-for-body time 5s\n \
                 http-request return status 200 content-type text/plain string ok\n"
            );
            let path = directory.path().join("haproxy.cfg");
            fs::write(&path, configuration)?;
            let mut command = Command::new(&program);
            command.arg("-db").arg("-f").arg(path);
            Ok(command)
        })
        .await
    }

    /// Node's `http.createServer` with this `keepAliveTimeout` (its default is 5 s), announced by `Keep-Alive` unless
    /// `silent`.
    pub async fn node(keep_alive_timeout: Duration, silent: bool) -> Result<Self> {
        let program = installed("node")?;
        Self::start(&move |directory, port| {
            let hide = if silent { "response.setHeader('Connection', 'keep-alive');" } else { "" };
            let script = format!(
                "const http = require('http');
                const server = http.createServer((request, response) => {{
                    request.resume();
                    request.on('end', () => {{ {hide} response.end('ok\\n'); }});
                }});
                server.keepAliveTimeout = {};
                server.listen({port}, '127.0.0.1');",
                keep_alive_timeout.as_millis()
            );
            let path = directory.path().join("server.js");
            fs::write(&path, script)?;
            let mut command = Command::new(&program);
            command.arg(path);
            Ok(command)
        })
        .await
    }

    /// gunicorn, answering `ok`. With a keep-alive of some seconds it closes idle connections by FIN; without, each with its answer.
    pub async fn gunicorn(keep_alive_seconds: Option<u64>) -> Result<Self> {
        let program = installed("gunicorn")?;
        Self::start_listening(&move |directory, port| {
            let application = "def app(environ, start_response):\n    start_response('200 OK', [('Content-Length', '3')])\n    return [b'ok\\n']\n";
            fs::write(directory.path().join("ok.py"), application)?;
            let mut command = Command::new(&program);
            command.args(["--workers=1", &format!("--bind=127.0.0.1:{port}")]).arg("--chdir").arg(directory.path());
            match keep_alive_seconds {
                Some(seconds) => command.args(["--worker-class=gthread", &format!("--keep-alive={seconds}")]),
                None => command.arg("--worker-class=sync"),
            };
            command.arg("ok:app");
            Ok(command)
        })
        .await
    }

    /// Another program: how to run it, given its path, a directory of its own and the port to listen on. It is ready when it
    /// listens.
    pub async fn program(
        name: &str,
        command: impl Fn(&Path, &Path, u16) -> Result<Command> + Send + Sync + 'static,
    ) -> Result<Self> {
        let program = installed(name)?;
        Self::start_listening(&move |directory, port| command(&program, directory.path(), port)).await
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process; where it has more than one, the first.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it has printed.
    pub fn output(&self) -> String {
        self.process.output()
    }

    async fn start(recipe: &Recipe) -> Result<Self> {
        Self::started(recipe, async |address| http::get(address, "/").await.is_ok()).await
    }

    /// As [`start`](Self::start), for servers that answer in TLS alone, or by asking others: they listen, that must do.
    async fn start_listening(recipe: &Recipe) -> Result<Self> {
        Self::started(recipe, async |address| TcpStream::connect(address).await.is_ok()).await
    }

    async fn started(recipe: &Recipe, is_ready: impl AsyncFn(SocketAddr) -> bool) -> Result<Self> {
        // Another program may take the port between our look and the server's start.
        let mut last = None;
        for _ in 0..3 {
            match Self::attempt(recipe, &is_ready).await {
                Ok(server) => return Ok(server),
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("there were attempts"))
    }

    async fn attempt(recipe: &Recipe, is_ready: &impl AsyncFn(SocketAddr) -> bool) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let command = recipe(&directory, address.port())?;
        let mut process = Process::start(command, &directory.path().join("output.log"))?;
        let end = Instant::now() + Duration::from_secs(10);
        while !is_ready(address).await {
            if let Some(status) = process.ended() {
                bail!("the server has ended ({status}): {}", process.output());
            }
            if Instant::now() > end {
                bail!("the server does not answer: {}", process.output());
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(Self { process, address, _directory: directory })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.terminate(Duration::from_secs(2)); // who is killed can't end its own children
    }
}

/// How to run nginx with these directives for `http`, in one process that keeps to its directory.
///
/// # Errors
/// If its configuration can't be written.
pub fn nginx(program: &Path, directory: &Path, http: &str) -> Result<Command> {
    let path = directory.join("nginx.conf");
    let configuration = format!(
        "daemon off; master_process off; worker_processes 1; pid nginx.pid; error_log stderr crit;
        events {{ worker_connections 16384; }}
        http {{
            access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
            uwsgi_temp_path uwsgi; scgi_temp_path scgi;
            {http}
        }}"
    );
    fs::write(&path, configuration)?;
    let mut command = Command::new(program);
    command.arg("-p").arg(directory).arg("-c").arg(path);
    Ok(command)
}

fn installed(name: &str) -> Result<std::path::PathBuf> {
    project::program(name).with_context(|| format!("{name} is not installed"))
}
