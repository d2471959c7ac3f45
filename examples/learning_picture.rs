//! Draws docs/learning.svg: one worker before an LB whose idle timeout is 10 s, and 6 s from the second minute on. The
//! destination is the real one; the pool, the LB and the clock are simulated, so the picture is the same every time.
//!
//! `cargo run --example learning_picture > docs/learning.svg`, or `make picture`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt::Write as _;
use std::time::Duration;

use idleguard::config::Section;
use idleguard::connection::{ConnectionKey, Generation};
use idleguard::destination::{Destination, End, Seen};
use idleguard::policy::Policy;
use idleguard::time::Timestamp;

const STEP: Duration = Duration::from_millis(20);
const LENGTH: Duration = Duration::from_secs(120);
const FALLS_AT: Duration = Duration::from_secs(60);
const EXCHANGE: Duration = Duration::from_millis(40);

fn lb_idle_timeout(now: Timestamp) -> Duration {
    Duration::from_secs(if now.since(Timestamp::default()) < FALLS_AT { 10 } else { 6 })
}

/// How an idle period ended.
#[derive(Clone, Copy, PartialEq)]
enum Ending {
    Reused,
    Reaped,
    ClosedByLb,
}

struct Connection {
    key: ConnectionKey,
    generation: Generation,
    busy_until: Option<Timestamp>,
    since: Timestamp,
}

struct Simulation {
    destination: Destination,
    policy: Policy,
    now: Timestamp,
    /// The one that became idle last stands last, as in Envoy's pool.
    open: Vec<Connection>,
    opened: u32,
    /// Idle periods: from, to, and how they ended.
    periods: Vec<(Timestamp, Timestamp, Ending)>,
    random: u64,
}

impl Simulation {
    fn new() -> Self {
        let policy = Policy::from_section(Section::try_new("", serde_json::json!({})).unwrap()).unwrap();
        let now = Timestamp::default();
        let mut destination = Destination::new(1, now);
        destination.add_policy(1, policy.clone(), true, now);
        destination.add_policy(2, policy.clone(), false, now);
        Self { destination, policy, now, open: vec![], opened: 0, periods: vec![], random: 7 }
    }

    /// Up to `longest`, all equally likely.
    fn up_to(&mut self, longest: Duration) -> Duration {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        longest.mul_f64(f64::from(u32::try_from(self.random >> 40).unwrap()) / f64::from(1 << 24))
    }

    fn see(&mut self, index: usize, started: u32) {
        let seen = Seen {
            started,
            completed: 1 - started,
            in_flight: started,
            answered: started == 0,
            stacked: true,
            reusable: true,
            hinted_timeout: None,
            hinted_exchanges: None,
        };
        self.destination.on_bytes(self.open[index].key, &seen, &self.policy, self.now);
    }

    fn request(&mut self) {
        let generation = self.destination.admit(self.now).generation;
        let usable = |one: &Connection| one.generation == generation && one.busy_until.is_none();
        let index = self.open.iter().rposition(usable).unwrap_or_else(|| {
            self.opened += 1;
            let key = self.destination.open(self.opened, b"lb", &self.policy, Some(generation), 0.0, self.now);
            self.open.push(Connection { key, generation, busy_until: None, since: self.now });
            self.open.len() - 1
        });
        if self.open[index].since < self.now {
            self.periods.push((self.open[index].since, self.now, Ending::Reused));
        }
        self.see(index, 1);
        self.open[index].busy_until = Some(self.now.after(EXCHANGE));
    }

    fn step(&mut self) {
        self.now = self.now.after(STEP);
        while let Some(index) = self.open.iter().position(|one| one.busy_until.is_some_and(|until| until <= self.now)) {
            self.see(index, 0);
            self.destination.on_ended(self.open[index].generation, End::Answered);
            let mut connection = self.open.remove(index);
            (connection.busy_until, connection.since) = (None, self.now);
            self.open.push(connection);
        }
        let timeout = lb_idle_timeout(self.now);
        while let Some(index) =
            self.open.iter().position(|one| one.busy_until.is_none() && self.now.since(one.since) >= timeout)
        {
            let connection = self.open.remove(index);
            self.destination.on_far_end_close(connection.key, self.now);
            self.destination.on_closed(connection.key);
            self.periods.push((connection.since, self.now, Ending::ClosedByLb));
        }
        for due in self.destination.tick(self.now) {
            let index = self.open.iter().position(|one| one.key == due.key).unwrap();
            let connection = self.open.remove(index);
            self.destination.on_closed(connection.key);
            self.periods.push((connection.since, self.now, Ending::Reaped));
        }
    }
}

fn x(at: Timestamp) -> f64 {
    60.0 + at.since(Timestamp::default()).as_secs_f64() * 7.0
}

fn y(age: Duration) -> f64 {
    330.0 - age.as_secs_f64() * 25.0
}

