//! What a comparison of the CSV with the journal finds.

use crate::csv::scanner::OpenLine;

/// Whether the CSV differs from the journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Damage {
    None,
    Some,
    /// Another process is writing, or a repair is needed: without the OS lock, nobody can tell.
    Unclear,
}

/// What the CSV ends with.
#[derive(Debug, Clone, Copy)]
pub(super) enum CsvEnd {
    /// A whole row.
    Whole,
    /// A line that another process left open.
    OpenLine(OpenLine),
    /// It differs from the journal, or has a hole that a power cut left.
    Damaged,
    /// As `Damage::Unclear`.
    Unclear,
}
