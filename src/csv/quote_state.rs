//! Where a position in CSV text is in relation to quotes, by RFC 4180.

/// The state after a prefix of CSV text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum QuoteState {
    #[default]
    CellStart,
    /// Inside a cell that does not begin with a quote. A quote there is text.
    Bare,
    Quoted,
    /// After a quote inside a quoted cell: it closes the cell, or is the first half of an escaped quote.
    BehindQuote,
}

impl QuoteState {
    /// The state after the next byte. A carriage return counts as text: callers that see a line end in it decide before.
    pub(super) fn after(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::CellStart | Self::BehindQuote, b'"') => Self::Quoted,
            (Self::Quoted, b'"') => Self::BehindQuote,
            (Self::Quoted, _) => Self::Quoted,
            (_, b',' | b'\n') => Self::CellStart,
            _ => Self::Bare,
        }
    }
}
