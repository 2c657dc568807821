//! Other programs that append to the CSV: holders of the lock that know nothing of the journal, and programs without the lock.

use std::collections::BTreeMap;

use crate::{
    csv::{row_splitter::without_line_end, scanner::split_rows},
    storage::testing::simulation::{
        disk::{Change, Host, contains, ends_whole, text},
        history::History,
        promises::cells_of,
    },
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
    fn add(&mut self, written: Vec<u8>) {
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
    fn is_last_in(&self, csv: &[u8], width: usize) -> bool {
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

impl Host {
    /// The cells of the file's rows. `None`: a power cut may still lose the first row, so nobody can tell.
    fn width(&self) -> Option<usize> {
        let csv = self.files[0].durable();
        split_rows(csv).0.first().filter(|row| !row.contains(&0)).map(|row| cells_of(row).len())
    }

    /// The text that a program without the lock appends, if it finds that the last row is whole.
    pub(super) fn draw_unlocked_text(&mut self) -> Option<Vec<u8>> {
        self.unlocked_lines += 1;
        let half = self.random.chance(25);
        let (width, line_end) = (self.width()?, self.scenario.line_end);
        let row = self.scenario.foreign_row(&format!("s{:02}", self.unlocked_lines), width) + line_end;
        let csv = &self.files[0].cache;
        let row = if half { "\"sl".to_owned() } else { row };
        let text = if ends_whole(csv) {
            row
        } else if !self.scenario.is_plain && self.foreign.is_last_in(csv, width) && self.random.chance(50) {
            // It ends the other program's line itself.
            let line_end = if csv.ends_with(b"\r") { "\n" } else { line_end };
            line_end.to_owned() + &row
        } else {
            return None;
        };
        self.trace.push(format!("append without lock {text:?}"));
        Some(text.into_bytes())
    }

    pub(super) fn append_foreign(&mut self, text: &[u8]) {
        let end = self.files[0].cache.len();
        if self.is_direct {
            self.files[0].write_durably(end, text);
        } else {
            self.files[0].change(Change::Write(end, text.to_vec()));
        }
        self.recording.add(&self.files);
    }

    /// The start of a row, of any length, so that it may fill the place of what a power cut has lost.
    fn draw_half_row(&mut self, number: usize, width: usize) -> String {
        let in_quotes = || "\"f".to_owned() + &"h".repeat(number % 6);
        let before = if self.scenario.headerless_width.is_some() { "" } else { "," };
        if self.scenario.is_plain || width == 1 || self.random.chance(50) {
            return before.to_owned() + &in_quotes();
        }
        let line_end = if self.random.chance(30) { "\r" } else { "" };
        "h".repeat(1 + number % 6) + line_end
    }
}

impl History {
    /// A foreign process that holds the lock appends a row, or dies in the middle of it or before its line end.
    pub(super) fn foreign(&mut self, number: usize) {
        self.take_locks(usize::MAX);
        let mut host = self.host.borrow_mut();
        let half = host.random.chance(30);
        if !ends_whole(&host.files[0].cache) {
            return;
        }
        let line_end = host.scenario.line_end;
        let Some(width) = host.width() else { return };
        let written = if half {
            host.draw_half_row(number, width)
        } else {
            let row = host.scenario.foreign_row(&format!("f{number:02}"), width);
            let line_end = match host.scenario.is_plain || host.random.chance(70) {
                true => line_end,
                false if host.random.chance(50) => "",
                false => "\r",
            };
            row + line_end
        };
        host.trace.push(format!("foreign {written:?}"));
        host.append_foreign(written.as_bytes());
        if !half {
            host.foreign.add(written.into_bytes());
        }
        if !host.is_direct && host.random.chance(30) {
            host.trace.push("foreign sync".to_owned());
            host.files[0].sync();
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
