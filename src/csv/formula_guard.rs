//! Cells that a spreadsheet would run as formulas, and the apostrophe in front that keeps it from that: what OWASP calls
//! [CSV injection](https://owasp.org/www-community/attacks/CSV_Injection).
//!
//! A formula begins with `=`, `+`, `-`, `@`, a tab or a line end; with the full-width `＝`, `＋`, `－`, `＠`, which spreadsheets
//! of some languages read alike; and with any of these behind spaces, which some importers trim. A sign alone or in front of
//! a plain number (`-12.5`, `+1e3`) is none: nothing in it can run, and whoever reads the file wants the number.

use memchr::{memchr, memchr3};

/// In front of a formula, it makes text of it.
pub(crate) const GUARD: u8 = b'\'';

/// What is not known to be harmless after so many bytes is taken for a formula, so that a cell need not be kept to be judged.
const LOOK_BYTES_MAX: u8 = 64;

/// Whether a spreadsheet would run the cell.
pub(crate) fn is_formula(cell: &[u8]) -> bool {
    if !matches!(cell.first(), Some(b'=' | b'+' | b'-' | b'@' | b'\t' | b'\r' | b'\n' | b' ' | 0xEF)) {
        return false;
    }
    let mut look = Look::default();
    cell.iter().find_map(|&byte| look.step(byte)).unwrap_or_else(|| look.end())
}

/// Judges a cell by its first bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Look {
    seen: Seen,
    bytes: u8,
}

#[derive(Debug, Clone, Copy, Default)]
enum Seen {
    #[default]
    Spaces,
    /// The first byte, the first two, of what may be a full-width sign.
    Wide,
    WideSign,
    /// A number's parts so far.
    Sign,
    Digits,
    SignAndPoint,
    Fraction,
    E,
    ESign,
    Exponent,
}

impl Look {
    /// Takes the next byte; says what the cell is once that is sure.
    fn step(&mut self, byte: u8) -> Option<bool> {
        self.seen = match (self.seen, byte) {
            (Seen::Spaces, b'=' | b'@' | b'\t' | b'\r' | b'\n') | (Seen::WideSign, 0x8B | 0x8D | 0x9D | 0xA0) => {
                return Some(true);
            }
            (Seen::Spaces, b' ') => Seen::Spaces,
            (Seen::Spaces, b'+' | b'-') => Seen::Sign,
            (Seen::Spaces, 0xEF) => Seen::Wide,
            (Seen::Wide, 0xBC) => Seen::WideSign,
            (Seen::Spaces | Seen::Wide | Seen::WideSign, _) => return Some(false),
            (Seen::Sign | Seen::Digits, b'0'..=b'9') => Seen::Digits,
            (Seen::Sign, b'.') => Seen::SignAndPoint,
            (Seen::Digits, b'.') | (Seen::SignAndPoint | Seen::Fraction, b'0'..=b'9') => Seen::Fraction,
            (Seen::Digits | Seen::Fraction, b'e' | b'E') => Seen::E,
            (Seen::E, b'+' | b'-') => Seen::ESign,
            (Seen::E | Seen::ESign | Seen::Exponent, b'0'..=b'9') => Seen::Exponent,
            _ => return Some(true),
        };
        self.bytes += 1;
        (self.bytes >= LOOK_BYTES_MAX).then_some(true)
    }

    /// What the cell is if it ends here.
    fn end(self) -> bool {
        match self.seen {
            Seen::Spaces | Seen::Wide | Seen::WideSign => false,
            Seen::Sign | Seen::Digits | Seen::Fraction | Seen::Exponent => false,
            Seen::SignAndPoint | Seen::E | Seen::ESign => true,
        }
    }
}

/// Guards each cell of CSV text that comes in pieces, and changes nothing else.
#[derive(Debug, Default)]
pub(crate) struct CellGuard {
    at: At,
    /// At a cell that is not judged yet, and its bytes so far.
    look: Option<Look>,
    held: Vec<u8>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq)]
enum At {
    #[default]
    CellStart,
    Bare,
    Quoted,
    BehindQuote,
}

impl CellGuard {
    /// Takes the next piece, and appends what is sure by now.
    pub(crate) fn feed(&mut self, mut text: &[u8], out: &mut Vec<u8>) {
        while !text.is_empty() {
            // What can't change the state need not be walked through.
            let plain = match self.at {
                At::Bare if self.look.is_none() => memchr3(b',', b'\n', b'\r', text).unwrap_or(text.len()),
                At::Quoted if self.look.is_none() => memchr(b'"', text).unwrap_or(text.len()),
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
        self.end_look(out);
    }

    fn step(&mut self, byte: u8, out: &mut Vec<u8>) {
        let before = std::mem::replace(&mut self.at, At::CellStart);
        let is_content;
        (self.at, is_content) = match (before, byte) {
            (At::CellStart, b'"') => (At::Quoted, false),
            (At::Quoted, b'"') => (At::BehindQuote, false),
            (At::BehindQuote, b'"') | (At::Quoted, _) => (At::Quoted, true),
            // A carriage return that is not quoted ends a row for some readers.
            (_, b',' | b'\n' | b'\r') => (At::CellStart, false),
            _ => (At::Bare, true),
        };
        if self.at == At::CellStart {
            self.end_look(out);
            return out.push(byte);
        }
        if before == At::CellStart {
            self.look = Some(Look::default());
            if !is_content {
                return out.push(byte);
            }
        }
        let Some(look) = &mut self.look else { return out.push(byte) };
        self.held.push(byte);
        if is_content && let Some(is_formula) = look.step(byte) {
            self.settle(is_formula, out);
        }
    }

    fn end_look(&mut self, out: &mut Vec<u8>) {
        if let Some(look) = self.look {
            self.settle(look.end(), out);
        }
    }

    fn settle(&mut self, is_formula: bool, out: &mut Vec<u8>) {
        self.look = None;
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
    fn a_formula_is_told_from_text_and_from_numbers() {
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
    fn each_cell_of_a_text_is_guarded_within_its_quotes_and_nothing_else_changes() {
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
        fn it_does_not_matter_where_a_text_is_cut_nor_how_often_it_is_guarded(
            text in "[-+=@,\"'\r\n\t 1e.x＝é]{0,40}", cuts in proptest::array::uniform2(0_usize..80),
        ) {
            let text = text.as_bytes();
            let whole = guarded(&[text]);
            let [first, second] = cuts.map(|cut| cut.min(text.len()));
            let (first, second) = (first.min(second), first.max(second));
            prop_assert_eq!(&guarded(&[&text[..first], &text[first..second], &text[second..]]), &whole);
            prop_assert_eq!(&guarded(&[&whole]), &whole);
        }

        #[test]
        fn what_is_guarded_on_its_way_out_has_the_cells_that_it_would_have_been_written_with(
            cells in proptest::collection::vec("[-+=@,\"'\r\n\t 1e.x＝é]{0,5}", 2..6),
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
