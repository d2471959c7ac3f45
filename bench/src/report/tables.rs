//! The tables, in Markdown.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    copies::{Copies, INTERVAL_S, Side},
    correctness::{Cell, LbMode, Shape, Tally},
    cost,
    cpu::{Cost, Traffic},
    latency::Latency,
    pools::{self, Pools},
    scale,
    statistics::{Spread, quantile},
    subjects::Subject,
    variants::Variant,
};

/// Failures per 10,000 requests as text: no more digits than they deserve.
pub(super) fn rate(tally: Tally) -> String {
    match tally {
        Tally { requests: 0, .. } => "–".to_owned(),
        Tally { failed: 0, .. } => "0".to_owned(),
        tally if tally.per_10_000() < 9.95 => format!("{:.1}", tally.per_10_000()),
        tally => format!("{:.0}", tally.per_10_000()),
    }
}

pub(super) fn sum<'a>(cells: impl Iterator<Item = &'a Cell>) -> Tally {
    cells.fold(Tally::default(), |sum, cell| sum.and(cell.total()))
}

/// The subjects that have been measured, in order.
pub(super) fn subjects(cells: &[Cell]) -> Vec<Subject> {
    Subject::ALL.into_iter().filter(|subject| cells.iter().any(|cell| cell.subject == *subject)).collect()
}

/// The modes that have been measured, in order.
pub(super) fn modes(cells: &[Cell]) -> Vec<LbMode> {
    LbMode::ALL.into_iter().filter(|mode| cells.iter().any(|cell| cell.mode == *mode)).collect()
}

fn row(cells: impl IntoIterator<Item = String>) -> String {
    format!("| {} |\n", cells.into_iter().collect::<Vec<_>>().join(" | "))
}

fn head(names: Vec<String>) -> String {
    let line = std::iter::once("---".to_owned()).chain((1..names.len()).map(|_| "---:".to_owned()));
    format!("{}{}", row(names.clone()), row(line))
}

/// One number a subject and mode: what the picture shows.
pub(super) fn summary(cells: &[Cell]) -> String {
    let names = std::iter::once(String::new()).chain(modes(cells).into_iter().map(|mode| mode.label().to_owned()));
    let mut text = head(names.collect());
    for subject in subjects(cells) {
        let of = |mode: LbMode| rate(sum(cells.iter().filter(|cell| cell.subject == subject && cell.mode == mode)));
        text.push_str(&row(std::iter::once(subject.label().to_owned()).chain(modes(cells).into_iter().map(of))));
    }
    text
}

fn by_cell(cells: &[Cell], value: impl Fn(&Cell) -> String) -> String {
    let columns: Vec<_> =
        modes(cells).into_iter().flat_map(|mode| Shape::ALL.into_iter().map(move |shape| (mode, shape))).collect();
    let title = |(mode, shape): &(LbMode, Shape)| format!("{}, {}", mode.label(), shape.label());
    let mut text = head(std::iter::once(String::new()).chain(columns.iter().map(title)).collect());
    for subject in subjects(cells) {
        let find = |&(mode, shape): &(LbMode, Shape)| {
            let cell = cells.iter().find(|cell| (cell.subject, cell.mode, cell.shape) == (subject, mode, shape));
            cell.map_or_else(|| "–".to_owned(), &value)
        };
        text.push_str(&row(std::iter::once(subject.label().to_owned()).chain(columns.iter().map(find))));
    }
    text
}

/// Failures by method.
pub(super) fn failures(cells: &[Cell]) -> String {
    let mut text = String::new();
    for method in ["POST", "GET"] {
        text.push_str(&format!("Failed {method} requests per 10,000:\n\n"));
        text.push_str(&by_cell(cells, |cell| rate(cell.methods.get(method).copied().unwrap_or_default())));
        text.push('\n');
    }
    let mut sizes: Vec<f64> = cells.iter().map(|cell| cell.total().requests as f64).collect();
    sizes.sort_by(f64::total_cmp);
    text.push_str(&format!(
        "Requests per cell, both methods: {:.0} to {:.0}, median {:.0}.\n\n",
        quantile(&sizes, 0.0),
        quantile(&sizes, 1.0),
        quantile(&sizes, 0.5)
    ));
    text
}

