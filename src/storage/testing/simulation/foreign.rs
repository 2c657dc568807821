//! Other programs that append to the CSV: holders of the lock that know nothing of the journal, and programs without the lock.

use crate::{
    csv::scanner::split_rows,
    storage::testing::simulation::{
        disk::Host,
        file::Change,
        history::History,
        text::{cells_of, ends_whole},
    },
};

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
