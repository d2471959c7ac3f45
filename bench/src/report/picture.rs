//! The pictures. Their background is opaque, so that they can be read on light pages and dark ones.

use std::path::Path;

use anyhow::Result;
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::{
    correctness::{Cell, LbMode, Shape},
    cpu::{Cost, Traffic},
    scale::Load,
    statistics::Spread,
    subjects::Subject,
    variants::Variant,
};

use super::tables;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const INK: RGBColor = RGBColor(34, 40, 49);
const GREY: RGBColor = RGBColor(110, 118, 129);
const LINE: RGBColor = RGBColor(216, 222, 228);
const OURS: RGBColor = RGBColor(26, 127, 55);
const OTHERS: RGBColor = RGBColor(101, 117, 140);
const BAR: RGBColor = RGBColor(190, 60, 40);

fn page(path: &Path, size: (u32, u32)) -> Result<Area<'_>> {
    let area = SVGBackend::new(path, size).into_drawing_area();
    area.fill(&WHITE)?;
    Ok(area)
}

#[derive(Clone, Copy)]
struct Pen {
    size: u32,
    bold: bool,
    color: RGBColor,
    across: HPos,
}

const TITLE: Pen = Pen { size: 19, bold: true, color: INK, across: HPos::Left };
const NOTE: Pen = Pen { size: 14, bold: false, color: GREY, across: HPos::Left };
const LABEL: Pen = Pen { size: 15, bold: false, color: INK, across: HPos::Right };
const TICK: Pen = Pen { size: 13, bold: false, color: GREY, across: HPos::Center };
const VALUE: Pen = Pen { size: 14, bold: false, color: INK, across: HPos::Left };

fn write(area: &Area<'_>, text: &str, at: (i32, i32), pen: Pen) -> Result<()> {
    let style = if pen.bold { FontStyle::Bold } else { FontStyle::Normal };
    let font = FontDesc::new(FontFamily::SansSerif, f64::from(pen.size), style);
    let style = TextStyle::from(font).color(&pen.color).pos(Pos::new(pen.across, VPos::Center));
    area.draw(&Text::new(text.to_owned(), at, style))?;
    Ok(())
}

fn is_ours(subject: Subject) -> bool {
    matches!(subject, Subject::Known | Subject::Learning | Subject::Scout)
}

// === failures

/// White for none, the redder the more: by the logarithm, since 1 and 100 in 10,000 both matter.
fn heat(per_10_000: f64) -> RGBColor {
    if per_10_000 <= 0.0 {
        return RGBColor(222, 243, 226);
    }
    let share = (per_10_000.log10() / 3.5).clamp(0.0, 1.0);
    let mix = |from: u8, to: u8| (f64::from(from) + (f64::from(to) - f64::from(from)) * share) as u8;
    RGBColor(mix(255, 190), mix(236, 35), mix(217, 30))
}

/// Failures per 10,000 requests: a row a subject, a column a mode.
pub(super) fn failures(path: &Path, cells: &[Cell]) -> Result<()> {
    let (subjects, modes) = (tables::subjects(cells), tables::modes(cells));
    let (left, top, width, height) = (235, 118, 124, 36);
    let right = left + width * modes.len() as i32;
    let bottom = top + height * subjects.len() as i32;
    let area = page(path, ((right + 25) as u32, (bottom + 45) as u32))?;
    write(&area, "Failed requests per 10,000", (20, 26), TITLE)?;
    write(&area, "steady load and bursts, half POST, half GET; green: none failed", (20, 50), NOTE)?;
    let middle = (left + right) / 2;
    let axis = Pen { across: HPos::Center, color: INK, ..NOTE };
    write(&area, "what the load balancer does with idle connections", (middle, 80), axis)?;
    write(&area, "proxy in front of it", (left - 12, 103), Pen { across: HPos::Right, color: INK, ..NOTE })?;
    for (column, &mode) in (0..).zip(&modes) {
        let center = left + width * column + width / 2;
        write(&area, mode.label(), (center, 103), Pen { bold: true, color: INK, size: 14, ..TICK })?;
    }
    for (line, &subject) in (0..).zip(&subjects) {
        let y = top + height * line;
        write(&area, subject.label(), (left - 12, y + height / 2), Pen { bold: is_ours(subject), ..LABEL })?;
        for (column, &mode) in (0..).zip(&modes) {
            let own = || cells.iter().filter(move |cell| cell.subject == subject && cell.mode == mode);
            if own().next().is_none() {
                continue;
            }
            let tally = tables::sum(own());
            let x = left + width * column;
            let fill = heat(tally.per_10_000());
            area.draw(&Rectangle::new([(x + 2, y + 2), (x + width - 2, y + height - 2)], fill.filled()))?;
            let color = if tally.per_10_000() > 300.0 { WHITE } else { INK };
            let pen = Pen { size: 16, bold: tally.failed > 0, color, across: HPos::Center };
            write(&area, &tables::rate(tally), (x + width / 2, y + height / 2), pen)?;
        }
    }
    let foot = "restart: connections are cut at any age; only requests that may be repeated can be saved";
    write(&area, foot, (20, bottom + 24), NOTE)?;
    area.present()?;
    Ok(())
}

