//! The project's own bars, and whether they are met: said in the same table, whichever way it is.

use crate::{
    correctness::{Cell, LbMode, Shape, Tally},
    cost::{Cost, Traffic},
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
    if let Some(section) = &all.cost {
        verdicts.extend(cost(&section.results));
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
    for subject in [Subject::Known, Subject::Learning, Subject::Scout] {
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

fn cost(costs: &[Cost]) -> Vec<Verdict> {
    let bars =
        [(Variant::WatchAll, 1.15), (Variant::Lane, 1.20), (Variant::ClientIp, 1.25), (Variant::Everything, 1.38)];
    let of = |variant: Variant| costs.iter().find(|cost| cost.traffic == Traffic::Small && cost.variant == variant);
    let verdict = |(variant, bar): (Variant, f64)| {
        let cost = of(variant)?;
        Some(Verdict {
            what: format!("instructions, {}, {}", cost.variant.label(), cost.traffic.label()),
            bar: format!("{bar:.2} of plain Envoy"),
            measured: format!("{:.3}", cost.of_plain),
            met: cost.of_plain <= bar,
        })
    };
    bars.into_iter().filter_map(verdict).collect()
}
