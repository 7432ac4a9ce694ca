//! The results as Markdown, and as JSON.

use super::figures::{Item, Summary, Target};
use super::machine::Machine;
use super::stage::Disturbance;
use serde::Serialize;
use std::fmt::Write;

/// The result of a run; `shm-demo bench --help` says what the fields mean.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) outcome: &'static str,
    pub(crate) quick: bool,
    pub(crate) machine: Machine,
    pub(crate) repetitions: usize,
    pub(crate) targets: usize,
    pub(crate) targets_missed: usize,
    pub(crate) items: Vec<Item>,
}

impl Report {
    pub(crate) fn new(quick: bool, machine: Machine, repetitions: usize) -> Self {
        let (outcome, items) = ("measured", Vec::new());
        Self { outcome, quick, machine, repetitions, targets: 0, targets_missed: 0, items }
    }

    pub(crate) fn add(&mut self, item: Item) {
        self.targets += item.checks.len();
        self.targets_missed += item.checks.iter().filter(|check| !check.met).count();
        self.items.push(item);
    }

    /// What comes before all items.
    pub(crate) fn head(&self) -> String {
        let Machine { cpu, cpus, kernel } = &self.machine;
        let count = match self.repetitions {
            1 => "One repetition".into(),
            count => format!("Medians of {count} repetitions"),
        };
        let mut text = format!(
            "{cpu}, {cpus} CPUs, Linux {kernel}. {count}; in parentheses how far the repetitions \
             were apart, (most - least) / median.\n"
        );
        if self.quick {
            text.push_str("\n**Made with --quick: the figures mean nothing.**\n");
        }
        text
    }

    /// What comes after them.
    pub(crate) fn foot(&self) -> String {
        match (self.targets, self.targets_missed) {
            (0, _) => "\nThere were no targets.\n".into(),
            (all, 0) => format!("\nAll {all} targets were met.\n"),
            (all, missed) => format!("\n**{missed} of {all} targets were missed.**\n"),
        }
    }
}

/// A number with three digits that count.
pub(crate) fn digits(number: f64) -> String {
    let decimals = match number.abs() {
        size if size >= 100.0 || size == 0.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{number:.decimals$}")
}

fn cell(summary: &Summary) -> String {
    format!("{} ({:.0}%)", digits(summary.median), summary.spread * 100.0)
}

/// The different ones, in the order in which they come.
pub(crate) fn distinct<'a>(all: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut distinct = Vec::new();
    for one in all {
        if !distinct.contains(&one) {
            distinct.push(one);
        }
    }
    distinct
}

fn line(text: &mut String, cells: impl IntoIterator<Item = String>) {
    let cells: Vec<String> = cells.into_iter().collect();
    writeln!(text, "| {} |", cells.join(" | ")).expect("a String takes anything");
}

fn head(text: &mut String, names: &[&str]) {
    text.push('\n');
    line(text, names.iter().map(ToString::to_string));
    line(text, names.iter().enumerate().map(|(at, _)| if at == 0 { "---" } else { "---:" }.into()));
}

/// An item's tables.
pub(crate) fn markdown(item: &Item) -> String {
    let mut text = format!("\n## {}\n\n{}\n", item.name, item.about);
    for table in distinct(item.figures.iter().map(|figure| figure.table)) {
        let figures = || item.figures.iter().filter(|figure| figure.table == table);
        let variants = distinct(figures().map(|figure| figure.variant.as_str()));
        head(&mut text, &[&[table], &variants[..]].concat());
        for case in distinct(figures().map(|figure| figure.case.as_str())) {
            let of = |variant: &&str| {
                let found = figures().find(|one| one.case == case && one.variant == **variant);
                found.map_or(String::new(), |figure| cell(&figure.summary))
            };
            line(&mut text, [case.into()].into_iter().chain(variants.iter().map(of)));
        }
    }
    if !item.checks.is_empty() {
        head(&mut text, &["target", "case", "measured", "aim", "result"]);
        for check in &item.checks {
            let aim = match check.target {
                Target::AtMost(bound) => format!("at most {bound:.2}"),
                Target::AtLeast(bound) => format!("at least {bound:.2}"),
            };
            let result = if check.met { "met" } else { "**missed**" };
            let measured = cell(&check.summary);
            line(&mut text, [check.what.clone(), check.case.clone(), measured, aim, result.into()]);
        }
    }
    for note in &item.notes {
        writeln!(text, "\n{note}").expect("a String takes anything");
    }
    let Disturbance { discarded, disturbed, others } = item.disturbance;
    writeln!(
        text,
        "\nRepetitions discarded because the host took processor time: {discarded}; that count in \
         spite of it: {disturbed}. Other programs took up to {:.0}% of the processor time.",
        others * 100.0
    )
    .expect("a String takes anything");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_tables() {
        let mut item = Item::new("name", "About it.");
        item.figure("ns", "two", "heirlock", &[1.0, 2.0, 3.0]);
        item.figure("ns", "two", "std", &[4.0]);
        item.figure("ns", "four", "heirlock", &[123.4]);
        item.ratio("two", "heirlock / std", (&[1.0], &[4.0]), Target::AtMost(0.2));
        let expected = "\n## name\n\nAbout it.\n\n\
            | ns | heirlock | std |\n| --- | ---: | ---: |\n\
            | two | 2.00 (100%) | 4.00 (0%) |\n| four | 123 (0%) |  |\n\n\
            | target | case | measured | aim | result |\n| --- | ---: | ---: | ---: | ---: |\n\
            | heirlock / std | two | 0.250 (0%) | at most 0.20 | **missed** |\n\n\
            Repetitions discarded because the host took processor time: 0; that count in \
            spite of it: 0. Other programs took up to 0% of the processor time.\n";
        assert_eq!(markdown(&item), expected);
    }
}
