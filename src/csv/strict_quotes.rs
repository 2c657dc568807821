//! Checks quotes and line ends strictly by RFC 4180, since CSV readers disagree about everything else.

use memchr::{memchr, memchr_iter, memchr2};

use crate::csv::quote_state::QuoteState;

/// What is wrong with a text's quotes or line ends, and in which of its lines, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QuoteFault {
    /// Something other than a comma or a line end follows a closing quote.
    TextBehindQuote(u64),
    /// A quote is open at the end; the line where it opens.
    NotClosed(u64),
    /// A carriage return outside quotes that no line feed follows.
    LoneCarriageReturn(u64),
}

/// Finds the first fault in a text that comes in pieces. A quote inside an unquoted cell is text.
#[derive(Debug)]
pub(crate) struct QuoteCheck {
    state: QuoteState,
    line: u64,
    /// The line where the last quote opened.
    opened: u64,
    /// Whether a carriage return outside quotes must be part of a line end. Otherwise it is text.
    refuses_lone_cr: bool,
    /// The last byte was a carriage return that must be part of a line end.
    behind_cr: bool,
}

impl Default for QuoteCheck {
    fn default() -> Self {
        Self { state: QuoteState::CellStart, line: 1, opened: 1, refuses_lone_cr: false, behind_cr: false }
    }
}

impl QuoteCheck {
    /// For text that is parsed by readers to which a lone carriage return is a line end, or is not: both must read the same rows.
    pub(crate) fn refusing_lone_cr() -> Self {
        Self { refuses_lone_cr: true, ..Self::default() }
    }

    /// The line of the next byte.
    pub(crate) fn line(&self) -> u64 {
        self.line
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// The first fault.
    pub(crate) fn feed(&mut self, mut text: &[u8]) -> Result<(), QuoteFault> {
        while let [byte, rest @ ..] = text {
            if std::mem::take(&mut self.behind_cr) && *byte != b'\n' {
                return Err(QuoteFault::LoneCarriageReturn(self.line));
            }
            let plain = self.plain_bytes(text);
            if plain == 0 {
                self.step(*byte)?;
                text = rest;
                continue;
            }
            if self.state != QuoteState::Quoted {
                self.state = QuoteState::Bare.after(text[plain - 1]);
            }
            self.line += memchr_iter(b'\n', &text[..plain]).count() as u64;
            text = &text[plain..];
        }
        Ok(())
    }

    /// How much of the text can be skipped: it holds no quote, nor a carriage return that matters.
    fn plain_bytes(&self, text: &[u8]) -> usize {
        let special = match self.state {
            QuoteState::BehindQuote => Some(0),
            QuoteState::CellStart | QuoteState::Bare if self.refuses_lone_cr => memchr2(b'"', b'\r', text),
            QuoteState::CellStart | QuoteState::Bare | QuoteState::Quoted => memchr(b'"', text),
        };
        special.unwrap_or(text.len())
    }

    fn step(&mut self, byte: u8) -> Result<(), QuoteFault> {
        let before = self.state;
        // guard: lone_cr: a row is not cut at a carriage return that some readers take for a line end
        if byte == b'\r' && self.refuses_lone_cr && before != QuoteState::Quoted {
            self.behind_cr = true;
            return Ok(());
        }
        if before == QuoteState::BehindQuote && byte == b'\r' {
            // The first half of a line end.
            return Ok(());
        }
        self.state = before.after(byte);
        match (before, self.state) {
            (QuoteState::CellStart, QuoteState::Quoted) => self.opened = self.line,
            (QuoteState::BehindQuote, QuoteState::Bare) => return Err(QuoteFault::TextBehindQuote(self.line)),
            _ => {}
        }
        self.line += u64::from(byte == b'\n');
        Ok(())
    }

    /// Whether the text may end here.
    pub(crate) fn end(&self) -> Result<(), QuoteFault> {
        match self.state {
            QuoteState::Quoted => Err(QuoteFault::NotClosed(self.opened)),
            _ if self.behind_cr => Err(QuoteFault::LoneCarriageReturn(self.line)),
            QuoteState::CellStart | QuoteState::Bare | QuoteState::BehindQuote => Ok(()),
        }
    }
}

/// Finds the first fault in a whole text.
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
    fn first_quote_fault_is_found_with_its_line() {
        for sound in ["", "a,b\n", "\"a\nb\"\"\",\"\"\r\nc,5\" pipe\n", "\"a\""] {
            assert_eq!(check_quotes(sound.as_bytes()), Ok(()), "{sound:?}");
        }
        assert_eq!(check_quotes(b"\"a\nb\"\n\"c\"d\n"), Err(QuoteFault::TextBehindQuote(3)));
        assert_eq!(check_quotes(b"a\n\"b\"\"\nc\n"), Err(QuoteFault::NotClosed(2)));
        assert_eq!(check_quotes(b"a\"b\n\"c\"\r\n\"d\" \n"), Err(QuoteFault::TextBehindQuote(3)));
    }
}
