//! What happens on real networks: an LB that is killed, a machine that vanishes, loss and delay, a NAT that forgets, clocks
//! that jump. Each is done to a real Envoy with idleguard; what this machine does not allow is said.
//!
//! Networks are namespaces of their own, so that nothing outside is touched: this process is the client's side, and behind it
//! are a router and the LB.

use std::{
    env,
    ffi::OsStr,
    fs,
    io::Write,
    net::SocketAddr,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, ExitCode},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail};
use clap::Parser;
use idleguard_harness::{
    arguments,
    delay::DelayRelay,
    envoy::{Config, Envoy, Options},
    http,
    load::{Load, Pattern, Report},
    process::{self, Process},
    project,
    stub_lb::{self, Mode, StubLb},
};
use tempfile::TempDir;
use tokio::{net::TcpStream, time::sleep};

const ROUTER: &str = "10.98.1.1";
const LB: &str = "10.98.2.2";
const PORT: u16 = 8080;
/// Set for the copy of this program that has networks of its own.
const INSIDE: &str = "IDLEGUARD_FAULTS_INSIDE";

/// Do to idleguard what networks do.
#[derive(Parser)]
struct Arguments {
    /// Only what takes seconds: a killed LB, one jump of the clock, half-open connections
    #[arg(long)]
    short: bool,
    /// Be an LB on this address, until killed
    #[arg(long)]
    serve: Option<SocketAddr>,
    /// What it does to idle connections: milliseconds until it forgets them, answering by RST
    #[arg(long, default_value_t = 0)]
    forgets: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(listen) = arguments.serve {
        let mode = match arguments.forgets {
            0 => Mode::Stable,
            millis => Mode::SilentRst(Duration::from_millis(millis)),
        };
        let _lb = StubLb::with(stub_lb::Options { mode, listen, ..Default::default() }).expect("a free port");
        process::stop_signal().await;
        return ExitCode::SUCCESS;
    }
    let has_networks = env::var_os(INSIDE).is_some();
    if !has_networks {
        // Returns only if it can't be done.
        let mut alone = Command::new("unshare");
        let rootless: &[&str] = if is_root() { &[] } else { &["--user", "--map-root-user"] };
        alone.args(rootless).args(["--net", "--"]).arg(env::current_exe().expect("this program")).env(INSIDE, "1");
        alone.args(arguments.short.then_some("--short"));
        if Command::new("unshare").args(rootless).args(["--net", "true"]).status().is_ok_and(|status| status.success())
        {
            eprintln!("faults: {}", alone.exec());
        }
    }
    tokio::select! {
        failed = all(has_networks, arguments.short) => if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE },
        () = process::stop_signal() => ExitCode::FAILURE,
    }
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.starts_with(b"0\n"))
}

/// What a fault came to.
enum Outcome {
    Survived(String),
    /// What the machine lacks.
    NotHere(String),
}

async fn all(has_networks: bool, short: bool) -> u32 {
    let mut failed = 0;
    if has_networks && let Err(error) = run("ip", &["link", "set", "lo", "up"]) {
        eprintln!("faults: {error:#}");
    }
    let mut tell = |name: &str, result: Result<Outcome>| match result {
        Ok(Outcome::Survived(how)) => println!("survived  {name}: {how}"),
        Ok(Outcome::NotHere(why)) => println!("NOT DONE  {name}: {why}"),
        Err(error) => {
            failed += 1;
            println!("FAILED    {name}: {error:#}");
        }
    };
    tell("the LB is killed (SIGKILL) and comes back", killed(short).await);
    tell("the wall clock jumps back and forth by hours", clock(short).await);
    if !has_networks {
        let why = || Ok(Outcome::NotHere("no network namespaces (unshare --net)".to_owned()));
        tell("the LB's machine vanishes", why());
        if !short {
            tell("packet loss and delay", why());
            tell("a NAT that forgets", why());
        }
        return failed;
    }
    tell("the LB's machine vanishes: half-open connections", vanished().await);
    if short {
        return failed;
    }
    tell("packet loss and delay", loss().await);
    tell("a NAT that forgets idle connections", nat().await);
    failed
}

// === without networks ===

