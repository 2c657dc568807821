//! Guards cells that a spreadsheet would run as formulas with an apostrophe in front, against what OWASP calls
//! [CSV injection](https://owasp.org/www-community/attacks/CSV_Injection).
//!
//! A formula begins with `=`, `+`, `-`, `@`, a tab or a line end; with the full-width `＝`, `＋`, `－`, `＠`, which spreadsheets
//! of some languages read alike; and with any of these behind spaces or U+FEFF, which some importers trim. A sign alone or
//! in front of a plain number (`-12.5`, `+1e3`) is not a formula: nothing in it can run, and readers of the file need the
//! number.

use memchr::{memchr, memchr3};

use crate::csv::quote_state::QuoteState;

/// Turns a formula that follows it into text.
pub(super) const GUARD: u8 = b'\'';

/// A cell that may still be a formula after this many bytes counts as one, which bounds how much of a cell is held back.
const PREFIX_BYTES_MAX: u8 = 64;

/// Whether a spreadsheet would run the cell.
pub(super) fn is_formula(cell: &[u8]) -> bool {
    if !matches!(cell.first(), Some(b'=' | b'+' | b'-' | b'@' | b'\t' | b'\r' | b'\n' | b' ' | 0xEF)) {
        return false;
    }
    let mut prefix = Prefix::default();
    cell.iter().find_map(|&byte| prefix.step(byte)).unwrap_or_else(|| prefix.end())
}

/// The start of a cell, as far as it decides whether the cell is a formula.
#[derive(Debug, Clone, Copy, Default)]
struct Prefix {
    state: PrefixState,
    bytes: u8,
}

#[derive(Debug, Clone, Copy, Default)]
enum PrefixState {
    #[default]
    Spaces,
    /// The first byte of what may be a full-width sign or U+FEFF.
    Wide,
    /// The first two bytes of a full-width sign.
    WideSign,
    /// The first two bytes of U+FEFF.
    WideBom,
    /// From here on, what may be a number.
    Sign,
    Digits,
    SignAndPoint,
    Fraction,
    E,
    ESign,
    Exponent,
}

impl Prefix {
    /// Takes the next byte. Returns whether the cell is a formula once that is decided.
    fn step(&mut self, byte: u8) -> Option<bool> {
        self.state = match (self.state, byte) {
            (PrefixState::Spaces, b'=' | b'@' | b'\t' | b'\r' | b'\n')
            | (PrefixState::WideSign, 0x8B | 0x8D | 0x9D | 0xA0) => {
                return Some(true);
            }
            (PrefixState::Spaces, b' ') | (PrefixState::WideBom, 0xBF) => PrefixState::Spaces,
            (PrefixState::Spaces, b'+' | b'-') => PrefixState::Sign,
            (PrefixState::Spaces, 0xEF) => PrefixState::Wide,
            (PrefixState::Wide, 0xBC) => PrefixState::WideSign,
            (PrefixState::Wide, 0xBB) => PrefixState::WideBom,
            (PrefixState::Spaces | PrefixState::Wide | PrefixState::WideSign | PrefixState::WideBom, _) => {
                return Some(false);
            }
            (PrefixState::Sign | PrefixState::Digits, b'0'..=b'9') => PrefixState::Digits,
            (PrefixState::Sign, b'.') => PrefixState::SignAndPoint,
            (PrefixState::Digits, b'.') | (PrefixState::SignAndPoint | PrefixState::Fraction, b'0'..=b'9') => {
                PrefixState::Fraction
            }
            (PrefixState::Digits | PrefixState::Fraction, b'e' | b'E') => PrefixState::E,
            (PrefixState::E, b'+' | b'-') => PrefixState::ESign,
            (PrefixState::E | PrefixState::ESign | PrefixState::Exponent, b'0'..=b'9') => PrefixState::Exponent,
            _ => return Some(true),
        };
        self.bytes += 1;
        (self.bytes >= PREFIX_BYTES_MAX).then_some(true)
    }