// === horizontal bars

struct Entry {
    label: String,
    value: f64,
    spread: Option<Spread>,
    text: String,
    ours: bool,
}

struct Chart<'a> {
    title: &'a str,
    axis: &'a str,
    most: f64,
    step: f64,
    /// A vertical line, and what it means.
    line: Option<(f64, &'a str)>,
    entries: Vec<Entry>,
}

const ROW: i32 = 27;
const LEFT: i32 = 235;
const WIDTH: i32 = 460;

impl Chart<'_> {
    fn height(&self) -> i32 {
        ROW * self.entries.len() as i32 + 100
    }

    fn draw(&self, area: &Area<'_>, top: i32) -> Result<()> {
        let x = |value: f64| LEFT + (value.min(self.most) / self.most * f64::from(WIDTH)) as i32;
        write(area, self.title, (20, top + 16), Pen { size: 16, ..TITLE })?;
        let first = top + 36;
        let bottom = first + ROW * self.entries.len() as i32;
        let mut tick = 0.0;
        while tick <= self.most * 1.0001 {
            area.draw(&PathElement::new(vec![(x(tick), first), (x(tick), bottom + 4)], LINE.stroke_width(1)))?;
            let text = if self.step < 1.0 { format!("{tick:.1}") } else { format!("{tick:.0}") };
            write(area, &text, (x(tick), bottom + 15), TICK)?;
            tick += self.step;
        }
        write(area, self.axis, (LEFT + WIDTH / 2, bottom + 36), Pen { across: HPos::Center, color: INK, ..NOTE })?;
        for (line, entry) in (0..).zip(&self.entries) {
            let y = first + ROW * line;
            let color = if entry.ours { OURS } else { OTHERS };
            write(area, &entry.label, (LEFT - 10, y + ROW / 2), Pen { bold: entry.ours, ..LABEL })?;
            area.draw(&Rectangle::new([(LEFT, y + 5), (x(entry.value), y + ROW - 5)], color.filled()))?;
            if let Some(spread) = entry.spread {
                let middle = y + ROW / 2;
                let whisker = vec![(x(spread.low), middle), (x(spread.high), middle)];
                area.draw(&PathElement::new(whisker, INK.stroke_width(2)))?;
            }
            write(area, &entry.text, (LEFT + WIDTH + 16, y + ROW / 2), VALUE)?;
        }
        if let Some((value, meaning)) = self.line {
            let path = vec![(x(value), first - 4), (x(value), bottom)];
            area.draw(&PathElement::new(path, BAR.stroke_width(2)))?;
            let pen = Pen { color: BAR, across: HPos::Center, ..TICK };
            write(area, meaning, (x(value), first - 12), pen)?;
        }
        Ok(())
    }
}