async fn killed(short: bool) -> Result<Outcome> {
    let seconds = if short { 2 } else { 6 };
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let directory = tempfile::tempdir()?;
    let lb = serve(None, address, 0, &directory).await?;
    let envoy = start(config(address, "2s", "10%", "1800ms")?).await?;
    let before = send(&envoy, seconds / 2).await;
    let (during, back) = tokio::join!(send(&envoy, 3), async {
        sleep(Duration::from_secs(1)).await;
        drop(lb); // SIGKILL
        sleep(Duration::from_secs(1)).await;
        serve(None, address, 0, &directory).await
    });
    let _lb = back?;
    let after = send(&envoy, seconds).await;
    none_failed("before", &before)?;
    none_failed("afterwards", &after)?;
    let idle = settled(&envoy).await?;
    Ok(Outcome::Survived(format!(
        "{} requests failed while it was away, 0 of {} before and 0 of {} afterwards; {idle}",
        during.failed(),
        before.requests,
        after.requests
    )))
}

/// The wall clock, and only that, is shifted under Envoy: idle ages come from the monotonic one.
async fn clock(short: bool) -> Result<Outcome> {
    let directory = tempfile::tempdir()?;
    let (source, library) = (directory.path().join("clock.c"), directory.path().join("clock.so"));
    let (wrapper, shift) = (directory.path().join("envoy"), directory.path().join("shift"));
    fs::write(&source, include_str!("clock.c"))?;
    let arguments =
        [OsStr::new("-shared"), OsStr::new("-fPIC"), OsStr::new("-o"), library.as_os_str(), source.as_os_str()];
    if !Command::new("cc").args(arguments).status().is_ok_and(|status| status.success()) {
        return Ok(Outcome::NotHere("no C compiler (cc)".to_owned()));
    }
    set_clock(&shift, 0)?;
    let script = format!(
        "#!/bin/sh\nLD_PRELOAD={} CLOCK_SHIFT={} exec {} \"$@\"\n",
        library.display(),
        shift.display(),
        project::envoy()?.display()
    );
    fs::write(&wrapper, script)?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    let lb = StubLb::start(Mode::Stable);
    let options = Options { binary: Some(wrapper), ..Options::default() };
    let envoy = Envoy::start(&config(lb.address(), "2s", "10%", "1800ms")?, options).await?;
    let jumps: &[i64] = if short { &[-3_600] } else { &[-3_600, 7_200, -86_400] };
    let (mut ages, mut seen) = (Vec::new(), Vec::new());
    for &jump in jumps {
        let opened = lb.counters().opened;
        for request in 0..20 {
            if request == 10 {
                set_clock(&shift, jump)?;
            }
            let response = http::get(envoy.ingress(), "/slow?ms=1").await?;
            if response.status != 200 {
                bail!("status {} around the jump by {jump} s", response.status);
            }
            sleep(Duration::from_millis(100)).await;
        }
        let away = wall_clock_shift(&envoy).await?;
        if (away - jump as f64).abs() > 10.0 {
            bail!("the clock was to jump by {jump} s, Envoy's is {away:.0} s from the true time");
        }
        seen.push(format!("{away:+.0} s"));
        if lb.counters().opened != opened + 1 {
            bail!("a connection in use was closed by the jump of {jump} s: {:?}", lb.records());
        }
        // And once more while it is idle.
        sleep(Duration::from_millis(500)).await;
        set_clock(&shift, 0)?;
        if !lb.wait_for(Duration::from_secs(6), |counters| counters.open == 0).await {
            bail!("an idle connection was never closed after the jump of {jump} s");
        }
        let age = lb.records().last().and_then(|record| record.close?.idle_age).context("an idle age")?;
        if age < Duration::from_millis(1_790) || age > Duration::from_millis(3_000) {
            bail!("closed at an idle age of {age:?} after the jump of {jump} s, the limit is 1.8 s");
        }
        ages.push(format!("{:.2} s", age.as_secs_f64()));
    }
    let longest = longest_reuse(&envoy).await?;
    if longest > 2_000.0 {
        bail!("an idle age at reuse of {longest} ms was seen where none was above 1.8 s");
    }
    Ok(Outcome::Survived(format!(
        "connections in use stay, idle ones are closed at {} (limit 1.8 s); Envoy's own clock was at {} from the true time",
        ages.join(", "),
        seen.join(", ")
    )))
}

