//! Draws the panels of `deploy/grafana/idleguard.json` as an SVG file, with the answers of a real Prometheus that scraped a
//! real Envoy: for the documentation, and to look at a change of the dashboard without a Grafana.

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use clap::Parser;
use idleguard_harness::{
    arguments,
    demo::{Demo, Timeouts},
    project,
    prometheus::{Panel, Prometheus, panels},
};
use serde_json::Value;
use tokio::time::sleep;

/// Draw the dashboard's panels.
#[derive(Parser)]
struct Arguments {
    /// How long to send before
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Where to write to
    #[arg(long, default_value = "docs/dashboard.svg")]
    output: PathBuf,
}

/// Points of a column and a row of Grafana's grid.
const GRID: (f64, f64) = (50.0, 30.0);
const COLOURS: usize = 6;
const STYLE: &str = "
  :root { --page: #f4f3ef; --card: #fcfcfb; --ink: #0b0b0b; --soft: #52514e; --grid: #e1e0d9; --edge: #d4d3cb; --heat: #2a78d6;
          --c0: #2a78d6; --c1: #c92a2a; --c2: #00780f; --c3: #6a4fc4; --c4: #b35c00; --c5: #107c89; }
  @media (prefers-color-scheme: dark) {
    :root { --page: #111110; --card: #1a1a19; --ink: #fff; --soft: #c3c2b7; --grid: #2f2f2c; --edge: #3d3d39; --heat: #4a93ea;
            --c0: #4a93ea; --c1: #f07070; --c2: #35c045; --c3: #a99cf2; --c4: #e8a04a; --c5: #4fc3d0; }
  }
  text { font: 12px system-ui, 'DejaVu Sans', sans-serif; fill: var(--soft); }
  .title { font-weight: 600; font-size: 13.5px; fill: var(--ink); }
  .number { font-weight: 600; font-size: 38px; fill: var(--ink); }
  .card { fill: var(--card); stroke: var(--edge); }
  .axis { stroke: var(--grid); }
  .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
";

/// A line of a panel: its name in the legend, and its points, in seconds before now.
type Series = (String, Vec<(f64, f64)>);

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let config = arguments::configuration(None, None)?.free_ports();
    let rules = project::root().join("deploy/prometheus/rules.yaml");
    let json = std::fs::read(project::root().join("deploy/grafana/idleguard.json"))?;
    let dashboard: Value = serde_json::from_slice(&json).context("the dashboard")?;

    let demo =
        Demo::start(&config, Timeouts { first: Duration::from_secs(6), then: Duration::from_secs(2) }, 60).await?;
    let prometheus = Prometheus::start(demo.guarded_admin(), &rules).await?;
    let duration = Duration::from_secs(arguments.seconds);
    demo.round(duration).await;
    sleep(Duration::from_secs(6)).await; // Envoy merges its histograms, and Prometheus scrapes them

    let mut svg = String::new();
    let panels = panels(&dashboard, "10s", &format!("{}s", duration.as_secs()))?;
    let height = panels.iter().map(|panel| panel.place[1] + panel.place[3]).max().unwrap_or(0) as f64 * GRID.1;
    writeln!(svg, r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1200 {height}" role="img">"#)?;
    writeln!(svg, r#"<style>{STYLE}</style><rect width="1200" height="{height}" fill="var(--page)"/>"#)?;
    for panel in &panels {
        draw(&mut svg, panel, &prometheus, duration).await.with_context(|| panel.title.clone())?;
    }
    svg.push_str("</svg>\n");
    std::fs::write(&arguments.output, svg)?;
    println!("{}", arguments.output.display());
    Ok(())
}

async fn draw(svg: &mut String, panel: &Panel, prometheus: &Prometheus, duration: Duration) -> Result<()> {
    let [x, y, width, height] = panel.place.map(|cells| cells as f64);
    let (x, y) = (x * GRID.0 + 4.0, y * GRID.1 + 4.0);
    let (width, height) = (width * GRID.0 - 8.0, height * GRID.1 - 8.0);
    writeln!(
        svg,
        r#"<g transform="translate({x} {y})"><rect class="card" width="{width}" height="{height}" rx="6"/>"#
    )?;
    writeln!(svg, r#"<text class="title" x="12" y="22">{}</text>"#, escape(&panel.title))?;
    let mut all: Vec<Series> = Vec::new();
    for (query, legend) in &panel.queries {
        if panel.kind == "stat" {
            let found = prometheus.query(query).await?;
            let value = found.first().map(|series| number(&series["value"][1]));
            let text = value.map_or("no data".to_owned(), |value| with_unit(value.round(), &panel.unit));
            writeln!(svg, r#"<text class="number" x="12" y="74">{text}</text>"#)?;
            continue;
        }
        for series in prometheus.range(query, duration, duration / 120).await? {
            all.push(points(&series, legend));
        }
    }
    if panel.kind == "heatmap" {
        heatmap(svg, &all, width, height, duration)?;
    } else if panel.kind != "stat" {
        lines(svg, &all, &panel.unit, width, height, duration)?;
    }
    svg.push_str("</g>\n");
    Ok(())
}

fn points(series: &Value, legend: &str) -> Series {
    let mut name = legend.to_owned();
    for (label, value) in series["metric"].as_object().into_iter().flatten() {
        name = name.replace(&format!("{{{{{label}}}}}"), value.as_str().unwrap_or_default());
    }
    let values = series["values"].as_array().cloned().unwrap_or_default();
    (name, values.iter().map(|point| (point[0].as_f64().unwrap_or(0.0), number(&point[1]))).collect())
}

fn number(value: &Value) -> f64 {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN)
}

fn with_unit(value: f64, unit: &str) -> String {
    match unit {
        "ms" if value >= 1_000.0 => format!("{} s", rounded(value / 1_000.0)),
        "ms" => format!("{} ms", rounded(value)),
        _ => rounded(value),
    }
}

fn rounded(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The frame of a plot: left, right, top and bottom, and when it begins and ends.
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    begin: f64,
    span: f64,
}

impl Frame {
    fn new(all: &[Series], width: f64, height: f64, left: f64, legend: f64, duration: Duration) -> Self {
        let end = all.iter().filter_map(|(_, points)| points.last()).map(|point| point.0).fold(0.0, f64::max);
        let span = duration.as_secs_f64();
        Self { left, right: width - 14.0, top: 36.0, bottom: height - 26.0 - legend, begin: end - span, span }
    }

    fn x(&self, time: f64) -> f64 {
        self.left + (time - self.begin) / self.span * (self.right - self.left)
    }

    fn times(&self, svg: &mut String) -> Result<()> {
        for quarter in 0..=4 {
            let (at, seconds) = (f64::from(quarter) / 4.0, self.span * f64::from(quarter) / 4.0);
            let anchor = ["start", "middle", "middle", "middle", "end"][quarter as usize];
            let (x, y) = (self.left + at * (self.right - self.left), self.bottom + 17.0);
            writeln!(svg, r#"<text x="{x:.0}" y="{y:.0}" text-anchor="{anchor}">{seconds:.0} s</text>"#)?;
        }
        Ok(())
    }
}

fn lines(svg: &mut String, all: &[Series], unit: &str, width: f64, height: f64, duration: Duration) -> Result<()> {
    let frame = Frame::new(all, width, height, 58.0, 22.0, duration);
    let most = all.iter().flat_map(|(_, points)| points).map(|point| point.1).filter(|value| value.is_finite());
    let most = most.fold(0.0, f64::max) * 1.05;
    let most = if most > 0.0 { most } else { 1.0 };
    for quarter in 0..=4 {
        let value = most * f64::from(quarter) / 4.0;
        let y = frame.bottom - f64::from(quarter) / 4.0 * (frame.bottom - frame.top);
        writeln!(svg, r#"<line class="axis" x1="{}" x2="{}" y1="{y:.1}" y2="{y:.1}"/>"#, frame.left, frame.right)?;
        let (x, y, text) = (frame.left - 8.0, y + 4.0, with_unit(value, unit));
        writeln!(svg, r#"<text x="{x}" y="{y:.1}" text-anchor="end">{text}</text>"#)?;
    }
    frame.times(svg)?;
    let mut legend = frame.left;
    for (index, (name, points)) in all.iter().enumerate() {
        let colour = format!("var(--c{})", index % COLOURS);
        let path: Vec<String> = points
            .iter()
            .filter(|point| point.1.is_finite())
            .map(|&(time, value)| {
                format!("{:.1} {:.1}", frame.x(time), frame.bottom - value / most * (frame.bottom - frame.top))
            })
            .collect();
        writeln!(svg, r#"<path class="line" style="stroke: {colour}" d="M{}"/>"#, path.join("L"))?;
        let y = height - 12.0;
        writeln!(svg, r#"<rect x="{legend}" y="{}" width="14" height="4" style="fill: {colour}"/>"#, y - 6.0)?;
        writeln!(svg, r#"<text x="{}" y="{y}">{}</text>"#, legend + 19.0, escape(name))?;
        legend += 34.0 + 6.6 * name.chars().count() as f64;
    }
    Ok(())
}

fn heatmap(svg: &mut String, all: &[Series], width: f64, height: f64, duration: Duration) -> Result<()> {
    let frame = Frame::new(all, width, height, 66.0, 0.0, duration);
    let mut buckets: Vec<(f64, &Vec<(f64, f64)>)> =
        all.iter().filter_map(|(name, points)| Some((name.parse().ok()?, points))).collect();
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    // Buckets count all smaller values, too: what is a bucket's own is the difference.
    let cell = |index: usize, time: f64| {
        let at = |index: usize| {
            let (_, points) = buckets.get(index)?;
            points.iter().find(|point| (point.0 - time).abs() < 0.001).map(|point| point.1)
        };
        let below = index.checked_sub(1).and_then(at).unwrap_or(0.0);
        at(index).map_or(0.0, |value| (value - below).max(0.0))
    };
    // The rows that have anything, between one empty one below and above.
    let own = |index: &usize| buckets[*index].1.iter().any(|point| cell(*index, point.0) > 0.0);
    let used: Vec<usize> = (0..buckets.len()).filter(own).collect();
    let (Some(&low), Some(&high)) = (used.first(), used.last()) else { return Ok(()) };
    let (low, high) = (low.saturating_sub(1), (high + 1).min(buckets.len() - 1));
    let step = (frame.bottom - frame.top) / (high - low + 1) as f64;
    let wide = (frame.right - frame.left) / 120.0;
    let cells: Vec<(usize, f64, f64)> = (low..=high)
        .flat_map(|index| buckets[index].1.iter().map(move |point| (index, point.0)))
        .map(|(index, time)| (index, time, cell(index, time)))
        .collect();
    let most = cells.iter().map(|cell| cell.2).fold(1.0, f64::max);
    for (index, time, count) in cells.into_iter().filter(|cell| cell.2 > 0.0 && cell.1 > frame.begin) {
        let (x, y) = (frame.x(time) - wide, frame.bottom - (index - low + 1) as f64 * step);
        let strength = 0.12 + 0.88 * count / most;
        writeln!(
            svg,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{wide:.1}" height="{:.1}" style="fill: var(--heat); opacity: {strength:.2}"/>"#,
            step - 1.0
        )?;
    }
    for (index, bucket) in buckets.iter().enumerate().take(high + 1).skip(low) {
        let y = frame.bottom - (index - low + 1) as f64 * step;
        writeln!(svg, r#"<line class="axis" x1="{}" x2="{}" y1="{y:.1}" y2="{y:.1}"/>"#, frame.left, frame.right)?;
        let (x, text) = (frame.left - 8.0, with_unit(bucket.0, "ms"));
        writeln!(svg, r#"<text x="{x}" y="{:.1}" text-anchor="end">{text}</text>"#, y + 4.0)?;
    }
    frame.times(svg)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
