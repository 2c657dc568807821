//! Why a header is not valid.

use crate::csv::strict_quotes::QuoteFault;

/// Why a header is not valid.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    /// A column without a name.
    #[error("column {0} of the header has no name")]
    Empty(usize),
    /// Two columns with one name.
    #[error("the header names column {0:?} twice")]
    Duplicate(String),
    /// Not UTF-8.
    #[error("the header is not UTF-8")]
    NotUtf8,
    /// Blank, or several records with a carriage return between them.
    #[error("the first line is not one CSV record; accepted: a header that ends with LF or CRLF")]
    NotOneRecord,
    /// A NUL byte, as a power cut leaves it.
    #[error("the header has NUL bytes; write it anew, or move the file away")]
    Nul,
    /// A quote that opens in the header and is not closed.
    #[error("a quote in the header is never closed")]
    OpenQuote,
    /// Text behind a closing quote, which CSV readers read differently.
    #[error("the header has text behind a closing quote")]
    TextBehindQuote,
}

impl From<QuoteFault> for HeaderError {
    fn from(fault: QuoteFault) -> Self {
        match fault {
            QuoteFault::TextBehindQuote(_) => Self::TextBehindQuote,
            QuoteFault::NotClosed(_) => Self::OpenQuote,
            QuoteFault::LoneCarriageReturn(_) => Self::NotOneRecord,
        }
    }
}
