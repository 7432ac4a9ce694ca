//! The distribution of the waits, drawn.

use crate::{Result, about_path};
use hdrhistogram::Histogram;
use plotters::prelude::*;
use std::path::Path;

/// What is drawn of a phase.
pub(crate) struct Curve {
    pub(crate) name: &'static str,
    /// One for each lock.
    pub(crate) locks: Vec<Histogram<u64>>,
}

const SIZE: (u32, u32) = (960, 600);
const COLOURS: [RGBColor; 2] = [RGBColor(31, 119, 180), RGBColor(214, 39, 40)];

/// How far down shares are drawn.
const LEAST: f64 = 1e-6;

/// By waiting time in microseconds, the share of acquisitions that waited longer.
fn longer(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    let total = histogram.len() as f64;
    let mut left = histogram.len();
    let mut points = Vec::new();
    for step in histogram.iter_recorded() {
        let us = step.value_iterated_to() as f64 / 1000.0;
        points.push((us, left as f64 / total));
        left -= step.count_since_last_iteration();
        if left > 0 {
            points.push((us, left as f64 / total));
        }
    }
    points
}

fn together(locks: &[Histogram<u64>]) -> Result<Histogram<u64>> {
    let mut all = Histogram::new_with_bounds(1, u64::MAX / 2, 2)?;
    for lock in locks {
        all.add(lock)?;
    }
    Ok(all)
}

fn tick_us(us: &f64) -> String {
    match *us {
        us if us < 1e3 => format!("{us} µs"),
        us if us < 1e6 => format!("{} ms", us / 1e3),
        us => format!("{} s", us / 1e6),
    }
}

fn tick_share(share: &f64) -> String {
    format!("{}%", share * 100.0)
}

/// Draws a curve for each phase into an SVG at `path`; a thin one for each lock,
/// a thick one for all.
pub(crate) fn draw(path: &Path, curves: &[Curve]) -> Result<()> {
    let all = curves.iter().map(|curve| together(&curve.locks)).collect::<Result<Vec<_>>>()?;
    let longest = all.iter().map(Histogram::max).max().unwrap_or(0) as f64 / 1000.0;
    // Whole powers of ten.
    let right = 10_f64.powf(longest.max(10.0).log10().ceil());
    let error = |error: &dyn std::error::Error| about_path(path, error);

    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE).map_err(|source| error(&source))?;
    let mut chart = ChartBuilder::on(&area)
        .caption("How long acquisitions waited", ("sans-serif", 24))
        .margin(16)
        .margin_right(32)
        .x_label_area_size(48)
        .y_label_area_size(80)
        .build_cartesian_2d((0.1..right).log_scale(), (LEAST..1.0).log_scale())
        .map_err(|source| error(&source))?;
    chart
        .configure_mesh()
        .x_desc("waited (the scales are logarithmic)")
        .y_desc("share of acquisitions that waited longer")
        .x_label_formatter(&tick_us)
        .y_label_formatter(&tick_share)
        .label_style(("sans-serif", 15))
        .axis_desc_style(("sans-serif", 16))
        .light_line_style(BLACK.mix(0.06))
        .bold_line_style(BLACK.mix(0.18))
        .draw()
        .map_err(|source| error(&source))?;
    for ((curve, all), colour) in curves.iter().zip(&all).zip(COLOURS) {
        for lock in &curve.locks {
            let line = LineSeries::new(longer(lock), colour.mix(0.45).stroke_width(1));
            chart.draw_series(line).map_err(|source| error(&source))?;
        }
        let line = LineSeries::new(longer(all), colour.stroke_width(3));
        chart
            .draw_series(line)
            .map_err(|source| error(&source))?
            .label(format!("{}: {} acquisitions", curve.name, all.len()))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], colour.stroke_width(3)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(("sans-serif", 16))
        .legend_area_size(32)
        .margin(12)
        .background_style(WHITE.mix(0.9))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(|source| error(&source))?;
    area.present().map_err(|source| error(&source))?;
    Ok(())
}
