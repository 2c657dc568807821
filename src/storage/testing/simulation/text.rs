//! What a CSV's text contains.

use crate::csv::scanner::split_rows;

pub(super) fn contains(text: &[u8], part: &[u8]) -> bool {
    part.is_empty() || text.windows(part.len()).any(|window| window == part)
}

/// Whether the text has the part, apart from bytes that a power cut made zero.
pub(super) fn contains_remnant(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window.iter().zip(part).all(|(was, is)| was == is || *is == 0))
}

/// Whether the CSV ends with a whole row. A well-behaved foreign writer appends only then.
pub(super) fn ends_whole(csv: &[u8]) -> bool {
    csv.is_empty() || csv.ends_with(b"\n") && split_rows(csv).1.is_empty()
}

pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub(super) fn cells_of(row: &[u8]) -> Vec<String> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(row);
    let record = reader.records().next().expect("a row").expect("the CSV parses");
    record.iter().map(str::to_owned).collect()
}
