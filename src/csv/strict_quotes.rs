//! CSV's quotes, strictly by RFC 4180: readers differ in what they make of anything else.

use memchr::{memchr, memchr_iter};

/// What is wrong with a text's quotes, and in which of its lines, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QuoteFault {
    /// Something other than a comma or a line end follows a closing quote.
    TextBehindQuote(u64),
    /// A quote is open at the end; the line where it opens.
    NotClosed(u64),
}

/// Looks for the first fault in a text that comes in pieces. A quote in the middle of a bare cell is text.
#[derive(Debug)]
pub(crate) struct QuoteCheck {
    at: At,
    line: u64,
    /// Where the last quote was opened.
    opened: u64,
}

#[derive(Debug, Clone, Copy)]
enum At {
    CellStart,
    Bare,
    Quoted,
    BehindQuote,
}

impl Default for QuoteCheck {
    fn default() -> Self {
        Self { at: At::CellStart, line: 1, opened: 1 }
    }
}

impl QuoteCheck {
    /// The line that the next byte is in.
    pub(crate) fn line(&self) -> u64 {
        self.line
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// The first fault.
    pub(crate) fn feed(&mut self, mut text: &[u8]) -> Result<(), QuoteFault> {
        while let [byte, rest @ ..] = text {
            // What lies before the next quote need not be walked through.
            let plain = match self.at {
                At::BehindQuote => 0,
                At::CellStart | At::Bare | At::Quoted => memchr(b'"', text).unwrap_or(text.len()),
            };
            if plain == 0 {
                self.step(*byte)?;
                text = rest;
                continue;
            }
            if !matches!(self.at, At::Quoted) {
                self.at = if matches!(text[plain - 1], b',' | b'\n') { At::CellStart } else { At::Bare };
            }
            self.line += memchr_iter(b'\n', &text[..plain]).count() as u64;
            text = &text[plain..];
        }
        Ok(())
    }

    fn step(&mut self, byte: u8) -> Result<(), QuoteFault> {
        self.at = match (self.at, byte) {
            (At::CellStart, b'"') => {
                self.opened = self.line;
                At::Quoted
            }
            (At::BehindQuote, b'"') => At::Quoted,
            (At::Quoted, b'"') => At::BehindQuote,
            (At::Quoted, _) => At::Quoted,
            (_, b',' | b'\n') => At::CellStart,
            (At::BehindQuote, b'\r') => At::BehindQuote,
            (At::BehindQuote, _) => return Err(QuoteFault::TextBehindQuote(self.line)),
            (At::CellStart | At::Bare, _) => At::Bare,
        };
        self.line += u64::from(byte == b'\n');
        Ok(())
    }

    /// Whether the text may end here.
    pub(crate) fn end(&self) -> Result<(), QuoteFault> {
        if matches!(self.at, At::Quoted) { Err(QuoteFault::NotClosed(self.opened)) } else { Ok(()) }
    }
}

/// Looks for the first fault in a whole text.
///
/// # Errors
/// The fault.
pub(crate) fn check_quotes(text: &[u8]) -> Result<(), QuoteFault> {
    let mut check = QuoteCheck::default();
    check.feed(text)?;
    check.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_fault_is_found_in_its_line() {
        for sound in ["", "a,b\n", "\"a\nb\"\"\",\"\"\r\nc,5\" pipe\n", "\"a\""] {
            assert_eq!(check_quotes(sound.as_bytes()), Ok(()), "{sound:?}");
        }
        assert_eq!(check_quotes(b"\"a\nb\"\n\"c\"d\n"), Err(QuoteFault::TextBehindQuote(3)));
        assert_eq!(check_quotes(b"a\n\"b\"\"\nc\n"), Err(QuoteFault::NotClosed(2)));
        assert_eq!(check_quotes(b"a\"b\n\"c\"\r\n\"d\" \n"), Err(QuoteFault::TextBehindQuote(3)));
    }
}
