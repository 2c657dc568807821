//! CSV's quotes, strictly by RFC 4180: readers differ in what they make of anything else.

/// What is wrong with a text's quotes, and in which of its lines, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QuoteFault {
    /// Something other than a comma or a line end follows a closing quote.
    TextBehindQuote(u64),
    /// A quote is open at the end; the line where it opens.
    NotClosed(u64),
}

/// Looks for the first fault. A quote in the middle of a bare cell is text.
///
/// # Errors
/// The fault.
pub(crate) fn check_quotes(text: &[u8]) -> Result<(), QuoteFault> {
    #[derive(Clone, Copy)]
    enum At {
        CellStart,
        Bare,
        Quoted,
        BehindQuote,
    }
    let (mut at, mut line, mut opened) = (At::CellStart, 1, 1);
    for &byte in text {
        at = match (at, byte) {
            (At::CellStart, b'"') => {
                opened = line;
                At::Quoted
            }
            (At::BehindQuote, b'"') => At::Quoted,
            (At::Quoted, b'"') => At::BehindQuote,
            (At::Quoted, _) => At::Quoted,
            (_, b',' | b'\n') => At::CellStart,
            (At::BehindQuote, b'\r') => At::BehindQuote,
            (At::BehindQuote, _) => return Err(QuoteFault::TextBehindQuote(line)),
            (At::CellStart | At::Bare, _) => At::Bare,
        };
        line += u64::from(byte == b'\n');
    }
    if matches!(at, At::Quoted) { Err(QuoteFault::NotClosed(opened)) } else { Ok(()) }
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
    }
}
