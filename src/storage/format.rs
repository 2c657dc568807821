//! How the CSV is laid out, as its own first record tells.

use std::path::Path;

use std::sync::Arc;

use crate::csv::schema::Schema;
use crate::{
    csv::{row_splitter::bare, scanner},
    storage::{
        OpenError,
        disk::{Disk, Place, Stretch},
    },
};

/// The longest header record that is read.
const HEADER_BYTES_MAX: u64 = 1 << 20;
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Columns, line ending, and where rows begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) schema: Arc<Schema>,
    pub(crate) line_end: &'static [u8],
    /// Columns of a headerless file, once its first row is known.
    pub(crate) headerless_width: Option<usize>,
    /// After a byte order mark.
    pub(crate) start: u64,
}

impl Format {
    /// Reads the file's first record; `new` is what a new file would have, and says whether there is a header at all.
    pub(crate) fn read(disk: &impl Disk, path: &Path, new: &Arc<Schema>) -> Result<Self, OpenError> {
        let fail = |e| OpenError::io(path, "read", e);
        let mark = disk.read(Place::Csv, 0, BYTE_ORDER_MARK.len() as u64).map_err(fail)?;
        let start = if mark == BYTE_ORDER_MARK { mark.len() as u64 } else { 0 };
        let stretch = Stretch::new(disk, Place::Csv, start, start + HEADER_BYTES_MAX);
        let (first, width) = scanner::first_record(stretch).map_err(fail)?;
        if first.len() as u64 >= HEADER_BYTES_MAX {
            return Err(OpenError::HeaderTooLong(path.to_owned(), HEADER_BYTES_MAX));
        }
        let line_end: &[u8] = if first.ends_with(b"\r\n") { b"\r\n" } else { b"\n" };
        if new.width().is_none() {
            let headerless_width = (!first.is_empty()).then_some(width);
            return Ok(Self { schema: Arc::clone(new), line_end, headerless_width, start });
        }
        let schema = Schema::from_header(bare(&first)).map_err(|e| OpenError::Header(path.to_owned(), e))?;
        Ok(Self { schema: Arc::new(schema), line_end, headerless_width: None, start })
    }

    /// How many cells a whole row has, as far as is known.
    pub(crate) fn width(&self) -> Option<usize> {
        self.schema.width().or(self.headerless_width)
    }
}
