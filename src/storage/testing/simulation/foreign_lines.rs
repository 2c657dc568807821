//! Rows of other programs, and whether they must stand.

use std::collections::BTreeMap;

use crate::{
    csv::{row_splitter::without_line_end, scanner::split_rows},
    storage::testing::simulation::text::{cells_of, contains, ends_whole, text},
};

/// Rows that a foreign holder of the lock appended.
#[derive(Default)]
pub(super) struct ForeignLines(BTreeMap<Vec<u8>, ForeignLine>);

struct ForeignLine {
    /// As it was appended: a dead writer may not have written the line end, or not all of it.
    written: Vec<u8>,
    must_stand: bool,
}

impl ForeignLines {
    pub(super) fn add(&mut self, written: Vec<u8>) {
        let row = without_carriage_return(without_line_end(&written)).to_vec();
        self.0.insert(row, ForeignLine { written, must_stand: true });
    }

    /// A power cut must not remove rows that are whole on the disk. It may where the bytes beside them are lost: then it is
    /// unknown where they begin or end.
    pub(super) fn lose_power(&mut self, durable: &[u8], csv: &[u8]) {
        for ForeignLine { written, must_stand } in self.0.values_mut() {
            let is_open = !written.ends_with(b"\n");
            *must_stand = *must_stand
                && contains(durable, written)
                && !contains(csv, &[b"\0", &**written].concat())
                && !(is_open && contains(csv, &[&**written, b"\0"].concat()));
        }
    }

    /// Whether the CSV ends with one of these rows, without its line end.
    pub(super) fn is_last_in(&self, csv: &[u8], width: usize) -> bool {
        let open = split_rows(csv).1;
        self.0.contains_key(without_carriage_return(open)) && is_closable(open, width)
    }

    /// Checks that each row is there once. `may_be_lost`: a sync failed, and so may their own.
    pub(super) fn check(&self, csv: &[u8], may_be_lost: bool) {
        for (row, ForeignLine { must_stand, .. }) in &self.0 {
            let lines = csv.split_inclusive(|&byte| byte == b'\n');
            let count = lines.filter(|line| without_line_end(line) == row).count();
            let may_be_lost = !must_stand || may_be_lost;
            assert!(count <= 1 && (count == 1 || may_be_lost), "foreign {:?} is there {count} times", text(row));
        }
    }
}

/// Whether a line end makes the text a whole row.
fn is_closable(text: &[u8], width: usize) -> bool {
    let line = [text, b"\n"].concat();
    ends_whole(&line) && cells_of(&line).len() == width
}

fn without_carriage_return(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}