/// Failures by kind.
pub(super) fn kinds(cells: &[Cell]) -> String {
    let mut text = "How they fail, as the client sees it (requests, both loads and methods):\n\n".to_owned();
    let names = std::iter::once(String::new()).chain(modes(cells).into_iter().map(|mode| mode.label().to_owned()));
    text.push_str(&head(names.collect()));
    for subject in subjects(cells) {
        let of = |mode: LbMode| {
            let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
            for cell in cells.iter().filter(|cell| cell.subject == subject && cell.mode == mode) {
                for (kind, count) in &cell.kinds {
                    *kinds.entry(kind).or_default() += count;
                }
            }
            let words: Vec<_> = kinds.iter().map(|(kind, count)| format!("{count} × {kind}")).collect();
            if words.is_empty() { "none".to_owned() } else { words.join(", ") }
        };
        text.push_str(&row(std::iter::once(subject.label().to_owned()).chain(modes(cells).into_iter().map(of))));
    }
    let learnt: Vec<_> = cells
        .iter()
        .filter(|cell| cell.subject == Subject::Scout)
        .map(|cell| {
            let at =
                |millis: u64| if millis == 0 { "nothing".to_owned() } else { format!("{:.1} s", millis as f64 / 1e3) };
            format!(
                "{}, {}: {} (at the end {}; {} of {} requests failed meanwhile)",
                cell.mode.label(),
                cell.shape.label(),
                at(cell.learnt_ms),
                at(cell.learnt_at_end_ms),
                cell.warm_up.failed,
                cell.warm_up.requests
            )
        })
        .collect();
    if !learnt.is_empty() {
        text.push_str(&format!("\nWhat idleguard had learnt before the counted load: {}.\n", learnt.join("; ")));
    }
    text
}

/// Connections opened.
pub(super) fn connections(cells: &[Cell]) -> String {
    let mut text = by_cell(cells, |cell| format!("{:.0}", cell.opened_per_1_000()));
    let ratios: Vec<String> = connection_ratios(cells)
        .into_iter()
        .map(|(mode, shape, ratio)| format!("{}, {}: {ratio:.2}", mode.label(), shape.label()))
        .collect();
    text.push_str(&format!(
        "\nidleguard with a known timeout against Envoy's `idle_timeout`: {}.\n",
        ratios.join("; ")
    ));
    text
}

/// Connections per 1,000 requests of idleguard (known) against Envoy's `idle_timeout`.
pub(super) fn connection_ratios(cells: &[Cell]) -> Vec<(LbMode, Shape, f64)> {
    let mut ratios = Vec::new();
    for mode in modes(cells) {
        for shape in Shape::ALL {
            let of = |subject| {
                let cell = cells.iter().find(|cell| (cell.subject, cell.mode, cell.shape) == (subject, mode, shape));
                cell.map(Cell::opened_per_1_000)
            };
            if let (Some(known), Some(fixed)) = (of(Subject::Known), of(Subject::Static)) {
                ratios.push((mode, shape, known / fixed.max(f64::MIN_POSITIVE)));
            }
        }
    }
    ratios
}

fn ratio(spread: Spread) -> String {
    format!("{:.2} ({:.2} to {:.2})", spread.median, spread.low, spread.high)
}

/// CPU per request.
pub(super) fn cpu(costs: &[Cost]) -> String {
    let mut text = String::new();
    for traffic in Traffic::ALL {
        let mut own = costs.iter().filter(|cost| cost.traffic == traffic).peekable();
        let Some(first) = own.peek() else { continue };
        text.push_str(&format!("{}, {} rounds:\n\n", capital(traffic.label()), first.rounds));
        let names = ["", "CPU µs per request", "against plain Envoy"];
        text.push_str(&head(names.map(str::to_owned).into()));
        for cost in own {
            let micros = format!("{:.1}", cost.micros.median);
            text.push_str(&row([cost.variant.label().to_owned(), micros, ratio(cost.ratio)]));
        }
        text.push('\n');
    }
    text
}

/// Instructions per request.
pub(super) fn cost(costs: &[cost::Cost]) -> String {
    let mut text = String::new();
    for traffic in costs.iter().map(|cost| cost.traffic).collect::<BTreeSet<_>>() {
        text.push_str(&head(
            [&capital(traffic.label()), "thousand instructions", "of plain Envoy"].map(str::to_owned).into(),
        ));
        for cost in costs.iter().filter(|cost| cost.traffic == traffic) {
            let label = cost.variant.label().to_owned();
            text.push_str(&row([label, format!("{:.1}", cost.thousands), format!("{:.2}", cost.of_plain)]));
        }
        text.push('\n');
    }
    text
}

