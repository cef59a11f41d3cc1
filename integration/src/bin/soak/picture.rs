//! Memory and descriptors over time, as an SVG. A dot below is a fault.

use std::fmt::Write;

use crate::{faults, report::Report, watch::Of};

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 50.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 250.0;
const MEGA: u64 = 1_000_000;

/// Draws it.
pub(crate) fn draw(report: &Report) -> String {
    let length = report.length.as_secs_f64().max(1.0);
    let x = |at: std::time::Duration| LEFT + (WIDTH - LEFT - 20.0) * at.as_secs_f64() / length;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n"
    );
    let lines: [(&str, &str, Of); 3] = [
        ("Envoy, MB", "#1f77b4", |sample| sample.envoy),
        ("egressctl, MB", "#2ca02c", |sample| sample.program),
        ("descriptors", "#d62728", |sample| sample.descriptors * MEGA),
    ];
    let most = lines
        .iter()
        .flat_map(|(_, _, of)| report.samples.iter().map(|one| mega(of(one))));
    let most = most.fold(1.0, f64::max) * 1.1;
    let y = |value: f64| BOTTOM - (BOTTOM - TOP) * value / most;
    for step in 0..=5 {
        let value = most * f64::from(step) / 5.0;
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {0:.1}H{1}\" stroke=\"#ddd\"/><text x=\"{2}\" y=\"{3:.1}\" text-anchor=\"end\">{value:.0}</text>",
            y(value),
            WIDTH - 20.0,
            LEFT - 6.0,
            y(value) + 4.0
        );
    }
    for (place, (name, colour, of)) in (0u32..).zip(lines) {
        let points: Vec<String> = report
            .samples
            .iter()
            .map(|one| format!("{:.1},{:.1}", x(one.at), y(mega(of(one)))))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\"/><text x=\"{}\" y=\"14\" fill=\"{colour}\">{name}</text>",
            points.join(" "),
            LEFT + 110.0 * f64::from(place)
        );
    }
    for (row, fault) in (0u32..).zip(&faults::ALL) {
        let at = BOTTOM + 18.0 + 14.0 * f64::from(row);
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{at:.1}\" text-anchor=\"end\" fill=\"#999\">{}</text>",
            WIDTH - 20.0,
            fault.name
        );
        for one in report.happened.iter().filter(|one| one.fault == fault.name) {
            let colour = if one.result.is_ok() {
                "#555"
            } else {
                "#d62728"
            };
            let _ = writeln!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>",
                x(one.at),
                at - 4.0
            );
        }
    }
    svg + "</svg>\n"
}

#[expect(clippy::cast_precision_loss, reason = "a picture has few digits")]
fn mega(bytes: u64) -> f64 {
    (bytes / 1000) as f64 / 1e3
}