    /// Whether the cell is a formula if it ends here.
    fn end(self) -> bool {
        match self.state {
            PrefixState::Spaces | PrefixState::Wide | PrefixState::WideSign | PrefixState::WideBom => false,
            PrefixState::Sign | PrefixState::Digits | PrefixState::Fraction | PrefixState::Exponent => false,
            PrefixState::SignAndPoint | PrefixState::E | PrefixState::ESign => true,
        }
    }
}

/// Guards each cell of CSV text that comes in pieces, and changes nothing else.
#[derive(Debug, Default)]
pub(crate) struct CellGuard {
    state: QuoteState,
    /// The start of a cell that is not decided yet, and its bytes so far.
    prefix: Option<Prefix>,
    held: Vec<u8>,
}

impl CellGuard {
    /// Takes the next piece, and appends what is decided.
    pub(crate) fn feed(&mut self, mut text: &[u8], out: &mut Vec<u8>) {
        while !text.is_empty() {
            // Text that can't change the state is copied at once.
            let plain = match self.state {
                QuoteState::Bare if self.prefix.is_none() => memchr3(b',', b'\n', b'\r', text).unwrap_or(text.len()),
                QuoteState::Quoted if self.prefix.is_none() => memchr(b'"', text).unwrap_or(text.len()),
                _ => 0,
            };
            out.extend_from_slice(&text[..plain]);
            text = &text[plain..];
            if let [byte, rest @ ..] = text {
                self.step(*byte, out);
                text = rest;
            }
        }
    }