fn charts(path: &Path, title: &str, note: &str, charts: &[Chart<'_>]) -> Result<()> {
    let height: i32 = charts.iter().map(Chart::height).sum();
    let area = page(path, ((LEFT + WIDTH + 160) as u32, (height + 75) as u32))?;
    write(&area, title, (20, 26), TITLE)?;
    write(&area, note, (20, 50), NOTE)?;
    let mut top = 72;
    for chart in charts {
        chart.draw(&area, top)?;
        top += chart.height();
    }
    area.present()?;
    Ok(())
}

/// A round number a little above, and the distance of ticks.
fn axis(most: f64) -> (f64, f64) {
    let most = most.max(1e-9);
    let magnitude = 10_f64.powf(most.log10().floor());
    let step = [0.2, 0.5, 1.0, 2.0].map(|part| part * magnitude).into_iter().find(|step| most / step <= 6.0);
    let step = step.unwrap_or(magnitude * 2.0);
    ((most / step).ceil() * step, step)
}

/// Connections opened, by load.
pub(super) fn connections(path: &Path, cells: &[Cell]) -> Result<()> {
    let of = |shape: Shape| {
        let entry = |subject: Subject| {
            // A restart opens as many connections for everybody.
            let own = |cell: &&Cell| cell.subject == subject && cell.shape == shape && cell.mode != LbMode::Restart;
            let values: Vec<f64> = cells.iter().filter(own).map(Cell::opened_per_1_000).collect();
            let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
            let least = values.iter().copied().fold(f64::INFINITY, f64::min);
            let most = values.iter().copied().fold(0.0, f64::max);
            let spread = (!values.is_empty()).then_some(Spread { low: least, median: mean, high: most });
            Entry {
                label: subject.label().to_owned(),
                value: mean,
                spread,
                text: format!("{mean:.0}"),
                ours: is_ours(subject),
            }
        };
        tables::subjects(cells).into_iter().map(entry).collect::<Vec<_>>()
    };
    let chart = |title: &'static str, entries: Vec<Entry>| Chart {
        title,
        axis: "connections opened to the load balancer per 1,000 requests",
        most: 1_000.0,
        step: 200.0,
        line: None,
        entries,
    };
    let both = [chart("Steady load", of(Shape::Steady)), chart("Bursts", of(Shape::Bursts))];
    let note = "mean of the load balancer's modes without restarts; the line is the range over these modes";
    charts(path, "What it costs in connections", note, &both)
}

/// CPU per request against plain Envoy, by traffic.
pub(super) fn cpu(path: &Path, costs: &[Cost]) -> Result<()> {
    let ours = |variant: Variant| {
        matches!(variant, Variant::ClientIp | Variant::WatchAll | Variant::Lane | Variant::Everything)
    };
    let all: Vec<_> = Traffic::ALL
        .into_iter()
        .map(|traffic| {
            let entries: Vec<_> = costs
                .iter()
                .filter(|cost| cost.traffic == traffic)
                .map(|cost| Entry {
                    label: cost.variant.label().to_owned(),
                    value: cost.ratio.median,
                    spread: Some(cost.ratio),
                    text: format!("{:.2}  ({:.1} µs)", cost.ratio.median, cost.micros.median),
                    ours: ours(cost.variant),
                })
                .collect();
            let most =
                entries.iter().map(|entry| entry.spread.map_or(entry.value, |spread| spread.high)).fold(1.25, f64::max);
            let (most, step) = axis(most * 1.1);
            Chart {
                title: traffic.label(),
                axis: "Envoy's CPU time per request, plain Envoy = 1",
                most,
                step,
                line: None,
                entries,
            }
        })
        .collect();
    charts(path, "What it costs in CPU", "medians of paired rounds; the line is the middle half of the rounds", &all)
}

/// Memory per connection and CPU while idle, by the number of open connections.
pub(super) fn scale(path: &Path, loads: &[Load]) -> Result<()> {
    let chart = |title: &'static str, axis_text: &'static str, value: fn(&Load) -> f64, digits: usize| {
        let entries: Vec<_> = loads
            .iter()
            .map(|load| Entry {
                label: format!("{} × {}", load.connections, short(load.variant)),
                value: value(load),
                spread: None,
                text: format!("{:.digits$}", value(load)),
                ours: load.variant == Variant::Lane,
            })
            .collect();
        let (most, step) = axis(entries.iter().map(|entry| entry.value).fold(0.0, f64::max) * 1.1);
        Chart { title, axis: axis_text, most, step, line: None, entries }
    };
    let both = [
        chart("Memory", "KiB of Envoy's memory per connection", |load| load.bytes_per_connection() / 1024.0, 1),
        chart("Idle", "% of a core while nothing happens", |load| load.idle_us_per_s / 1e4, 2),
    ];
    charts(path, "Many open connections to the load balancer", "one Envoy with one worker", &both)
}

/// The variants of this section, in few words: they stand behind a number.
fn short(variant: Variant) -> &'static str {
    match variant {
        Variant::Lane => "idleguard",
        other => other.label(),
    }
}
