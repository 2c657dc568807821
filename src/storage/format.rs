//! How the CSV is laid out, as its first record tells.

use std::{path::Path, sync::Arc};

use crate::{
    csv::{
        bom::BOM, header_error::HeaderError, row_splitter::without_line_end, scanner, schema::Schema,
        strict_quotes::check_quotes,
    },
    storage::{
        disk::{Disk, FileKind, FileRange},
        error::OpenError,
    },
};

/// The longest accepted header record.
const HEADER_BYTES_MAX: u64 = 1 << 20;

/// Columns, line ending, and where rows begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Format {
    pub(crate) schema: Arc<Schema>,
    pub(crate) line_end: &'static [u8],
    /// Columns of a headerless file, once its first row is known.
    pub(crate) headerless_width: Option<usize>,
    /// Offset of the first record, after a BOM.
    pub(crate) start: u64,
    /// Offset of the first row, after the header.
    pub(crate) rows_start: u64,
}

impl Format {
    /// Reads the file's first record. `new_file` is the schema that a new file gets; it also says whether there is a header.
    pub(crate) fn read(disk: &impl Disk, path: &Path, new_file: &Arc<Schema>) -> Result<Self, OpenError> {
        let fail = |e| OpenError::io(path, "read", e);
        let first_bytes = disk.read(FileKind::Csv, 0, BOM.len() as u64).map_err(fail)?;
        let start = if first_bytes == BOM { BOM.len() as u64 } else { 0 };
        let range = FileRange::new(disk, FileKind::Csv, start, start + HEADER_BYTES_MAX);
        let (first, width) = scanner::first_record(range).map_err(fail)?;
        let header_fault = |fault| OpenError::Header(path.to_owned(), fault);
        // guard: header_nul: the first row does not become the header of a file whose beginning a power cut has lost
        if first.contains(&0) {
            return Err(header_fault(HeaderError::Nul));
        }
        if first.len() as u64 >= HEADER_BYTES_MAX {
            return Err(OpenError::HeaderTooLong(path.to_owned(), HEADER_BYTES_MAX));
        }
        let line_end: &[u8] = if first.ends_with(b"\r\n") { b"\r\n" } else { b"\n" };
        if new_file.width().is_none() {
            let headerless_width = (!first.is_empty()).then_some(width);
            return Ok(Self { schema: Arc::clone(new_file), line_end, headerless_width, start, rows_start: start });
        }
        check_quotes(&first).map_err(|fault| header_fault(fault.into()))?;
        let schema = Schema::from_header(without_line_end(&first)).map_err(header_fault)?;
        let rows_start = start + first.len() as u64;
        Ok(Self { schema: Arc::new(schema), line_end, headerless_width: None, start, rows_start })
    }

    /// How many cells a whole row has, if that is known yet.
    pub(crate) fn width(&self) -> Option<usize> {
        self.schema.width().or(self.headerless_width)
    }
}
