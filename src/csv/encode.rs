//! Encodes cells as RFC 4180 text.

use crate::csv::{
    bom::BOM,
    formula_guard::{GUARD, is_formula},
    rows::GuardPositions,
};

/// Appends cells with commas between them and no line ending. An empty cell that is `alone` in its row is quoted, since the
/// row would be a blank line. With `guards`, formulas are guarded, and the position of each guard in `out` is added there.
pub(super) fn encode_cells<'a>(
    cells: impl Iterator<Item = &'a str>,
    alone: bool,
    out: &mut Vec<u8>,
    mut guards: Option<&mut GuardPositions>,
) {
    let start = out.len();
    for (nth, cell) in cells.enumerate() {
        if nth > 0 {
            out.push(b',');
        }
        encode_cell(cell.as_bytes(), out, guards.as_deref_mut());
    }
    if alone && out.len() == start {
        out.extend_from_slice(b"\"\"");
    }
}

fn encode_cell(cell: &[u8], out: &mut Vec<u8>, guards: Option<&mut GuardPositions>) {
    // Readers skip an unquoted U+FEFF at the start of a file as a BOM, and some at the start of a line.
    let is_bare = !cell.starts_with(BOM)
        && memchr::memchr3(b',', b'"', b'\n', cell).or_else(|| memchr::memchr(b'\r', cell)).is_none();
    if !is_bare {
        out.push(b'"');
    }
    if let Some(guards) = guards.filter(|_| is_formula(cell)) {
        guards.push(out.len());
        out.push(GUARD);
    }
    if is_bare {
        return out.extend_from_slice(cell);
    }
    for (nth, part) in cell.split(|&byte| byte == b'"').enumerate() {
        if nth > 0 {
            out.extend_from_slice(b"\"\"");
        }
        out.extend_from_slice(part);
    }
    out.push(b'"');
}

/// Encodes one cell of a row with several cells.
pub fn quote(cell: &str) -> Box<[u8]> {
    let mut quoted = Vec::new();
    encode_cell(cell.as_bytes(), &mut quoted, None);
    quoted.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cell_with_leading_bom_is_quoted_and_read_back() {
        for cell in ["\u{feff}", "\u{feff}a", "\u{feff}\u{feff}", "\u{feff}\"a,\n\""] {
            for cells in [vec![cell], vec![cell, "b"], vec!["b", cell], vec![cell, cell]] {
                let mut encoded = Vec::new();
                encode_cells(cells.iter().copied(), cells.len() == 1, &mut encoded, None);
                assert!(!encoded.starts_with(BOM) && memchr::memmem::find(&encoded, ",\u{feff}".as_bytes()).is_none());
                let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(&*encoded);
                let record = reader.records().next().expect("a record").expect("UTF-8");
                assert_eq!(record.iter().collect::<Vec<_>>(), cells);
            }
        }
        let (mut encoded, mut guards) = (Vec::new(), GuardPositions::default());
        encode_cells(["\u{feff}=1", "\u{feff}1"].into_iter(), false, &mut encoded, Some(&mut guards));
        assert_eq!(String::from_utf8(encoded).expect("UTF-8"), "\"'\u{feff}=1\",\"\u{feff}1\"");
        assert_eq!(guards.iter().collect::<Vec<_>>(), [1]);
    }

    #[test]
    fn cells_are_quoted_as_csv_crate_does() {
        let samples = ["", "a", "5\" pipe", "\"", "a,b", "two\r\nlines", "\r", "\n", " å ", "\"\",\"\""];
        for (first, second) in samples.iter().flat_map(|first| samples.iter().map(move |second| (*first, *second))) {
            for cells in [vec![first], vec![first, second], vec![first, second, first]] {
                let mut writer = csv::Writer::from_writer(Vec::new());
                writer.write_record(&cells).expect("written");
                let expected = String::from_utf8(writer.into_inner().expect("written")).expect("UTF-8");
                let mut encoded = Vec::new();
                encode_cells(cells.iter().copied(), cells.len() == 1, &mut encoded, None);
                encoded.push(b'\n');
                assert_eq!(String::from_utf8(encoded).expect("UTF-8"), expected);
            }
        }
    }
}
