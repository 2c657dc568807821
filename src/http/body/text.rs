//! What the parsers of bodies share: the bound of cells, line numbers, and the refusal of text that is not UTF-8.

use crate::http::error::ApiError;

/// The most cells of one row. It bounds the memory for what is kept of each cell, which may otherwise exceed the size of the body.
pub(crate) const CELLS_MAX: usize = 1 << 20;

pub(crate) fn not_utf8(line: u64) -> ApiError {
    ApiError::BrokenBody(format!("line {line}: not UTF-8"))
}

/// How many lines end in this text.
pub(crate) fn line_ends(text: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', text).count() as u64
}
