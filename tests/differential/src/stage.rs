//! What events happen to: Envoys whose listeners, routes, clusters, endpoints and plugin come from files, hosts that change, and traffic.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use idleguard_harness::{
    envoy::{Config, Envoy, Options},
    http,
};
use serde_json::{Value, json};
use socket2::Socket;
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};

use crate::{
    drive::{http1::Http1, wire::Wire},
    events::broken,
    middle,
    passage::Side,
    record::{ADDRESSES, End, Message, MessageEnd},
    script::{Do, Framing, Signals},
    setup::{HTTP_MANAGER, Subject, for_subject, own},
};

/// How long anything may take that is waited for.
const WITHIN: Duration = Duration::from_secs(60);

// --- hosts

/// How a host answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// 200.
    Good,
    /// This status.
    Bad(u16),
    /// 200 after this time.
    Late(Duration),
    /// Not before the mood changes.
    Held,
    /// Takes a request on a connection that has served before as a reason to reset it, if it was idle for a second.
    Forgetful,
    /// Closes a scout's connections once they have been idle for a second. Others' would be a race that plain loses, too.
    ClosesScouts,
    /// Resets the connection in place of an answer.
    Resets,
}

/// What a host has seen.
#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    in_flight: AtomicU64,
    most_in_flight: AtomicU64,
    lost_signed_headers: AtomicU64,
    health_checks: AtomicU64,
    health_checkers: AtomicU64,
    connections: AtomicU64,
}

/// A server that counts.
pub struct Host {
    /// Where it listens.
    pub address: SocketAddr,
    mood: watch::Sender<Mood>,
    counts: Arc<Counts>,
    task: JoinHandle<()>,
}

impl Host {
    /// Starts one.
    pub async fn start(mood: Mood) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (mood, moods) = watch::channel(mood);
        let counts = Arc::<Counts>::default();
        let task = tokio::spawn(accept(listener, moods, Arc::clone(&counts)));
        Ok(Self { address, mood, counts, task })
    }

    /// Ends it, with its connections, and starts it again there as soon as that is possible.
    pub async fn restart(&mut self) -> Result<()> {
        self.task.abort();
        let _ = (&mut self.task).await; // its connections end with it
        let end = Instant::now() + WITHIN;
        let listener = loop {
            match TcpListener::bind(self.address).await {
                Ok(listener) => break listener,
                Err(error) => ensure!(Instant::now() < end, "{}: {error}", self.address),
            }
            sleep(Duration::from_millis(5)).await;
        };
        self.task = tokio::spawn(accept(listener, self.mood.subscribe(), Arc::clone(&self.counts)));
        Ok(())
    }

    /// From here on it answers so.
    pub fn set(&self, mood: Mood) {
        self.mood.send_replace(mood);
    }

    /// Requests so far, without health checks.
    pub fn requests(&self) -> u64 {
        self.counts.requests.load(SeqCst)
    }

    /// The most that were without an answer at once.
    pub fn most_in_flight(&self) -> u64 {
        self.counts.most_in_flight.load(SeqCst)
    }

    /// Requests without an answer.
    pub fn in_flight(&self) -> u64 {
        self.counts.in_flight.load(SeqCst)
    }

    /// Headers that AWS signatures name, and that requests did not have.
    pub fn lost_signed_headers(&self) -> u64 {
        self.counts.lost_signed_headers.load(SeqCst)
    }

    /// Health checks so far.
    pub fn health_checks(&self) -> u64 {
        self.counts.health_checks.load(SeqCst)
    }

    /// Connections that health checks came on.
    pub fn health_checkers(&self) -> u64 {
        self.counts.health_checkers.load(SeqCst)
    }

    /// Connections so far.
    pub fn connections(&self) -> u64 {
        self.counts.connections.load(SeqCst)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, moods: watch::Receiver<Mood>, counts: Arc<Counts>) {
    let mut serving = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        counts.connections.fetch_add(1, SeqCst);
        serving.spawn(serve(stream, moods.clone(), Arc::clone(&counts)));
        while serving.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, mut moods: watch::Receiver<Mood>, counts: Arc<Counts>) {
    let mut http = Http1::new(Wire::new(stream), Side::FarEnd, "");
    let signals = Signals::default();
    let (mut is_checker, mut served, mut idle_since) = (false, 0, Instant::now());
    loop {
        let is_closing = is_checker && *moods.borrow() == Mood::ClosesScouts;
        let patience = if is_closing { Duration::from_secs(1) } else { Duration::MAX };
        let Ok(true) = timeout(patience, http.next()).await else { return };
        let Some(start) = http.read_head().await else { return };
        let is_check = start.contains("/healthz");
        http.read_end_of_this().await;
        let mood = *moods.borrow_and_update();
        if is_check {
            counts.health_checks.fetch_add(1, SeqCst);
            counts.health_checkers.fetch_add(u64::from(!is_checker), SeqCst);
            is_checker = true;
        }
        if !is_check {
            counts.requests.fetch_add(1, SeqCst);
            let lost = http.messages.last().map_or(0, lost_signed_headers);
            counts.lost_signed_headers.fetch_add(lost, SeqCst);
            let in_flight = counts.in_flight.fetch_add(1, SeqCst) + 1;
            counts.most_in_flight.fetch_max(in_flight, SeqCst);
        }
        let status = match mood {
            Mood::Bad(status) => status,
            Mood::Late(time) if !is_check => {
                sleep(time).await;
                200
            }
            Mood::Held if !is_check => {
                let _ = moods.wait_for(|mood| *mood != Mood::Held).await; // the host may have gone
                200
            }
            Mood::Forgetful if served > 0 && idle_since.elapsed() > Duration::from_secs(1) => 0,
            Mood::Resets if !is_check => 0,
            _ => 200,
        };
        if !is_check {
            counts.in_flight.fetch_sub(1, SeqCst);
        }
        if status == 0 {
            http.wire.reset();
            return;
        }
        http.run(&[Do::status(status, Framing::Length(2)), Do::Data(2)], "", &signals).await;
        http.messages.clear();
        served += 1;
        idle_since = Instant::now();
    }
}

