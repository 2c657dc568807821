//! What the parsers of batches share: line numbers, and the refusal of text that is not UTF-8.

use crate::http::error::ApiError;

pub(crate) fn not_utf8(line: u64) -> ApiError {
    ApiError::BrokenBody(format!("line {line}: not UTF-8"))
}

/// How many lines end in this text.
pub(crate) fn line_ends(text: &[u8]) -> u64 {
    memchr::memchr_iter(b'\n', text).count() as u64
}
