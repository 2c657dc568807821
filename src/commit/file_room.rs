//! How many bytes the rows of one request may take in the file.

use crate::csv::{
    encode::quote,
    rows::Rows,
    schema::{Schema, ServiceCells},
};

/// Every timestamp has this length.
const TIMESTAMP: &str = "2026-11-30T08:34:04.921Z";

/// The bound of one request, and what each of its rows takes besides its data cells.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FileRoom {
    bytes_max: u64,
    row_bytes: u64,
}

impl FileRoom {
    /// The shortest token and line end are counted, so that nothing that fits is refused.
    pub(crate) fn new(bytes_max: u64, schema: &Schema, replica: &str, key: Option<&str>) -> Self {
        let (replica, key) = (quote(replica), key.map(quote).unwrap_or_default());
        let service = ServiceCells { timestamp: TIMESTAMP, replica: &replica, token: 1, key: &key };
        Self { bytes_max, row_bytes: (schema.service_bytes(&service) + "\n".len()) as u64 }
    }

    pub(crate) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// What these rows will take at least.
    pub(crate) fn line_bytes(&self, rows: &Rows) -> u64 {
        rows.cell_bytes() as u64 + rows.len() as u64 * self.row_bytes
    }
}
