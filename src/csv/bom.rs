//! The byte order mark, which belongs to a file or a body, not to its first cell. Within a file, U+FEFF is text.

use std::io::Read;

/// U+FEFF in UTF-8.
pub(crate) const BOM: &[u8] = "\u{feff}".as_bytes();

/// Makes a new or reset reader keep a U+FEFF in front of the first cell: after a line end, it no longer skips one.
pub(crate) fn keep_bom(reader: &mut csv_core::Reader) {
    reader.read_record(b"\n", &mut [0], &mut [0]);
}

/// Reads the records of text that does not begin a file.
pub(crate) fn record_reader(text: &[u8]) -> csv::Reader<impl Read> {
    csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(b"\n".chain(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_bom_of_a_cell_is_kept() {
        for (text, expected) in [
            ("", &[][..]),
            ("\u{feff}", &["\u{feff}"]),
            ("\u{feff}a,\u{feff}b\r\n", &["\u{feff}a", "\u{feff}b"]),
            ("\"\u{feff}a\",b\n", &["\u{feff}a", "b"]),
            ("\u{feff}\"a,b\"\n", &["\u{feff}\"a", "b\""]),
        ] {
            let record = record_reader(text.as_bytes()).records().next().map(|record| record.expect("a record"));
            assert_eq!(record.unwrap_or_default().iter().collect::<Vec<_>>(), expected, "{text:?}");
        }
    }
}