/// `authorization: AWS4-HMAC-SHA256 Credential=…, SignedHeaders=host;x-amz-date, Signature=…`
fn lost_signed_headers(request: &Message) -> u64 {
    let has = |signed: &&str| ADDRESSES.contains(signed) || request.headers.iter().any(|(name, _)| name == signed);
    let authorization = request.headers.iter().find(|(name, _)| name == "authorization");
    let signed = authorization.and_then(|(_, value)| value.split("SignedHeaders=").nth(1)?.split(',').next());
    signed.map_or(0, |names| names.split(';').filter(|name| !has(name)).count() as u64)
}

// --- traffic

/// What became of requests.
#[derive(Debug, Default, Clone)]
pub struct Answers {
    /// By status; 0 where there was none.
    pub by_status: BTreeMap<u16, u64>,
}

impl Answers {
    /// Those that were not answered with 200.
    pub fn failed(&self) -> u64 {
        self.by_status.iter().filter(|(status, _)| **status != 200).map(|(_, count)| count).sum()
    }

    /// Those that were.
    pub fn good(&self) -> u64 {
        self.by_status.get(&200).copied().unwrap_or(0)
    }
}

/// Keep-alive clients that ask one request after the other.
pub struct Traffic {
    answers: Arc<Mutex<Answers>>,
    done: watch::Receiver<u64>,
    stop: watch::Sender<bool>,
    clients: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// Starts it.
    pub fn start(address: SocketAddr, clients: usize) -> Self {
        let answers = Arc::<Mutex<Answers>>::default();
        let (count, done) = watch::channel(0);
        let count = Arc::new(count);
        let (stop, stopped) = watch::channel(false);
        let clients = (0..clients).map(|_| {
            let (answers, count, stopped) = (Arc::clone(&answers), Arc::clone(&count), stopped.clone());
            tokio::spawn(async move {
                let mut client = None;
                while !*stopped.borrow() {
                    let status = ask(address, &mut client).await;
                    *answers.lock().expect("no panic under the lock").by_status.entry(status).or_default() += 1;
                    count.send_modify(|count| *count += 1);
                }
            })
        });
        let clients = clients.collect();
        Self { answers, done, stop, clients }
    }

    /// Waits for as many more answers.
    pub async fn more(&mut self, count: u64) -> Result<()> {
        let goal = *self.done.borrow() + count;
        timeout(WITHIN, self.done.wait_for(|done| *done >= goal)).await.context("the traffic has stopped")??;
        Ok(())
    }

    /// What there was so far.
    pub fn answers(&self) -> Answers {
        self.answers.lock().expect("no panic under the lock").clone()
    }