fn line(svg: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64), style: &str) {
    writeln!(svg, r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" {style}/>"#).unwrap();
}

fn text(svg: &mut String, x: f64, y: f64, style: &str, words: &str) {
    writeln!(svg, r#"<text x="{x:.1}" y="{y:.1}" {style}>{words}</text>"#).unwrap();
}

const GREY: &str = "#9aa5b1";
const RED: &str = "#c0392b";
const BLUE: &str = "#1f5fa8";
const GREEN: &str = "#2e8b57";

/// A value over time, as steps.
fn steps(svg: &mut String, values: &[(Timestamp, Duration)], style: &str) {
    let mut points = String::new();
    for (index, (at, value)) in values.iter().enumerate() {
        if index > 0 {
            write!(points, "{:.1},{:.1} ", x(*at), y(values[index - 1].1)).unwrap();
        }
        write!(points, "{:.1},{:.1} ", x(*at), y(*value)).unwrap();
    }
    writeln!(svg, r#"<polyline points="{}" fill="none" {style}/>"#, points.trim_end()).unwrap();
}

fn main() {
    let mut simulation = Simulation::new();
    let end = Timestamp::default().after(LENGTH);
    let (mut limits, mut learnt) = (Vec::new(), Vec::new());
    let mut clients: Vec<Timestamp> = (1..=4).map(|n| Timestamp::from_millis(n * 150)).collect();
    while simulation.now < end {
        for request_at in &mut clients {
            if *request_at <= simulation.now {
                simulation.request();
                let gap = simulation.up_to(Duration::from_secs(13));
                *request_at = simulation.now.after(gap);
            }
        }
        simulation.step();
        let now = simulation.now;
        let (limit, timeout) = (simulation.destination.idle_limit(), simulation.destination.learned());
        if limits.last().is_none_or(|(_, known)| *known != limit) || now >= end {
            limits.push((now, limit));
        }
        if let Some(timeout) =
            timeout.filter(|timeout| learnt.last().is_none_or(|(_, known)| known != timeout) || now >= end)
        {
            learnt.push((now, timeout));
        }
    }
    print!("{}", draw(&simulation, &limits, &learnt));
}

fn draw(simulation: &Simulation, limits: &[(Timestamp, Duration)], learnt: &[(Timestamp, Duration)]) -> String {
    let mut svg = String::from(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 920 400" font-family="sans-serif" font-size="13">
<title>Idle ages of one worker's connections while the LB's idle timeout is learnt, and learnt anew when it falls</title>
<rect width="920" height="400" fill="white"/>
"#,
    );
    let (start, end) = (Timestamp::default(), Timestamp::default().after(LENGTH));
    for seconds in (0..=10).step_by(2) {
        let at = y(Duration::from_secs(seconds));
        line(&mut svg, (x(start), at), (x(end), at), r##"stroke="#e6e9ed""##);
        text(&mut svg, 52.0, at + 4.0, r#"text-anchor="end""#, &format!("{seconds} s"));
    }
    for seconds in (0..=120).step_by(20) {
        let at = x(start.after(Duration::from_secs(seconds)));
        line(&mut svg, (at, 330.0), (at, 335.0), r#"stroke="black""#);
        text(&mut svg, at, 350.0, r#"text-anchor="middle""#, &format!("{seconds} s"));
    }
    let falls = start.after(FALLS_AT);
    let lb = [(start, lb_idle_timeout(start)), (falls, lb_idle_timeout(falls)), (end, lb_idle_timeout(end))];
    steps(&mut svg, &lb, r#"stroke="black" stroke-dasharray="5 4""#);
    for (from, to, ending) in &simulation.periods {
        let top = (x(*to), y(to.since(*from)));
        let is_lb = *ending == Ending::ClosedByLb;
        let (colour, width) = if is_lb { (RED, 1.6) } else { (GREY, 1.0) };
        line(&mut svg, (x(*from), y(Duration::ZERO)), top, &format!(r#"stroke="{colour}" stroke-width="{width}""#));
        let mark = match ending {
            Ending::Reused => continue,
            Ending::Reaped => format!(r#"r="2.5" fill="white" stroke="{GREY}""#),
            Ending::ClosedByLb => format!(r#"r="4" fill="{RED}""#),
        };
        writeln!(svg, r#"<circle cx="{:.1}" cy="{:.1}" {mark}/>"#, top.0, top.1).unwrap();
    }
    steps(&mut svg, learnt, &format!(r#"stroke="{GREEN}" stroke-width="2.5""#));
    steps(&mut svg, limits, &format!(r#"stroke="{BLUE}" stroke-width="2.5""#));
    let black = r#"font-size="13""#;
    text(&mut svg, x(start) + 4.0, 72.0, black, "the LB's idle timeout, which nobody tells: 10 s");
    text(&mut svg, x(falls) + 4.0, y(Duration::from_secs(6)) - 8.0, black, "lowered to 6 s");
    text(&mut svg, 60.0, 24.0, r#"font-weight="bold""#, "Idle age of one worker's connections, over time");
    let legend = [
        (GREY, "connection: used again, or closed by idleguard (o)"),
        (RED, "sentinel: watched until the LB closes it"),
        (GREEN, "learnt timeout"),
        (BLUE, "idle limit"),
    ];
    let mut at = 60.0;
    for ((colour, words), width) in legend.into_iter().zip([350.0, 285.0, 120.0, 100.0]) {
        line(&mut svg, (at, 380.0), (at + 20.0, 380.0), &format!(r#"stroke="{colour}" stroke-width="3""#));
        text(&mut svg, at + 26.0, 384.0, r#"font-size="12""#, words);
        at += width;
    }
    svg.push_str("</svg>\n");
    svg
}
