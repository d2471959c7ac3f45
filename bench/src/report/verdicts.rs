//! The project's own bars, and whether they are met: said in the same table, whichever way it is.

use crate::{
    correctness::{Cell, LbMode, Shape, Tally},
    cpu::{Cost, Traffic},
    race::Run,
    subjects::Subject,
    variants::Variant,
};

use super::{Everything, tables};

struct Verdict {
    what: String,
    bar: String,
    measured: String,
    met: bool,
}

/// All verdicts that the results allow.
pub(super) fn table(all: &Everything) -> String {
    let mut verdicts = Vec::new();
    if let Some(section) = &all.correctness {
        verdicts.extend(failures(&section.results));
        verdicts.extend(connections(&section.results));
    }
    if let Some(section) = &all.race {
        verdicts.extend(race(&section.results));
    }
    if let Some(section) = &all.cpu {
        verdicts.extend(cpu(&section.results));
    }
    let mut text = String::new();
    let quick = super::settings_of(all).into_iter().filter(|(_, setting, _)| setting.quick);
    let quick: Vec<_> = quick.map(|(name, ..)| name).collect();
    if !quick.is_empty() {
        text.push_str(&format!("Quick looks, no results: {}.\n\n", quick.join("; ")));
    }
    text.push_str("| what | bar | measured | |\n| --- | --- | --- | --- |\n");
    for Verdict { what, bar, measured, met } in verdicts {
        text.push_str(&format!("| {what} | {bar} | {measured} | {} |\n", if met { "met" } else { "**missed**" }));
    }
    text
}

fn failures(cells: &[Cell]) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for subject in [Subject::Known, Subject::Learning] {
        let own = || cells.iter().filter(move |cell| cell.subject == subject);
        if own().next().is_none() {
            continue;
        }
        let idle = tables::sum(own().filter(|cell| cell.mode != LbMode::Restart));
        verdicts.push(Verdict {
            what: format!("{}: failures in every mode but restart", subject.label()),
            bar: "0".to_owned(),
            measured: format!("{} of {}", idle.failed, idle.requests),
            met: idle.failed == 0 && idle.requests > 0,
        });
        let restart = tables::sum(own().filter(|cell| cell.mode == LbMode::Restart));
        if restart.requests == 0 {
            continue;
        }
        let plain =
            tables::sum(cells.iter().filter(|cell| cell.subject == Subject::Plain && cell.mode == LbMode::Restart));
        verdicts.push(Verdict {
            what: format!("{}: failures per 10,000 at a restart", subject.label()),
            bar: format!("plain Envoy: {}", tables::rate(plain)),
            measured: tables::rate(restart),
            met: restart.per_10_000() <= plain.per_10_000(),
        });
        let get = own()
            .filter(|cell| cell.mode == LbMode::Restart)
            .filter_map(|cell| cell.methods.get("GET"))
            .fold(Tally::default(), |sum, &part| sum.and(part));
        verdicts.push(Verdict {
            what: format!("{}: failed GET at a restart", subject.label()),
            bar: "0".to_owned(),
            measured: format!("{} of {}", get.failed, get.requests),
            met: get.failed == 0,
        });
    }
    verdicts
}

/// A steady load opens so few connections in a cell that one more or less is a tenth of them: it is judged over all modes.
fn connections(cells: &[Cell]) -> Vec<Verdict> {
    let per_1_000 = |subject: Subject, pick: &dyn Fn(&Cell) -> bool| {
        let own = || cells.iter().filter(|cell| cell.subject == subject && pick(cell));
        let opened: u64 = own().map(|cell| cell.opened).sum();
        (tables::sum(own()).requests > 0).then(|| opened as f64 * 1e3 / tables::sum(own()).requests as f64)
    };
    let judge = |name: &str, pick: &dyn Fn(&Cell) -> bool| {
        let (own, fixed) = (per_1_000(Subject::Known, pick)?, per_1_000(Subject::Static, pick)?);
        Some(Verdict {
            what: format!("connections of idleguard (known) against Envoy's idle_timeout, {name}"),
            bar: "1.20".to_owned(),
            measured: format!("{:.2} ({own:.0} to {fixed:.0} per 1,000 requests)", own / fixed),
            met: own <= 1.2 * fixed,
        })
    };
    let by_mode = tables::modes(cells)
        .into_iter()
        .filter_map(|mode| judge(&format!("{}, both loads", mode.label()), &|cell| cell.mode == mode));
    let steady = judge("steady load, all modes but restart", &|cell| {
        cell.shape == Shape::Steady && cell.mode != LbMode::Restart
    });
    by_mode.chain(steady).collect()
}

fn race(runs: &[Run]) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for shape in Shape::ALL {
        let ratio = tables::race_ratio(runs, shape);
        verdicts.push(Verdict {
            what: format!("connections opened in the race, {}", shape.label()),
            bar: "1.50".to_owned(),
            measured: ratio.to_string(),
            met: ratio.overall <= 1.5,
        });
    }
    let failed: u64 = runs.iter().filter(|run| run.idleguard).map(|run| run.failed).sum();
    verdicts.push(Verdict {
        what: "failures in the race".to_owned(),
        bar: "0".to_owned(),
        measured: failed.to_string(),
        met: failed == 0,
    });
    verdicts
}

fn cpu(costs: &[Cost]) -> Vec<Verdict> {
    let of = |traffic, variant| costs.iter().find(|cost| cost.traffic == traffic && cost.variant == variant);
    let mut verdicts = Vec::new();
    for traffic in Traffic::ALL {
        let (Some(client_ip), Some(lua), Some(everything)) =
            (of(traffic, Variant::ClientIp), of(traffic, Variant::Lua), of(traffic, Variant::Everything))
        else {
            continue;
        };
        verdicts.push(Verdict {
            what: format!("CPU, client_ip alone, {}", traffic.label()),
            bar: format!("below the Lua filter: {:.2}", lua.ratio.median),
            measured: format!("{:.2}", client_ip.ratio.median),
            met: client_ip.ratio.median < lua.ratio.median,
        });
        verdicts.push(Verdict {
            what: format!("CPU, everything on, {}", traffic.label()),
            bar: "1.25 of plain Envoy".to_owned(),
            measured: format!("{:.2}", everything.ratio.median),
            met: everything.ratio.median <= 1.25,
        });
        if let Some(noop) = everything.to_noop {
            verdicts.push(Verdict {
                what: format!("CPU, everything on, {}", traffic.label()),
                bar: "1.08 of a no-op module in the same places".to_owned(),
                measured: format!("{:.2}", noop.median),
                met: noop.median <= 1.08,
            });
        }
    }
    verdicts
}
