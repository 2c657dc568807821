//! The beginning of a text, for a message.

/// How much of a text is shown, in bytes.
const EXCERPT_BYTES: usize = 60;

/// The beginning of a text, with control characters escaped.
pub(crate) fn excerpt(text: &[u8]) -> String {
    let (start, dots) = if text.len() > EXCERPT_BYTES { (&text[..EXCERPT_BYTES], "…") } else { (text, "") };
    format!("{}{dots}", String::from_utf8_lossy(start).escape_debug())
}
