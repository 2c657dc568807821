//! What came of all runs.

use std::{collections::BTreeMap, fmt::Write, path::Path, time::Duration};

use crate::{checker::Wrong, nemesis::Fault, run::Outcome, scene::SCENES};

const BEGIN: &str = "<!-- faults: written by make faults -->\n";
const END: &str = "<!-- end of faults -->";

#[derive(Default)]
struct Sum {
    runs: u64,
    faults: u64,
    acked_rows: u64,
    lost: u64,
    duplicated: u64,
    torn: u64,
    other: u64,
    longest_outage: Duration,
}

#[derive(Default)]
pub(crate) struct Table {
    sums: BTreeMap<&'static str, Sum>,
    fired: BTreeMap<Fault, u64>,
}

impl Table {
    pub(crate) fn add(&mut self, scene: &'static str, outcome: &Outcome) {
        let sum = self.sums.entry(scene).or_default();
        let count = |wrong| outcome.findings.count(wrong);
        let named = [Wrong::Lost, Wrong::Duplicated, Wrong::Torn].map(count);
        sum.runs += 1;
        sum.faults += outcome.fired.values().sum::<u64>();
        sum.acked_rows += outcome.acked_rows;
        (sum.lost, sum.duplicated, sum.torn) = (sum.lost + named[0], sum.duplicated + named[1], sum.torn + named[2]);
        sum.other += outcome.findings.all() - named.iter().sum::<u64>();
        sum.longest_outage = sum.longest_outage.max(outcome.longest_outage);
        for (&fault, &times) in &outcome.fired {
            *self.fired.entry(fault).or_default() += times;
        }
    }

    /// How many things were wrong.
    pub(crate) fn wrong(&self) -> u64 {
        self.sums.values().map(|sum| sum.lost + sum.duplicated + sum.torn + sum.other).sum()
    }

    /// The faults of these scenes that never took place.
    pub(crate) fn never_fired(&self) -> Vec<Fault> {
        let wanted = SCENES.iter().filter(|scene| self.sums.contains_key(scene.name)).flat_map(|scene| scene.faults);
        let mut never: Vec<_> = wanted.copied().filter(|fault| !self.fired.contains_key(fault)).collect();
        never.sort_unstable();
        never.dedup();
        never
    }

    /// In Markdown.
    pub(crate) fn by_scene(&self) -> String {
        let mut text = "| scene | runs | faults | rows acknowledged | lost | duplicated | torn | anything else | longest outage |\n\
            |---|---:|---:|---:|---:|---:|---:|---:|---:|\n"
            .to_owned();
        let mut all = Sum::default();
        let scenes = SCENES.iter().filter_map(|scene| Some((scene.name, self.sums.get(scene.name)?)));
        for (name, sum) in scenes {
            line(&mut text, name, sum);
            all.runs += sum.runs;
            all.faults += sum.faults;
            all.acked_rows += sum.acked_rows;
            all.lost += sum.lost;
            all.duplicated += sum.duplicated;
            all.torn += sum.torn;
            all.other += sum.other;
            all.longest_outage = all.longest_outage.max(sum.longest_outage);
        }
        line(&mut text, "all", &all);
        text
    }

    /// How often each fault took place.
    pub(crate) fn by_fault(&self) -> String {
        let mut text = String::new();
        for (fault, times) in &self.fired {
            writeln!(text, "{times:>6}  {}", fault.does()).expect("memory takes it");
        }
        text
    }

    /// Writes the table into the document, between its markers.
    pub(crate) fn write(&self, document: &Path) -> Result<(), String> {
        let text = std::fs::read_to_string(document).map_err(|e| e.to_string())?;
        let start = text.find(BEGIN).ok_or("the document has no place for the table")? + BEGIN.len();
        let end = start + text[start..].find(END).ok_or("the document has no end for the table")?;
        std::fs::write(document, format!("{}{}{}", &text[..start], self.by_scene(), &text[end..]))
            .map_err(|e| e.to_string())
    }
}

fn line(text: &mut String, name: &str, sum: &Sum) {
    let Sum { runs, faults, acked_rows, lost, duplicated, torn, other, longest_outage } = sum;
    let seconds = longest_outage.as_secs_f64();
    writeln!(
        text,
        "| {name} | {runs} | {faults} | {acked_rows} | {lost} | {duplicated} | {torn} | {other} | {seconds:.1} s |"
    )
    .expect("memory takes it");
}
