//! CSV: the schema of a file, encoding, quoting, formulas, and splitting text into rows.

pub(crate) mod bom;
pub(crate) mod cell_pieces;
pub mod encode;
pub(crate) mod excerpt;
pub(crate) mod formula_guard;
pub mod header_error;
pub mod idempotency_key;
mod large_buffer;
mod quote_state;
pub(crate) mod row_splitter;
pub mod rows;
pub(crate) mod scanner;
pub mod schema;
pub(crate) mod strict_quotes;
pub(crate) mod suspect_header;
mod varints;
