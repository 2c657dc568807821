//! CSV: the schema of a file, encoding, quoting, formulas, and splitting text into rows.

pub(crate) mod bom;
pub mod encode;
pub(crate) mod formula_guard;
pub mod idempotency_key;
mod large_buffer;
mod quote_state;
pub(crate) mod row_splitter;
pub mod rows;
pub(crate) mod scanner;
pub mod schema;
pub(crate) mod strict_quotes;
mod varints;