    /// Ends it, when those under way are answered.
    pub async fn stop(self) -> Answers {
        self.stop.send_replace(true);
        for client in self.clients {
            client.await.expect("no panic in a client");
        }
        self.answers.lock().expect("no panic under the lock").clone()
    }
}

/// One request; the connection is kept if Envoy keeps it. 0: no whole answer.
pub(crate) async fn ask(address: SocketAddr, client: &mut Option<Http1>) -> u16 {
    let mut http = match client.take() {
        Some(http) => http,
        None => match TcpStream::connect(address).await {
            Ok(stream) => Http1::new(Wire::new(stream), Side::Client, "case.example"),
            Err(_) => return 0,
        },
    };
    http.run(&[Do::request("GET", Framing::Nothing), Do::ExpectEnd], "/", &Signals::default()).await;
    let Some(message) = http.messages.pop() else { return 0 };
    let status = if message.end == MessageEnd::Complete { message.status() } else { 0 };
    let closes = message.headers.iter().any(|(name, value)| name == "connection" && value == "close");
    http.wire.read();
    if !closes && http.wire.end == End::Open {
        *client = Some(http);
    }
    status
}

/// As many requests, by as many clients.
pub async fn load(address: SocketAddr, clients: usize, requests: u64) -> Result<Answers> {
    let mut traffic = Traffic::start(address, clients);
    traffic.more(requests).await?;
    Ok(traffic.stop().await)
}

// --- Envoy

/// The configuration in parts, as the files hold them now.
#[derive(Debug)]
struct Parts {
    listener: Value,
    routes: Value,
    clusters: Vec<Value>,
    plugin: Option<Value>,
    hosts: Vec<SocketAddr>,
}

/// An Envoy whose configuration comes from files.
pub struct Stage {
    /// Which of them it is.
    pub subject: Subject,
    /// Envoy itself.
    pub envoy: Envoy,
    /// Where clients go.
    pub ingress: SocketAddr,
    parts: Parts,
    directory: TempDir,
    version: u64,
    bootstrap: Config,
    _port: Socket,
}

const TYPES: &str = "type.googleapis.com/envoy.config";

impl Stage {
    /// Starts the subject before these hosts. `edit` changes the operator's own cluster and routes, before there are lanes.
    pub async fn start(subject: Subject, hosts: &[&Host], edit: impl FnOnce(Config) -> Config) -> Result<Self> {
        Self::start_with(subject, hosts, |config| for_subject(edit(config), subject), subject != Subject::Plain).await
    }

    /// As [`start`](Self::start), with everything in the caller's hand.
    pub async fn start_with(
        subject: Subject,
        hosts: &[&Host],
        edit: impl FnOnce(Config) -> Config,
        waits: bool,
    ) -> Result<Self> {
        Self::start_as(subject, hosts, edit, waits, |_| Options::default()).await
    }

    /// Starts the subject such that [`hot_restart`](Self::hot_restart) is possible.
    pub async fn restartable(subject: Subject, hosts: &[&Host]) -> Result<Self> {
        let waits = subject != Subject::Plain;
        Self::start_as(subject, hosts, |config| for_subject(config, subject), waits, |port| restart_options(port, 0))
            .await
    }

    async fn start_as(
        subject: Subject,
        hosts: &[&Host],
        edit: impl FnOnce(Config) -> Config,
        waits: bool,
        options: impl FnOnce(u16) -> Options,
    ) -> Result<Self> {
        let config =
            broken(subject, edit(own()?.set("static_resources/clusters/payments/load_assignment", Value::Null)));
        let (port, kept) = keep_port()?;
        let config = config.ingress_port(port);
        let mut parts = Parts::of(&config)?;
        parts.hosts = hosts.iter().map(|host| host.address).collect();
        let directory = tempfile::tempdir()?;
        let bootstrap = bootstrap(&config, directory.path())?;
        let mut stage_version = 0;
        parts.write_all(directory.path(), &mut stage_version)?;
        let in_force = if waits { subject } else { Subject::Plain };
        let envoy =
            middle::start_as(&bootstrap, in_force, options(port)).await.with_context(|| format!("{subject:?}"))?;
        let stage = Self {
            subject,
            envoy,
            ingress: (Ipv4Addr::LOCALHOST, port).into(),
            parts,
            directory,
            version: stage_version,
            bootstrap,
            _port: kept,
        };
        let names: Vec<String> = stage.cluster_names();
        let addresses = stage.parts.hosts.clone();
        stage
            .until("the hosts", |clusters| {
                names.iter().all(|name| addresses.iter().all(|host| clusters.contains(&format!("{name}::{host}::"))))
            })
            .await?;
        Ok(stage)
    }