/// The longest idle age at reuse that idleguard has seen, in milliseconds.
async fn longest_reuse(envoy: &Envoy) -> Result<f64> {
    let name = "wasmcustom.idleguard.destination.payments.reuse_idle_age_ms";
    let end = Instant::now() + Duration::from_secs(15);
    loop {
        // P0(nan,1) P25(nan,1.05) ... P100(nan,110): since the last flush, and since the start.
        let text = envoy.histogram(name).await?.unwrap_or_default();
        let longest = text.split_once("P100(").and_then(|(_, rest)| rest.split_once(',')?.1.split_once(')'));
        match longest.and_then(|(number, _)| number.parse::<f64>().ok()).filter(|number| number.is_finite()) {
            Some(longest) => return Ok(longest),
            None if Instant::now() > end => bail!("no histogram {name}: {text}"),
            None => sleep(Duration::from_millis(250)).await, // until Envoy flushes it
        }
    }
}

/// How many seconds Envoy's wall clock is from the true time, by the date of its admin interface.
async fn wall_clock_shift(envoy: &Envoy) -> Result<f64> {
    let response = http::get(envoy.admin(), "/ready").await?;
    let date = httpdate::parse_http_date(response.header("date").context("a date")?)?;
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map(|since| since.as_secs_f64());
    Ok(seconds(date)? - seconds(SystemTime::now())?)
}

/// Shifts the wall clock of an Envoy that was started with `clock.c`, by these seconds from the true time.
fn set_clock(file: &Path, seconds: i64) -> Result<()> {
    // Written in place: Envoy has this very file in its memory.
    let mut file = fs::File::options().create(true).truncate(false).write(true).open(file)?;
    file.write_all(&seconds.to_ne_bytes())?;
    Ok(())
}

// === with networks ===

/// Two namespaces behind this one: a router, and the LB.
struct Network {
    router: Process,
    lb: Process,
    _directory: TempDir,
}

impl Network {
    fn new() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let holder = |name: &str| {
            let mut command = Command::new("unshare");
            command.args(["--net", "--", "sleep", "3600"]);
            Process::start(command, &directory.path().join(name))
        };
        let network = Self { router: holder("router")?, lb: holder("lb")?, _directory: directory };
        std::thread::sleep(Duration::from_millis(300)); // until they are in their namespaces
        let (router, lb) = (network.router.pid().to_string(), network.lb.pid().to_string());
        run("ip", &["link", "add", "near", "type", "veth", "peer", "name", "near", "netns", &router])?;
        run("ip", &["addr", "add", "10.98.1.2/24", "dev", "near"])?;
        run("ip", &["link", "set", "near", "up"])?;
        run("ip", &["route", "add", "10.98.2.0/24", "via", ROUTER])?;
        network.router(&format!(
            "ip link set lo up; ip addr add {ROUTER}/24 dev near; ip link set near up; echo 1 >/proc/sys/net/ipv4/ip_forward; \
             ip link add far type veth peer name far netns {lb}; ip addr add 10.98.2.1/24 dev far; ip link set far up"
        ))?;
        let setup = format!(
            "ip link set lo up; ip addr add {LB}/24 dev far; ip link set far up; ip route add default via 10.98.2.1"
        );
        run("nsenter", &["-t", &lb, "-n", "sh", "-ec", &setup])?;
        Ok(network)
    }

    /// Runs a script on the router.
    fn router(&self, script: &str) -> Result<String> {
        run("nsenter", &["-t", &self.router.pid().to_string(), "-n", "sh", "-ec", script])
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let _ = run("ip", &["link", "del", "near"]); // it goes with the router's namespace otherwise
    }
}

fn far_end() -> SocketAddr {
    SocketAddr::new(LB.parse().expect("an address"), PORT)
}

