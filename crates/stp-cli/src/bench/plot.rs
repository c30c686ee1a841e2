//! The picture: latency and throughput over the size of messages, as SVG, both axes logarithmic.
//!
//! - Plain shapes and text, no script, no fonts of its own; readable without colours by the labels at the lines' ends.

use std::fmt::Write as _;

use super::conn::Way;
use super::report::{Report, size_text};

const WIDTH: f64 = 900.0;
const PANEL: f64 = 380.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 90.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 40.0;

/// One line of a panel.
struct Curve {
    way: Way,
    points: Vec<(f64, f64)>,
}

/// The whole picture.
pub(super) fn svg(report: &Report) -> String {
    let curve = |figure: &dyn Fn(Way, u64) -> Option<f64>, sizes: &[u64]| -> Vec<Curve> {
        Way::ALL
            .into_iter()
            .map(|way| Curve {
                way,
                points: sizes
                    .iter()
                    .filter_map(|size| Some((*size as f64, figure(way, *size)?)))
                    .collect(),
            })
            .filter(|curve| !curve.points.is_empty())
            .collect()
    };
    let trips = curve(
        &|way, size| report.trip(way, size).map(|t| t.p50_us),
        &report.trip_sizes(),
    );
    let rates = curve(
        &|way, size| report.rate(way, size).map(|r| r.mb_per_s),
        &report.stream_sizes(),
    );
    let height = 2.0 * PANEL + 30.0;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    panel(&mut text, 0.0, "round trip, p50, us", &trips);
    panel(&mut text, PANEL, "stream, MB/s", &rates);
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "<text x=\"{LEFT}\" y=\"{}\" fill=\"#555\">{}</text>\n</svg>",
        height - 10.0,
        escaped(&format!("{}: {}", report.storage, report.noise.verdict()))
    );
    text
}

fn colour(way: Way) -> &'static str {
    match way {
        Way::Floor => "#222222",
        Way::Embedded => "#c1272d",
        Way::Shared => "#e08a00",
        Way::Tcp => "#0057a8",
        Way::Unix => "#2e8540",
        Way::Pipe => "#7d3c98",
    }
}

/// Bounds of a logarithmic axis, as whole powers of ten.
fn decades(values: impl Iterator<Item = f64>) -> (i32, i32) {
    let (low, high) = values
        .filter(|value| *value > 0.0)
        .fold((f64::MAX, f64::MIN_POSITIVE), |(low, high), value| {
            (low.min(value), high.max(value))
        });
    if low > high {
        return (0, 1);
    }
    let low = low.log10().floor() as i32;
    (low, (high.log10().ceil() as i32).max(low + 1))
}

fn panel(text: &mut String, top: f64, title: &str, curves: &[Curve]) {
    let xs = || curves.iter().flat_map(|c| c.points.iter().map(|p| p.0));
    let (low, high) = decades(curves.iter().flat_map(|c| c.points.iter().map(|p| p.1)));
    let (first, last) = (
        xs().fold(f64::MAX, f64::min).max(1.0),
        xs().fold(2.0, f64::max),
    );
    let x = |size: f64| {
        let part = (size.max(1.0) / first).ln() / (last / first).ln().max(1e-9);
        LEFT + part * (WIDTH - LEFT - RIGHT)
    };
    let y = |value: f64| {
        let part = (value.max(1e-9).log10() - f64::from(low)) / f64::from(high - low);
        top + PANEL - BOTTOM - part * (PANEL - TOP - BOTTOM)
    };
    let _ = writeln!(
        text,
        "<text x=\"{LEFT}\" y=\"{}\" font-size=\"15\">{}</text>",
        top + 24.0,
        escaped(title)
    );
    for power in low..=high {
        let value = 10_f64.powi(power);
        let _ = writeln!(
            text,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{2}\" y=\"{3:.1}\" text-anchor=\"end\">{value}</text>",
            WIDTH - RIGHT,
            y(value),
            LEFT - 6.0,
            y(value) + 4.0
        );
    }
    let mut sizes: Vec<u64> = xs().map(|size| size as u64).collect();
    sizes.sort_unstable();
    sizes.dedup();
    for size in sizes {
        let _ = writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            x(size as f64),
            top + PANEL - BOTTOM + 18.0,
            escaped(&size_text(size))
        );
    }
    for (index, curve) in curves.iter().enumerate() {
        let points: Vec<_> = curve
            .points
            .iter()
            .map(|(size, value)| format!("{:.1},{:.1}", x(*size), y(*value)))
            .collect();
        let _ = writeln!(
            text,
            "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"2\" points=\"{}\"/>",
            colour(curve.way),
            points.join(" ")
        );
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{}\" fill=\"{}\">{}</text>",
            WIDTH - RIGHT + 12.0,
            top + TOP + 16.0 * index as f64,
            colour(curve.way),
            curve.way.name()
        );
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_hold_their_values() {
        assert_eq!(decades([0.5, 700.0].into_iter()), (-1, 3));
        assert_eq!(decades([1.0].into_iter()), (0, 1));
        assert_eq!(decades(std::iter::empty()), (0, 1));
        assert_eq!(escaped("a<b>&"), "a&lt;b&gt;&amp;");
    }
}
