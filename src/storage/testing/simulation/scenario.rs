//! What a history draws from: the shape of its file, how many keys are remembered, and how often what happens.

use std::sync::Arc;

use crate::{csv::schema::Schema, random::Random, storage::journal::Layout};

pub(super) const LAYOUT: Layout = Layout { page: 256 };
/// Headers, the failed-sync flag, and space for six small records.
const JOURNAL_PAGES: u64 = 9;
/// Space for records of several pages.
const LARGE_JOURNAL_PAGES: u64 = 17;
/// Tells the draws of a scenario from those of its history.
const SCENARIO_SEED: u64 = 0x5ce0_a210;

#[derive(Debug, Clone, Copy)]
pub(super) struct Scenario {
    /// Whether the replicas are on hosts of their own.
    pub(super) is_direct: bool,
    pub(super) line_end: &'static str,
    /// The cells of foreign rows in a file without a header; `None`: the file has a header.
    pub(super) headerless_width: Option<usize>,
    /// Whether the file is empty at first, so that the first row decides its width.
    pub(super) is_empty: bool,
    pub(super) journal_bytes: u64,
    /// How many keys are remembered.
    pub(super) keys: usize,
    /// Whether one request is appended at a time, with one of four keys, and foreign rows end with a line end.
    pub(super) is_plain: bool,
    /// How many of 100 syncs fail.
    pub(super) sync_failures: usize,
    /// How many of 100 steps begin or continue a checkpoint.
    pub(super) checkpoints: usize,
}

impl Scenario {
    /// The smallest file, with single requests.
    pub(super) fn plain(is_direct: bool) -> Self {
        Self {
            is_direct,
            line_end: "\n",
            headerless_width: None,
            is_empty: false,
            journal_bytes: JOURNAL_PAGES * LAYOUT.page,
            keys: 8,
            is_plain: true,
            sync_failures: 2,
            checkpoints: 23,
        }
    }

    /// Every fourth history is plain.
    pub(super) fn draw(seed: u64, is_direct: bool) -> Self {
        let random = &mut Random(seed ^ SCENARIO_SEED);
        let plain = Self::plain(is_direct);
        if random.chance(25) {
            return plain;
        }
        let fails_often = random.chance(30);
        let headerless_width = if random.chance(35) { Some(1 + random.below(2)) } else { None };
        let is_empty = headerless_width.is_some() && random.chance(50);
        Self {
            // The first row decides, and replicas write LF.
            line_end: if !is_empty && random.chance(40) { "\r\n" } else { "\n" },
            headerless_width,
            is_empty,
            journal_bytes: if random.chance(30) { LARGE_JOURNAL_PAGES } else { JOURNAL_PAGES } * LAYOUT.page,
            keys: if random.chance(50) { 3 } else { plain.keys },
            is_plain: false,
            sync_failures: if fails_often { 12 } else { plain.sync_failures },
            checkpoints: if fails_often { 45 } else { plain.checkpoints },
            ..plain
        }
    }

    pub(super) fn schema(&self) -> Arc<Schema> {
        Arc::new(match self.headerless_width {
            None => Schema::from_header(b"token,data").expect("a header"),
            Some(_) => Schema::headerless(),
        })
    }

    /// The CSV when the history begins.
    pub(super) fn first_text(&self) -> String {
        match self.headerless_width {
            None => format!("token,data{}", self.line_end),
            Some(_) if self.is_empty => String::new(),
            Some(width) => self.foreign_row("f", width) + self.line_end,
        }
    }

    /// A row of another program, without its line end.
    pub(super) fn foreign_row(&self, data: &str, width: usize) -> String {
        match self.headerless_width {
            None => format!(",{data}"),
            Some(_) => data.to_owned() + &",".repeat(width - 1),
        }
    }
}