async fn vanished() -> Result<Outcome> {
    let Some(_) = project::program("nft") else {
        return Ok(Outcome::NotHere("no nft (apt-get install nftables)".to_owned()));
    };
    let mut figures = Vec::new();
    for guarded in [false, true] {
        let network = Network::new()?;
        let directory = tempfile::tempdir()?;
        let lb = serve(Some(&network), far_end(), 0, &directory).await?;
        let mut config = config(far_end(), "2s", "10%", "1800ms")?;
        if !guarded {
            config = config.without_idleguard();
        }
        let envoy = start(config).await?;
        none_failed("before", &burst(&envoy).await)?;
        // Nothing passes any more, so nobody hears that the LB has died; when packets pass again, it knows nothing.
        network.router(
            "nft add table ip cut; nft add chain ip cut passing '{ type filter hook forward priority 0; policy drop; }'",
        )?;
        drop(lb);
        sleep(Duration::from_secs(4)).await;
        network.router("nft delete table ip cut")?;
        let _lb = serve(Some(&network), far_end(), 0, &directory).await?;
        let after = burst(&envoy).await;
        if guarded {
            none_failed("after an outage of 4 s", &after)?;
        }
        figures.push(after.failed());
    }
    Ok(Outcome::Survived(format!(
        "after an outage of 4 s (limit 1.8 s) {} of 30 requests failed; through plain Envoy {} of 30",
        figures[1], figures[0]
    )))
}

