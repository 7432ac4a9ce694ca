//! Results: measured figures, and what was aimed at.

use super::stage::Disturbance;
use serde::Serialize;

/// The median of some repetitions, and how far apart they were.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
    /// (most - least) / median
    pub(crate) spread: f64,
}

impl Summary {
    pub(crate) fn of(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
        let (least, most) = (at(0), at(sorted.len().saturating_sub(1)));
        let median = median(sorted);
        let spread = if median == 0.0 { 0.0 } else { (most - least) / median };
        Self { median, least, most, spread }
    }
}

/// The middle one; of an even number the mean of the middle two.
pub(crate) fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    let middle = samples.len() / 2;
    match samples.len() {
        0 => 0.0,
        length if length % 2 == 1 => samples[middle],
        _ => f64::midpoint(samples[middle - 1], samples[middle]),
    }
}

/// What a figure ought to be.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    fn is_met_by(self, figure: f64) -> bool {
        match self {
            Self::AtMost(bound) => figure <= bound,
            Self::AtLeast(bound) => figure >= bound,
        }
    }
}

/// A cell of a table.
#[derive(Serialize)]
pub(crate) struct Figure {
    /// What is measured, and in which unit.
    pub(crate) table: &'static str,
    /// The row.
    pub(crate) case: String,
    /// The column.
    pub(crate) variant: String,
    #[serde(flatten)]
    pub(crate) summary: Summary,
}

/// A ratio, or a count, that has a target.
#[derive(Serialize)]
pub(crate) struct Check {
    pub(crate) case: String,
    pub(crate) what: String,
    #[serde(flatten)]
    pub(crate) summary: Summary,
    pub(crate) target: Target,
    pub(crate) met: bool,
}

/// What an item found.
#[derive(Serialize)]
pub(crate) struct Item {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) figures: Vec<Figure>,
    pub(crate) checks: Vec<Check>,
    /// What could not be measured here, and why.
    pub(crate) notes: Vec<String>,
    #[serde(flatten)]
    pub(crate) disturbance: Disturbance,
}

impl Item {
    pub(crate) fn new(name: &'static str, about: &'static str) -> Self {
        let (figures, checks, notes) = (Vec::new(), Vec::new(), Vec::new());
        let disturbance = Disturbance::default();
        Self { name, about, figures, checks, notes, disturbance }
    }

    /// Adds what was measured of a variant, in each repetition.
    pub(crate) fn figure(
        &mut self,
        table: &'static str,
        case: impl Into<String>,
        variant: impl Into<String>,
        samples: &[f64],
    ) {
        let (case, variant) = (case.into(), variant.into());
        self.figures.push(Figure { table, case, variant, summary: Summary::of(samples) });
    }

    /// Adds something that ought to be within a bound.
    pub(crate) fn check(
        &mut self,
        case: impl Into<String>,
        what: impl Into<String>,
        samples: &[f64],
        target: Target,
    ) {
        let summary = Summary::of(samples);
        let met = target.is_met_by(summary.median);
        self.checks.push(Check { case: case.into(), what: what.into(), summary, target, met });
    }

    /// Adds a ratio, taken within each repetition, that ought to be within a bound.
    pub(crate) fn ratio(
        &mut self,
        case: impl Into<String>,
        what: impl Into<String>,
        (ours, theirs): (&[f64], &[f64]),
        target: Target,
    ) {
        let ratios: Vec<f64> = ours.iter().zip(theirs).map(|(one, other)| one / other).collect();
        self.check(case, what, &ratios, target);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![]), 0.0);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn the_spread_is_relative() {
        let summary = Summary::of(&[10.0, 9.0, 12.0]);
        assert_eq!(summary, Summary { median: 10.0, least: 9.0, most: 12.0, spread: 0.3 });
        assert_eq!(Summary::of(&[0.0, 1.0, 0.0]).spread, 0.0);
    }

    #[test]
    fn ratios_are_taken_within_repetitions() {
        let mut item = Item::new("name", "about");
        item.ratio("", "ours / theirs", (&[1.0, 4.0, 9.0], &[2.0, 4.0, 3.0]), Target::AtMost(0.9));
        assert_eq!(item.checks[0].summary.median, 1.0);
        assert!(!item.checks[0].met);
        item.check("", "ours", &[1.0], Target::AtLeast(1.0));
        assert!(item.checks[1].met);
    }
}