    /// Appends what was held back.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        self.end_prefix(out);
    }

    fn step(&mut self, byte: u8, out: &mut Vec<u8>) {
        let before = self.state;
        // A carriage return outside quotes ends a row for some readers.
        let ends_row = byte == b'\r' && before != QuoteState::Quoted;
        self.state = if ends_row { QuoteState::CellStart } else { before.after(byte) };
        if self.state == QuoteState::CellStart {
            self.end_prefix(out);
            return out.push(byte);
        }
        let opens_quote = before == QuoteState::CellStart && self.state == QuoteState::Quoted;
        let is_content = !opens_quote && self.state != QuoteState::BehindQuote;
        if before == QuoteState::CellStart {
            self.prefix = Some(Prefix::default());
            if !is_content {
                return out.push(byte);
            }
        }
        let Some(prefix) = &mut self.prefix else { return out.push(byte) };
        self.held.push(byte);
        if is_content && let Some(is_formula) = prefix.step(byte) {
            self.decide(is_formula, out);
        }
    }

    fn end_prefix(&mut self, out: &mut Vec<u8>) {
        if let Some(prefix) = self.prefix {
            self.decide(prefix.end(), out);
        }
    }

    fn decide(&mut self, is_formula: bool, out: &mut Vec<u8>) {
        self.prefix = None;
        if is_formula {
            out.push(GUARD);
        }
        out.append(&mut self.held);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    #[allow(clippy::too_many_lines, reason = "a table of cases")]
    fn formulas_are_distinguished_from_text_and_numbers() {
        let long_number = format!("-{}", "1".repeat(64));
        let long_space = format!("{}x", " ".repeat(64));
        for formula in [
            "=1+1",
            "=",
            "+1+1",
            "-1+1",
            "@SUM(A1)",
            "\t=1",
            "\rx",
            "\nx",
            "\t",
            " =1",
            "   -A1",
            "  @x",
            "＝1+1",
            "＋1",
            "－1",
            "＠x",
            " ＝1",
            "\u{feff}=1+1",
            " \u{feff}\u{feff} -A1",
            "\u{feff}＝1",
            "\u{feff}\t",
            "-1.2.3",
            "-E5",
            "-1E",
            "-1e+",
            "-.",
            "+.e1",
            "--1",
            "-1 ",
            "-1,5",
            "-1%",
            "+49 30 1",
            "-x",
            "-\"1",
            &long_number,
            &long_space,
        ] {
            assert!(is_formula(formula.as_bytes()), "{formula:?}");
        }
        for harmless in [
            "",
            " ",
            "x",
            "1-1",
            "a=b",
            "'=1",
            "\"=1",
            "-",
            "+",
            "-1",
            "+1",
            " -12.5",
            "-.5",
            "-5.",
            "+1e3",
            "-1.5E-10",
            "\u{feff}",
            "\u{feff}x",
            "\u{feff}-1",
            "\u{fec0}=1",
            "\u{fefe}=1",
            "ｘ",
            "￥",
            "（=",
            "1\t=2",
            "a\n=1",
            "2026-11-24T10:51:10.423Z",
            "|x",
            "%x",
            ";=1",
        ] {
            assert!(!is_formula(harmless.as_bytes()), "{harmless:?}");
        }
    }

    fn guarded(pieces: &[&[u8]]) -> Vec<u8> {
        let (mut guard, mut out) = (CellGuard::default(), Vec::new());
        pieces.iter().for_each(|piece| guard.feed(piece, &mut out));
        guard.finish(&mut out);
        out
    }

    #[test]
    fn each_cell_is_guarded_inside_its_quotes() {
        for (text, expected) in [
            ("", ""),
            ("a,=1,b\n", "a,'=1,b\n"),
            ("=1,-1,\"=1\",\"-1\"\r\n-1+1\r\n", "'=1,-1,\"'=1\",\"-1\"\r\n'-1+1\r\n"),
            ("\"-1\"\"x\",\"-1\"x,\"\"=\n", "\"'-1\"\"x\",\"'-1\"x,\"'\"=\n"),
            ("\"\n\",\"\r=\",\"\t\",\t\n", "\"'\n\",\"'\r=\",\"'\t\",'\t\n"),
            ("\n\n=,\n,=", "\n\n'=,\n,'="),
            ("a\r=1\rb", "a\r'=1\rb"),
            ("\"a\n=1\",\"a,=1\"\n", "\"a\n=1\",\"a,=1\"\n"),
            ("5\" x,=\n", "5\" x,'=\n"),
            ("  =1,   ,\"  \",  -1\n", "'  =1,   ,\"  \",  -1\n"),
            ("－,ｘ,\"＝\"\n", "'－,ｘ,\"'＝\"\n"),
            ("a,\u{feff}=1,\"\u{feff}=1\"\n\u{feff}=1,\u{feff}", "a,'\u{feff}=1,\"'\u{feff}=1\"\n'\u{feff}=1,\u{feff}"),
            ("-12.5", "-12.5"),
            ("-12.", "-12."),
            ("-1e", "'-1e"),
            ("\"-1", "\"-1"),
            ("'=1", "'=1"),
        ] {
            assert_eq!(String::from_utf8_lossy(&guarded(&[text.as_bytes()])), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn result_is_independent_of_piece_boundaries_and_repetition(
            text in "[-+=@,\"'\r\n\t 1e.x＝é\u{feff}]{0,40}", cuts in proptest::array::uniform2(0_usize..80),
        ) {
            let text = text.as_bytes();
            let whole = guarded(&[text]);
            let [first, second] = cuts.map(|cut| cut.min(text.len()));
            let (first, second) = (first.min(second), first.max(second));
            prop_assert_eq!(&guarded(&[&text[..first], &text[first..second], &text[second..]]), &whole);
            prop_assert_eq!(&guarded(&[&whole]), &whole);
        }

        #[test]
        fn guarded_text_equals_text_written_with_guarded_cells(
            cells in proptest::collection::vec("[-+=@,\"'\r\n\t 1e.x＝é\u{feff}]{0,5}", 2..6),
        ) {
            let write = |cells: &[String]| {
                let mut writer = csv::Writer::from_writer(Vec::new());
                writer.write_record(cells).expect("written");
                writer.into_inner().expect("written")
            };
            let guard = |cell: &String| if is_formula(cell.as_bytes()) { format!("'{cell}") } else { cell.clone() };
            let expected: Vec<_> = cells.iter().map(guard).collect();
            prop_assert_eq!(guarded(&[&write(&cells)]), write(&expected));
        }
    }
}