async fn loss() -> Result<Outcome> {
    let Some(_) = project::program("nft") else {
        return Ok(Outcome::NotHere("no nft (apt-get install nftables)".to_owned()));
    };
    let network = Network::new()?;
    let directory = tempfile::tempdir()?;
    let _lb = serve(Some(&network), far_end(), 4_000, &directory).await?;
    // 5 % of the packets, each way.
    network.router(
        "nft add table ip lossy; nft add chain ip lossy passing '{ type filter hook forward priority 0; policy accept; }'; \
         nft add rule ip lossy passing numgen random mod 100 '<' 5 counter drop",
    )?;
    let netem = "tc qdisc add dev near root netem delay 30ms 10ms; tc qdisc add dev far root netem delay 30ms 10ms";
    let has_netem = network.router(netem).is_ok();
    // Without netem, a relay in front of the network delays every byte and every close instead.
    let relay = match has_netem {
        true => None,
        false => Some(DelayRelay::start("127.0.0.1:0".parse()?, far_end(), Duration::from_millis(30))?),
    };
    let address = relay.as_ref().map_or(far_end(), DelayRelay::address);
    // A lost response is sent again after 0.2 to 0.8 s, and the LB's clock runs from the first time: the margin covers that.
    let envoy = start(config(address, "4s", "1500ms", "2500ms")?).await?;
    let report = send(&envoy, 30).await;
    none_failed("with loss and delay", &report)?;
    let dropped = network.router("nft list table ip lossy")?;
    let dropped =
        dropped.split("counter packets ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or("?").to_owned();
    let how = if has_netem { "by netem" } else { "by a relay: this kernel has no netem" };
    Ok(Outcome::Survived(format!(
        "5 % loss ({dropped} packets) and 30 ms each way ({how}): 0 of {} requests failed, p50 {:.0} ms, p99 {:.0} ms",
        report.requests,
        report.latency(0.5).as_secs_f64() * 1e3,
        report.latency(0.99).as_secs_f64() * 1e3
    )))
}

async fn nat() -> Result<Outcome> {
    let Some(_) = project::program("nft") else {
        return Ok(Outcome::NotHere("no nft (apt-get install nftables)".to_owned()));
    };
    let network = Network::new()?;
    let directory = tempfile::tempdir()?;
    let _lb = serve(Some(&network), far_end(), 0, &directory).await?;
    // What the NAT has forgotten is dropped without a word, as at a cloud's NAT gateway.
    let forgets = network.router(
        "nft add table ip forgetful; nft add chain ip forgetful out '{ type nat hook postrouting priority 100; }'; \
         nft add rule ip forgetful out oifname far masquerade; \
         nft add chain ip forgetful pass '{ type filter hook forward priority 0; policy accept; }'; \
         nft add rule ip forgetful pass ct state invalid counter drop; \
         echo 0 >/proc/sys/net/netfilter/nf_conntrack_tcp_loose; \
         echo 3 >/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established",
    );
    if let Err(error) = forgets {
        return Ok(Outcome::NotHere(format!("no connection tracking: {error:#}")));
    }
    let mut figures = Vec::new();
    for guarded in [false, true] {
        // The NAT's clock has a resolution of a second or so.
        let mut config = config(far_end(), "3s", "20%", "2400ms")?;
        if !guarded {
            config = config.without_idleguard();
        }
        let envoy = start(config).await?;
        let pattern = Pattern::Bursts { gap: (Duration::ZERO, Duration::from_secs(6)) };
        let load = Load::post(envoy.ingress(), pattern).clients(30).timeout(Duration::from_secs(20));
        let report = load.run(Duration::from_secs(if guarded { 30 } else { 15 })).await;
        if guarded {
            none_failed("behind the NAT", &report)?;
        }
        figures.push((report.failed(), report.requests));
    }
    if figures[0].0 == 0 {
        bail!("the NAT forgot nothing: plain Envoy did not fail either");
    }
    Ok(Outcome::Survived(format!(
        "conntrack forgets after 3 s: {} of {} requests failed; through plain Envoy {} of {}",
        figures[1].0, figures[1].1, figures[0].0, figures[0].1
    )))
}

// === tools ===

/// Runs a command, and fails with what it said if it fails.
fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// An LB in a process of its own, on this machine or at the far end of the network. It is killed when dropped.
async fn serve(network: Option<&Network>, address: SocketAddr, forgets: u64, directory: &TempDir) -> Result<Process> {
    let program = env::current_exe()?;
    let mut command = match network {
        Some(network) => {
            let mut command = Command::new("nsenter");
            command.args(["-t", &network.lb.pid().to_string(), "-n", "--"]).arg(program);
            command
        }
        None => Command::new(program),
    };
    command.args(["--serve", &address.to_string(), "--forgets", &forgets.to_string()]);
    let output = directory.path().join("lb.log");
    let mut server = Process::start(command, &output)?;
    let end = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(address).await.is_err() {
        if server.ended().is_some() || Instant::now() > end {
            bail!("the LB does not start: {}", read(&output));
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(server)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// An LB whose idle timeout is known, and one lane, which is the safe one.
fn config(lb: SocketAddr, lb_idle_timeout: &str, margin: &str, lane: &str) -> Result<Config> {
    let config = arguments::configuration(None, None)?.free_ports().upstream(lb).without_scout();
    // Where connects fail the base is tried for a moment; what it opens then should be gone when the test looks.
    Ok(config
        .lanes(&[lane])
        .envoy_idle_timeout("payments", "4s")
        .policy("idle_timeout", "4s")
        .lb_idle_timeout(lb_idle_timeout)
        .policy("margin", margin))
}

async fn start(config: Config) -> Result<Envoy> {
    Envoy::start(&config, Options { concurrency: 2, ..Options::default() }).await
}

/// 30 clients at random times, with silences of up to 5 s.
async fn send(envoy: &Envoy, seconds: u64) -> Report {
    let pattern = Pattern::Scattered { gap: (Duration::ZERO, Duration::from_secs(5)) };
    Load::post(envoy.ingress(), pattern)
        .clients(30)
        .timeout(Duration::from_secs(20))
        .run(Duration::from_secs(seconds))
        .await
}

/// 30 clients at once, once.
async fn burst(envoy: &Envoy) -> Report {
    let pattern = Pattern::Bursts { gap: (Duration::from_secs(9), Duration::from_secs(9)) };
    Load::post(envoy.ingress(), pattern)
        .clients(30)
        .timeout(Duration::from_secs(20))
        .run(Duration::from_millis(100))
        .await
}

fn none_failed(when: &str, report: &Report) -> Result<()> {
    if report.failed() > 0 || report.ok == 0 {
        bail!("{when}: {report}");
    }
    Ok(())
}

/// Every connection is gone when it should be.
async fn settled(envoy: &Envoy) -> Result<String> {
    let gauge = "cluster.payments.upstream_cx_active";
    let stats = envoy.wait_for(Duration::from_secs(8), "payments", |stats| stats.get(gauge) == Some(&0)).await?;
    let opened = stats.get("cluster.payments.upstream_cx_total").copied().unwrap_or(0);
    let lane = stats.get("wasmcustom.idleguard.destination.payments.lane_idle_timeout_ms").copied();
    if lane != Some(1_800) {
        bail!("afterwards the lane of 1.8 s is in force no more, but that of {lane:?} ms");
    }
    Ok(format!("0 of {opened} connections are left when all is quiet"))
}