/// The same in words, for the middle of a sentence.
pub(super) fn cost_line(costs: &[cost::Cost]) -> String {
    let of = |variant: Variant| {
        let cost = costs.iter().find(|cost| cost.traffic == cost::Traffic::Small && cost.variant == variant);
        cost.map_or_else(|| "–".to_owned(), |cost| format!("{:.2}", cost.of_plain))
    };
    format!(
        "of plain Envoy's instructions for a small request, {} with watching alone, {} with a lane in force, {} with `client_ip` alone, {} \
         with everything",
        of(Variant::WatchAll),
        of(Variant::Lane),
        of(Variant::ClientIp),
        of(Variant::Everything)
    )
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// Latency and CPU, a table for each number of connections.
pub(super) fn latency(latencies: &[Latency]) -> String {
    let mut text = String::new();
    for connections in latencies.iter().map(|latency| latency.connections).collect::<BTreeSet<_>>() {
        let mut own = latencies.iter().filter(|latency| latency.connections == connections).peekable();
        let Some(first) = own.peek() else { continue };
        let (rate, rounds) = (first.rate, first.rounds);
        text.push_str(&format!("{connections} client connections, {rate} requests per second, {rounds} rounds:\n\n"));
        let names = ["", "CPU µs", "p50 µs", "p99 µs", "CPU against plain Envoy", "p50", "p99"];
        text.push_str(&head(names.map(str::to_owned).into()));
        for latency in own {
            let micros = |spread: Spread| format!("{:.0}", spread.median);
            text.push_str(&row([
                latency.proxy.label().to_owned(),
                micros(latency.cpu_us),
                micros(latency.p50_us),
                micros(latency.p99_us),
                ratio(latency.cpu_ratio),
                ratio(latency.p50_ratio),
                ratio(latency.p99_ratio),
            ]));
        }
        text.push('\n');
    }
    text
}

/// Memory and idle CPU.
pub(super) fn scale(loads: &[scale::Load]) -> String {
    let names =
        ["open connections", "", "memory per connection", "of that over plain Envoy", "CPU while idle, % of a core"];
    let mut text = head(names.map(str::to_owned).into());
    for load in loads {
        let plain = loads.iter().find(|other| other.variant == Variant::Plain && other.connections == load.connections);
        let over = plain.map_or(0.0, |plain| load.bytes_per_connection() - plain.bytes_per_connection());
        text.push_str(&row([
            load.connections.to_string(),
            load.variant.label().to_owned(),
            format!("{:.1} KiB", load.bytes_per_connection() / 1024.0),
            if load.variant == Variant::Plain { String::new() } else { format!("{:.1} KiB", over / 1024.0) },
            format!("{:.2}", load.idle_us_per_s / 1e4),
        ]));
    }
    text
}

/// What lanes cost Envoy: plain Envoy's figure, and that with lanes.
pub(super) fn copies(all: &[Copies]) -> String {
    let names = [
        "clusters × hosts",
        "memory, MB",
        "start-up, s",
        "start-up, of plain Envoy's",
        "health checks a second",
        "DNS look-ups a second",
    ];
    let mut text = head(names.map(str::to_owned).into());
    let number = |value: f64| if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") };
    for one in all {
        let both = |of: &dyn Fn(&Side) -> Option<String>| {
            let [plain, guarded] = [&one.plain, &one.guarded].map(|side| of(side).unwrap_or_else(|| "–".to_owned()));
            format!("{plain} → {guarded}")
        };
        text.push_str(&row([
            format!("{} × {}", one.clusters, one.hosts),
            both(&|side| Some(format!("{:.0}", side.memory_bytes / 1e6))),
            both(&|side| Some(format!("{:.2}", side.start_ms / 1e3))),
            ratio(one.start_ratio),
            both(&|side| side.checks_per_s.map(number)),
            if one.plain.lookups_per_s.is_some() {
                both(&|side| side.lookups_per_s.map(number))
            } else {
                String::new()
            },
        ]));
    }
    let unchecked: Vec<String> = all
        .iter()
        .filter(|one| one.guarded.checks_per_s.is_none())
        .map(|one| format!("{} × {} ({} sockets)", one.clusters, one.hosts, one.sockets))
        .collect();
    text.push_str(&format!("\nHealth checks: one a host in {INTERVAL_S} s. "));
    if let (Some(first), false) = (all.first(), unchecked.is_empty()) {
        text.push_str(&format!(
            "Those of {} can't be run here, where a process may have {} open files. ",
            unchecked.join(" and "),
            first.allowed
        ));
    }
    text.push_str("DNS: one name a cluster, at Envoy's refresh rate of 5 s, whatever the number of hosts.\n");
    text
}

/// Which lanes.
pub(super) fn pools(pools: &Pools) -> String {
    let seconds = |value: f64| if value < 1.0 { format!("{:.0} ms", value * 1e3) } else { format!("{value} s") };
    let kinds = || pools::Traffic::ALL.into_iter();
    let mut names = vec!["the far end's timeout".to_owned(), "lane in force".to_owned()];
    names.extend(kinds().map(|traffic| traffic.label().to_owned()));
    let mut text = head(names);
    for one in &pools.rows {
        let opened = |traffic| one.opened.get(&traffic).copied().unwrap_or_default();
        let cells = kinds().map(opened).map(|(ideal, lane)| format!("{ideal:.1} → {lane:.1}"));
        text.push_str(&row([seconds(one.timeout_s), seconds(one.lane_s)].into_iter().chain(cells)));
    }
    text.push_str("\nOther lanes, as the mean above the ideal of all these timeouts that they are safe for:\n\n");
    let mut names = vec!["lanes".to_owned(), "safe from".to_owned()];
    names.extend(kinds().map(|traffic| traffic.label().to_owned()));
    text.push_str(&head(names.into_iter().chain(["the worst".to_owned()]).collect()));
    for set in &pools.sets {
        let lanes: Vec<String> = set.lanes_s.iter().copied().map(seconds).collect();
        let above = |traffic| set.above_ideal.get(&traffic).copied().unwrap_or_default();
        let cells = kinds().map(above).chain([set.worst]).map(|value| format!("{value:.1}"));
        text.push_str(&row([lanes.join(", "), format!("{:.1} s", set.safe_from_s)].into_iter().chain(cells)));
    }
    text
}
