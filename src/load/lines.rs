//! Cuts a CSV that comes in pieces into records, strictly: what a reader might guess at is torn.

use memchr::memchr;

use crate::csv::{
    row_splitter::{ROW_BYTES_MAX, without_line_end},
    strict_quotes::{QuoteCheck, QuoteFault},
};

/// What a text is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Line<'a> {
    /// A record without its line end, its quotes sound.
    Record(&'a [u8]),
    /// A line that is none, and why. The cut goes on behind it.
    Torn(&'a [u8], &'static str),
}

/// Finds records and tells each with the byte where it begins.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// Where the record that comes next begins.
    at: u64,
    /// What is there of it.
    buffer: Vec<u8>,
    /// How much of that has gone through `quotes`: whole lines.
    checked: usize,
    quotes: QuoteCheck,
}

impl Lines {
    /// Takes the next piece.
    pub(super) fn feed(&mut self, text: &[u8], found: &mut impl FnMut(u64, Line<'_>)) {
        self.buffer.extend_from_slice(text);
        let mut start = 0;
        while let Some(at) = memchr(b'\n', &self.buffer[self.checked..]) {
            let end = self.checked + at + 1;
            let judged = self.quotes.feed(&self.buffer[self.checked..end]).and_then(|()| self.quotes.end());
            self.checked = end;
            let text = &self.buffer[start..end];
            let taken = match judged {
                Ok(()) => {
                    found(self.at, Line::Record(without_line_end(text)));
                    text.len()
                }
                Err(QuoteFault::NotClosed(_)) if text.len() <= ROW_BYTES_MAX => continue,
                Err(fault) => torn(self.at, text, fault, found),
            };
            start += taken;
            self.begin_record(taken, start);
        }
        self.buffer.drain(..start);
        self.checked -= start;
        // A hole in the file may be larger than the memory.
        if self.buffer.len() - self.checked > ROW_BYTES_MAX {
            found(self.at, Line::Torn(&self.buffer, "a line that is longer than any row"));
            self.begin_record(self.buffer.len(), 0);
            self.buffer.clear();
        }
    }

    fn begin_record(&mut self, taken: usize, start: usize) {
        self.at += taken as u64;
        (self.checked, self.quotes) = (start, QuoteCheck::default());
    }

    /// What follows the last line end is told as torn, and as a record if it is one.
    pub(super) fn finish(mut self, found: &mut impl FnMut(u64, Line<'_>)) {
        while !self.buffer.is_empty() {
            let judged = self.quotes.feed(&self.buffer[self.checked..]).and_then(|()| self.quotes.end());
            let Err(fault) = judged else {
                found(self.at, Line::Torn(&self.buffer, "no line end at the end of the file"));
                return found(self.at, Line::Record(&self.buffer));
            };
            let taken = torn(self.at, &self.buffer, fault, found);
            self.begin_record(taken, 0);
            let rest = self.buffer.split_off(taken);
            self.buffer.clear();
            self.feed(&rest, found);
        }
    }
}

/// The fault may be one of the first line alone: those behind it have another chance. How long that line is.
fn torn(at: u64, text: &[u8], fault: QuoteFault, found: &mut impl FnMut(u64, Line<'_>)) -> usize {
    let why = match fault {
        QuoteFault::TextBehindQuote(_) => "text behind a closing quote",
        QuoteFault::NotClosed(_) => "a quote that is never closed",
        QuoteFault::LoneCarriageReturn(_) => "a carriage return without a line feed",
    };
    let end = memchr(b'\n', text).map_or(text.len(), |at| at + 1);
    found(at, Line::Torn(without_line_end(&text[..end]), why));
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Records as they are, torn lines behind a `!`, in pieces of so many bytes.
    fn cut(text: &str, piece_bytes: usize) -> Vec<(u64, String)> {
        let mut all = Vec::new();
        let mut found = |at, line: Line<'_>| {
            let (mark, text) = match line {
                Line::Record(text) => ("", text),
                Line::Torn(text, _) => ("!", text),
            };
            all.push((at, format!("{mark}{}", String::from_utf8_lossy(text))));
        };
        let mut lines = Lines::default();
        text.as_bytes().chunks(piece_bytes).for_each(|piece| lines.feed(piece, &mut found));
        lines.finish(&mut found);
        all
    }

    #[test]
    fn records_are_split_at_any_piece_and_after_torn_lines() {
        for (text, expected) in [
            ("", &[][..]),
            ("a,b\r\n\nc\n", &[(0, "a,b"), (5, ""), (6, "c")]),
            ("a,\"b\nc\"\nd\n", &[(0, "a,\"b\nc\""), (8, "d")]),
            ("a\nb", &[(0, "a"), (2, "!b"), (2, "b")]),
            ("a,\"b\nc\nd,\"e\"\nf\n", &[(0, "!a,\"b"), (5, "c"), (7, "d,\"e\""), (13, "f")]),
            ("a,\"b\nc\nd", &[(0, "!a,\"b"), (5, "c"), (7, "!d"), (7, "d")]),
            ("\"a\"b\nc\n", &[(0, "!\"a\"b"), (5, "c")]),
            ("\"a\n\"b\n\"c\n", &[(0, "!\"a"), (3, "!\"b"), (6, "!\"c")]),
            ("\"", &[(0, "!\"")]),
        ] {
            let expected: Vec<_> = expected.iter().map(|&(at, text)| (at, text.to_owned())).collect();
            for piece_bytes in 1..=text.len().max(1) {
                assert_eq!(cut(text, piece_bytes), expected, "{text:?} by {piece_bytes}");
            }
        }
    }
}
