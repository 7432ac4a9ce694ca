//! The tables, drawn.

use super::figures::{Figure, Item};
use super::report::distinct;
use crate::{Result, about_path};
use plotters::prelude::*;
use std::path::Path;

const SIZE: (u32, u32) = (960, 600);
const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 160, 44),
    RGBColor(255, 127, 14),
    RGBColor(148, 103, 189),
    RGBColor(90, 90, 90),
];

/// A name for a file.
fn slug(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let words: String = name.replace('µ', "u").chars().map(plain).collect();
    words.split('-').filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-")
}

/// Draws each table of an item into an SVG of its own in `directory`: a line for
/// each variant, a point for each case, with how far the repetitions were apart.
pub(crate) fn draw(directory: &Path, item: &Item) -> Result<()> {
    for table in distinct(item.figures.iter().map(|figure| figure.table)) {
        let of_table = |figure: &&Figure| figure.table == table && figure.summary.median > 0.0;
        let figures: Vec<&Figure> = item.figures.iter().filter(of_table).collect();
        if figures.is_empty() {
            continue;
        }
        let path = directory.join(format!("{}-{}.svg", item.name, slug(table)));
        let title = format!("{}: {table}", item.name);
        draw_table(&path, &title, &figures).map_err(|error| about_path(&path, &*error))?;
    }
    Ok(())
}

fn draw_table(path: &Path, title: &str, figures: &[&Figure]) -> Result<()> {
    let cases = distinct(figures.iter().map(|figure| figure.case.as_str()));
    let variants = distinct(figures.iter().map(|figure| figure.variant.as_str()));
    // Whole powers of ten.
    let power = |figure: f64, round: fn(f64) -> f64| 10_f64.powf(round(figure.log10()));
    let medians = || figures.iter().map(|figure| figure.summary.median);
    let lowest = power(medians().fold(f64::MAX, f64::min) * 0.9, f64::floor);
    let highest = power(medians().fold(0.0, f64::max) * 1.1, f64::ceil);
    let tick = |x: &f64| {
        let whole = (x - x.round()).abs() < 1e-6 && *x > -0.1;
        let case = if whole { cases.get(x.round() as usize) } else { None };
        case.copied().unwrap_or_default().to_string()
    };

    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 24))
        .margin(16)
        .margin_right(32)
        .x_label_area_size(48)
        .y_label_area_size(80)
        .build_cartesian_2d(-0.5..cases.len() as f64 - 0.5, (lowest..highest).log_scale())?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(2 * cases.len() + 1)
        .x_label_formatter(&tick)
        .y_label_formatter(&|y| y.to_string())
        .y_desc("the scale is logarithmic")
        .label_style(("sans-serif", 15))
        .axis_desc_style(("sans-serif", 16))
        .light_line_style(BLACK.mix(0.06))
        .bold_line_style(BLACK.mix(0.18))
        .draw()?;
    for (number, variant) in variants.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        // Beside each other where there are several.
        let aside = 0.04 * (number as f64 - (variants.len() - 1) as f64 / 2.0);
        let place = |case: &str| cases.iter().position(|one| *one == case).unwrap_or(0) as f64;
        let of_variant = || figures.iter().filter(|figure| figure.variant == *variant);
        let points =
            of_variant().map(|figure| (place(&figure.case) + aside, figure.summary.median));
        chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?;
        chart.draw_series(of_variant().map(|figure| {
            let (x, bounds) = (place(&figure.case) + aside, lowest..=highest);
            let [from, to] = [figure.summary.least, figure.summary.most]
                .map(|y| y.clamp(*bounds.start(), *bounds.end()));
            PathElement::new([(x, from), (x, to)], colour.mix(0.6).stroke_width(4))
        }))?;
        chart
            .draw_series(points.map(|point| Circle::new(point, 4, colour.filled())))?
            .label(*variant)
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
        .draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_s_name_makes_a_file_s() {
        assert_eq!(slug("for each (µs), N = 4"), "for-each-us-n-4");
    }
}
