//! The options and the report of a check.

use std::path::PathBuf;

use serde::Serialize;

use crate::{
    fencing::FencingToken,
    storage::check::audit::{Fault, Finding},
};

/// What to check.
#[derive(Debug, Clone)]
pub struct CheckOptions {
    /// The CSV.
    pub path: PathBuf,
    /// `none`: the first record is not a header.
    pub header: String,
    /// A key that is repeated within this many of the newest keys is a fault.
    pub keys: usize,
}

/// How the journal relates to the CSV.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JournalState {
    /// All its rows are in the CSV.
    Sound,
    /// It holds rows that are missing in the CSV: the next holder of the lock writes them.
    OwesRows,
    /// The CSV after the checkpoint is being rebuilt, or a process died doing so: the next holder of the lock continues.
    Rebuilding,
    /// A sync has failed: the next holder of the lock rewrites what may be missing on disk.
    InDoubt,
    /// The CSV has other rows in place of those that the journal holds: a start fails.
    Edited,
    /// There is none: a start reads the CSV through once and creates one.
    Missing,
    /// It describes another CSV, or this one before it was truncated, and holds no rows of it: a start reads the CSV through
    /// once.
    OtherFile,
    /// It holds rows of another CSV, or of this one before it was truncated: a start fails.
    Foreign,
    /// Neither header is valid: a start fails.
    Damaged,
    /// A newer version wrote it: a start fails.
    Newer,
}

/// What the journal holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JournalReport {
    /// How it relates to the CSV.
    pub state: JournalState,
    /// Its size in bytes.
    pub bytes: u64,
    /// How many bytes of the CSV were durable, whole rows at the last checkpoint.
    pub checkpoint_bytes: u64,
    /// Records since then.
    pub records: u64,
    /// The highest recorded token; older ones are refused.
    pub newest_token: FencingToken,
    /// Idempotency keys recorded since the journal was created.
    pub keys: u64,
    /// Rows that are missing in the CSV.
    pub rows_to_recover: u64,
    /// Their missing bytes.
    pub bytes_to_recover: u64,
}

impl JournalReport {
    /// The report of a missing journal.
    pub(super) fn missing() -> Self {
        Self {
            state: JournalState::Missing,
            bytes: 0,
            checkpoint_bytes: 0,
            records: 0,
            newest_token: 0,
            keys: 0,
            rows_to_recover: 0,
            bytes_to_recover: 0,
        }
    }
}

/// The state of a CSV and its side files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The CSV, symbolic links resolved.
    pub file: PathBuf,
    /// Whether the CSV has only whole rows and matches its journal.
    pub whole: bool,
    /// The CSV's length.
    pub bytes: u64,
    /// Rows, without the header.
    pub rows: u64,
    /// The highest token in the CSV, if it has a token column.
    pub newest_token: Option<FencingToken>,
    /// The CSV's faults.
    pub findings: Vec<Finding>,
    /// The state of `<csv>.journal`.
    pub journal: JournalReport,
    /// Bytes in `<csv>.torn`.
    #[serde(rename = "set_aside_bytes")]
    pub quarantined_bytes: u64,
}

/// What to do with rows of the journal that the CSV does not have, where both are possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepairChoice {
    /// What loses nothing of either: rows of an edited file are restored, another file is kept.
    Default,
    /// Keep the CSV as it is. The journal's rows go to `<csv>.torn`.
    KeepFile,
    /// Write the journal's rows to the CSV.
    Restore,
}

/// What a repair would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// Nothing needs to be repaired, or nothing can be.
    Nothing,
    /// What each holder of the lock does: write the journal's missing rows and quarantine incomplete ones.
    Recover,
    /// What no holder of the lock does: keep the journal under another name and create a new one.
    ReplaceJournal {
        /// Whether its rows are added to the CSV, not to `<csv>.torn`.
        restores: bool,
    },
}

impl Report {
    /// What a repair would do.
    pub fn plan(&self, choice: RepairChoice) -> Plan {
        let has = |fault| self.findings.iter().any(|finding| finding.fault == fault);
        match self.journal.state {
            JournalState::Damaged | JournalState::Foreign => {
                Plan::ReplaceJournal { restores: choice == RepairChoice::Restore }
            }
            JournalState::Edited if choice == RepairChoice::KeepFile => Plan::ReplaceJournal { restores: false },
            JournalState::Newer => Plan::Nothing,
            JournalState::OwesRows
            | JournalState::Rebuilding
            | JournalState::InDoubt
            | JournalState::Edited
            | JournalState::Missing
            | JournalState::OtherFile => Plan::Recover,
            JournalState::Sound
                if has(Fault::OpenLine) || has(Fault::OpenQuote) || self.has_hole_after_checkpoint() =>
            {
                Plan::Recover
            }
            JournalState::Sound => Plan::Nothing,
        }
    }

    fn has_hole_after_checkpoint(&self) -> bool {
        let is_after = |offset: u64| offset >= self.journal.checkpoint_bytes;
        let holes = self.findings.iter().filter(|finding| finding.fault == Fault::Nul);
        holes.flat_map(|finding| &finding.samples).any(|sample| is_after(sample.offset))
    }
}