    /// A second Envoy takes over; returns the first one, which ends by itself.
    pub async fn hot_restart(&mut self) -> Result<Envoy> {
        // While both live, Envoy adds up their gauges: what is in force can't be read there.
        let second = middle::start_as(&self.bootstrap, Subject::Plain, restart_options(self.ingress.port(), 1)).await?;
        // Nobody attaches to it any more, and Envoy leaves it behind.
        let _ = fs::remove_file(format!("/dev/shm/envoy_shared_memory_{}", u64::from(self.ingress.port()) * 10));
        Ok(std::mem::replace(&mut self.envoy, second))
    }

    /// What `/clusters` says.
    pub async fn clusters_text(&self) -> Result<String> {
        Ok(http::get(self.envoy.admin(), "/clusters").await?.text())
    }

    /// Base and lanes.
    pub fn cluster_names(&self) -> Vec<String> {
        self.parts.clusters.iter().filter_map(|cluster| cluster["name"].as_str().map(str::to_owned)).collect()
    }

    /// The cluster that the subject's requests go to.
    pub fn in_force(&self) -> &'static str {
        if self.subject == Subject::Lane { "payments-54s" } else { "payments" }
    }

    /// Waits until `/clusters` says so.
    pub async fn until(&self, what: &str, condition: impl Fn(&str) -> bool) -> Result<()> {
        let end = Instant::now() + WITHIN;
        loop {
            let text = self.clusters_text().await?;
            if condition(&text) {
                return Ok(());
            }
            ensure!(Instant::now() < end, "{what}: not within {WITHIN:?}\n{text}\n{}", self.envoy.log_tail());
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// The sum of the counters whose names hold all of these.
    async fn sum(&self, parts: &[&str]) -> Result<u64> {
        let stats = self.envoy.stats().await?;
        let of_them = stats.iter().filter(|(name, _)| parts.iter().all(|part| name.contains(part)));
        Ok(of_them.map(|(_, value)| value).sum())
    }

    async fn replaced(&mut self, file: &str, resources: Vec<Value>, counter: &[&str]) -> Result<()> {
        let before = self.sum(counter).await?;
        self.version += 1;
        write(self.directory.path(), file, self.version, resources)?;
        let end = Instant::now() + WITHIN;
        while self.sum(counter).await? <= before {
            ensure!(Instant::now() < end, "{file}: not taken within {WITHIN:?}\n{}", self.envoy.log_tail());
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// The endpoints, for base and lanes; returns when all clusters have them.
    pub async fn set_hosts(&mut self, hosts: &[&Host]) -> Result<()> {
        self.version += 1;
        self.parts.hosts = hosts.iter().map(|host| host.address).collect();
        write(self.directory.path(), "eds.json", self.version, vec![self.parts.endpoints()])?;
        let (names, count) = (self.cluster_names(), hosts.len());
        let hosts = self.parts.hosts.clone();
        self.until("the endpoints", |clusters| {
            let seen = |name: &String| {
                clusters
                    .lines()
                    .filter(|line| line.starts_with(&format!("{name}::127.")) && line.contains("::rq_total::"))
                    .count()
            };
            let has =
                |name: &String| hosts.iter().all(|host| clusters.contains(&format!("{name}::{host}::rq_total::")));
            names.iter().all(|name| seen(name) == count && has(name))
        })
        .await
    }

    /// Edits all clusters, by CDS.
    pub async fn edit_clusters(&mut self, edit: impl FnMut(&mut Value)) -> Result<()> {
        self.parts.clusters.iter_mut().for_each(edit);
        self.set_clusters(self.parts.clusters.clone()).await
    }

    /// The clusters, by CDS.
    pub async fn set_clusters(&mut self, clusters: Vec<Value>) -> Result<()> {
        self.parts.clusters = clusters;
        let resources = self.parts.typed_clusters();
        self.replaced("cds.json", resources, &["cluster_manager.cds.update_success"]).await
    }

    /// The clusters, the base first.
    pub fn clusters(&self) -> Vec<Value> {
        self.parts.clusters.clone()
    }

    /// Edits the route configuration, by RDS.
    pub async fn edit_routes(&mut self, edit: impl FnOnce(&mut Value)) -> Result<()> {
        edit(&mut self.parts.routes);
        let resources = vec![typed(&self.parts.routes, "route.v3.RouteConfiguration")];
        self.replaced("rds.json", resources, &[".rds.", "update_success"]).await
    }

    /// As [`edit_routes`](Self::edit_routes), where Envoy is to refuse it.
    pub async fn refuse_routes(&mut self, edit: impl FnOnce(&mut Value)) -> Result<()> {
        edit(&mut self.parts.routes);
        let resources = vec![typed(&self.parts.routes, "route.v3.RouteConfiguration")];
        self.replaced("rds.json", resources, &[".rds.", "update_rejected"]).await
    }

    /// Edits the listener, by LDS.
    pub async fn edit_listener(&mut self, edit: impl FnOnce(&mut Value)) -> Result<()> {
        edit(&mut self.parts.listener);
        let resources = vec![typed(&self.parts.listener, "listener.v3.Listener")];
        self.replaced("lds.json", resources, &["listener_manager.lds.update_success"]).await
    }

    /// Edits the plugin's configuration, by ECDS; nothing with plain Envoy.
    pub async fn edit_plugin(&mut self, edit: impl FnOnce(&mut Value)) -> Result<()> {
        self.replaced_plugin(edit, "config_reload").await
    }

    /// As [`edit_plugin`](Self::edit_plugin), where Envoy is to refuse it.
    pub async fn refuse_plugin(&mut self, edit: impl FnOnce(&mut Value)) -> Result<()> {
        self.replaced_plugin(edit, "config_fail").await
    }

    async fn replaced_plugin(&mut self, edit: impl FnOnce(&mut Value), counter: &str) -> Result<()> {
        let Some(plugin) = &mut self.parts.plugin else { return Ok(()) };
        let place = &mut plugin["config"]["configuration"]["value"];
        let mut json: Value = serde_json::from_str(place.as_str().context("a StringValue")?)?;
        edit(&mut json);
        *place = json.to_string().into();
        let resources = vec![extension(plugin)];
        self.replaced("ecds.json", resources, &["extension_config_discovery", counter]).await
    }

    /// Puts the lane of 4 s in force, and waits until requests go there; traffic must be under way. Nothing with plain Envoy.
    pub async fn change_lane(&mut self) -> Result<()> {
        if self.subject == Subject::Plain {
            return Ok(());
        }
        self.edit_plugin(|json| json["destinations"]["payments"]["lb_idle_timeout"] = "5s".into()).await?;
        self.until("traffic on the lane of 4 s", |clusters| requests_of(clusters, "payments-4s") > 0).await
    }
}

/// A port that nobody else gets while the socket lives: a free one that is let go may be somebody else's before Envoy has it.
fn keep_port() -> Result<(u16, Socket)> {
    let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_reuse_port(true)?; // as Envoy's; this one does not listen
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    let port = socket.local_addr()?.as_socket().context("an address")?.port();
    Ok((port, socket))
}

/// The port makes the base id, which nobody else may have meanwhile.
fn restart_options(port: u16, epoch: u32) -> Options {
    let times = ["--drain-time-s", "1", "--parent-shutdown-time-s", "3"];
    Options {
        hot_restart: Some((port.into(), epoch)),
        arguments: times.map(str::to_owned).to_vec(),
        ..Options::default()
    }
}

/// Requests that a cluster has sent.
pub fn requests_of(clusters: &str, name: &str) -> u64 {
    let prefix = format!("{name}::127.");
    let lines = clusters.lines().filter(|line| line.starts_with(&prefix));
    lines.filter_map(|line| line.split("::rq_total::").nth(1)?.parse::<u64>().ok()).sum()
}

impl Parts {
    fn of(config: &Config) -> Result<Self> {
        let listener = config.get("static_resources/listeners/ingress").context("the listener")?.clone();
        let mut routes = config.get(&format!("{HTTP_MANAGER}/route_config")).context("routes")?.clone();
        routes["name"] = "routes".into();
        let clusters = config.get("static_resources/clusters").and_then(Value::as_array).context("clusters")?.clone();
        let mut parts = Self { listener, routes, clusters, plugin: None, hosts: Vec::new() };
        for cluster in &mut parts.clusters {
            let object = cluster.as_object_mut().context("a cluster")?;
            object.remove("load_assignment");
            cluster["type"] = "EDS".into();
            cluster["eds_cluster_config"] = json!({ "service_name": "payments", "eds_config": source("eds.json") });
        }
        let manager = parts
            .listener
            .pointer_mut("/filter_chains/0/filters")
            .and_then(Value::as_array_mut)
            .and_then(|filters| filters.iter_mut().find(|filter| filter["name"] == "http"))
            .context("the HTTP connection manager")?;
        let manager = &mut manager["typed_config"];
        manager.as_object_mut().context("typed")?.remove("route_config");
        manager["rds"] = json!({ "route_config_name": "routes", "config_source": source("rds.json") });
        for filter in manager["http_filters"].as_array_mut().context("filters")? {
            if filter["name"] == "idleguard" {
                parts.plugin = Some(filter["typed_config"].clone());
                *filter = json!({ "name": "idleguard", "config_discovery": {
                    "config_source": source("ecds.json"),
                    "type_urls": ["type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"],
                }});
            }
        }
        Ok(parts)
    }

    fn write_all(&mut self, directory: &Path, version: &mut u64) -> Result<()> {
        // Paths become whole only now that there is a directory.
        let whole = |value: &mut Value| -> Result<()> {
            let text = value.to_string().replace(DIRECTORY, directory.to_str().context("a path in UTF-8")?);
            *value = serde_json::from_str(&text)?;
            Ok(())
        };
        whole(&mut self.listener)?;
        self.clusters.iter_mut().try_for_each(whole)?;
        *version += 1;
        write(directory, "eds.json", *version, vec![self.endpoints()])?;
        write(directory, "cds.json", *version, self.typed_clusters())?;
        write(directory, "rds.json", *version, vec![typed(&self.routes, "route.v3.RouteConfiguration")])?;
        write(directory, "lds.json", *version, vec![typed(&self.listener, "listener.v3.Listener")])?;
        if let Some(plugin) = &self.plugin {
            write(directory, "ecds.json", *version, vec![extension(plugin)])?;
        }
        Ok(())
    }

    fn typed_clusters(&self) -> Vec<Value> {
        self.clusters.iter().map(|cluster| typed(cluster, "cluster.v3.Cluster")).collect()
    }

    fn endpoints(&self) -> Value {
        let endpoints = self.hosts.iter().map(|host| {
            json!({ "endpoint": { "address": { "socket_address": {
                "address": host.ip().to_string(), "port_value": host.port(),
            } } } })
        });
        let all: Vec<Value> = endpoints.collect();
        json!({
            "@type": format!("{TYPES}.endpoint.v3.ClusterLoadAssignment"),
            "cluster_name": "payments", "endpoints": [{ "lb_endpoints": all }],
        })
    }
}

/// Stands for the directory of the files until there is one.
const DIRECTORY: &str = "{directory}";

fn source(file: &str) -> Value {
    json!({
        "path_config_source": { "path": format!("{DIRECTORY}/{file}"), "watched_directory": { "path": DIRECTORY } },
        "resource_api_version": "V3",
    })
}

fn typed(value: &Value, name: &str) -> Value {
    let mut typed = json!({ "@type": format!("{TYPES}.{name}") });
    if let (Some(object), Some(fields)) = (typed.as_object_mut(), value.as_object()) {
        object.extend(fields.clone());
    }
    typed
}

fn extension(plugin: &Value) -> Value {
    json!({
        "@type": format!("{TYPES}.core.v3.TypedExtensionConfig"), "name": "idleguard", "typed_config": plugin,
    })
}

/// Envoy looks again when a file is moved to where it was.
fn write(directory: &Path, file: &str, version: u64, resources: Vec<Value>) -> Result<()> {
    let text = json!({ "version_info": version.to_string(), "resources": resources }).to_string();
    let next = directory.join(format!("{file}.next"));
    fs::write(&next, text)?;
    fs::rename(next, directory.join(file)).context("the file that Envoy watches")
}

fn bootstrap(config: &Config, directory: &Path) -> Result<Config> {
    let mut json: Value = serde_json::from_str(&config.to_string())?;
    let directory = directory.to_str().context("a path in UTF-8")?;
    let file = |name: &str| json!({ "path_config_source": { "path": format!("{directory}/{name}") }, "resource_api_version": "V3" });
    json["node"] = json!({ "id": "differential", "cluster": "differential" });
    json["dynamic_resources"] = json!({ "cds_config": file("cds.json"), "lds_config": file("lds.json") });
    let settle = config.get("static_resources/listeners/settle").context("the listener `settle`")?;
    json["static_resources"] = json!({ "listeners": [settle] });
    json["stats_flush_interval"] = "0.1s".into(); // with it a second Envoy asks the first one for its statistics
    Config::parse(&json.to_string())
}
