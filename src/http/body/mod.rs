//! Request bodies: receiving them within bounds, and parsing them.

pub(crate) mod append;
pub(crate) mod batch;
mod batch_csv;
mod batch_json;
pub(crate) mod batch_rows;
pub(crate) mod budget;
mod encoding;
pub(crate) mod media_type;
pub(crate) mod read;
mod text;
