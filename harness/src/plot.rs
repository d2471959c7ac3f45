//! Small line plots, one above the other, as SVG.

use std::fmt::Write;

/// One panel: a title and lines over the same time.
#[derive(Debug, Clone)]
pub struct Panel {
    /// What is shown, with its unit.
    pub title: String,
    /// Names and values; each value belongs to the time at the same place.
    pub lines: Vec<(String, Vec<f64>)>,
}

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 150.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const COLOURS: [&str; 4] = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd"];

/// Panels over these times, in seconds.
pub fn svg(title: &str, times: &[f64], panels: &[Panel]) -> String {
    let total = 40.0 + panels.len() as f64 * (HEIGHT + 50.0);
    let last = times.last().copied().unwrap_or(1.0).max(1.0);
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {total}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{}</text>\n",
        escape(title)
    );
    for (index, panel) in panels.iter().enumerate() {
        let top = 60.0 + index as f64 * (HEIGHT + 50.0);
        let most = panel.lines.iter().flat_map(|(_, values)| values).copied().fold(0.0, f64::max);
        let most = nice(most);
        let x = |time: f64| LEFT + time / last * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| top + HEIGHT - value / most * HEIGHT;
        let _ = writeln!(
            text,
            "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{}</text>",
            top - 8.0,
            escape(&panel.title)
        );
        for step in 0..=4 {
            let value = most * f64::from(step) / 4.0;
            let (right, at) = (WIDTH - RIGHT, y(value));
            let _ =
                writeln!(text, "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>");
            let _ = writeln!(
                text,
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                at + 4.0,
                short(value)
            );
        }
        for step in 0..=6 {
            let time = last * f64::from(step) / 6.0;
            let _ = writeln!(
                text,
                "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{time:.0} s</text>",
                x(time),
                top + HEIGHT + 16.0
            );
        }
        let mut legend = WIDTH - RIGHT;
        for ((name, values), colour) in panel.lines.iter().zip(COLOURS) {
            let points: Vec<_> = times.iter().zip(values).map(|(t, v)| format!("{:.1},{:.1}", x(*t), y(*v))).collect();
            let _ = writeln!(
                text,
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" points=\"{}\"/>",
                points.join(" ")
            );
            let _ = writeln!(
                text,
                "<text x=\"{legend}\" y=\"{}\" text-anchor=\"end\" fill=\"{colour}\">{}</text>",
                top - 8.0,
                escape(name)
            );
            legend -= 16.0 + 7.0 * name.len() as f64;
        }
    }
    text.push_str("</svg>\n");
    text
}

/// The next round number, so that the scale reads well.
fn nice(most: f64) -> f64 {
    if most <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(most.log10().floor());
    [1.0, 2.0, 4.0, 8.0, 10.0].into_iter().map(|step| step * power).find(|&round| round >= most).unwrap_or(most)
}

fn short(value: f64) -> String {
    if value == value.round() { format!("{value:.0}") } else { format!("{value:.2}") }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
