//! How the CSV is laid out, as its first record tells.

use std::{io, path::Path, sync::Arc};

use crate::{
    csv::{
        bom::BOM,
        header_error::HeaderError,
        row_splitter::{ROW_BYTES_MAX, without_line_end},
        scanner::{self, FirstRecord},
        schema::Schema,
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
    /// Reads the file's header. `new_file` is the schema that a new file gets; it also says whether there is a header.
    pub(crate) fn read(disk: &impl Disk, path: &Path, new_file: &Arc<Schema>) -> Result<Self, OpenError> {
        let fail = |e| OpenError::io(path, "read", e);
        let first_bytes = disk.read(FileKind::Csv, 0, BOM.len() as u64).map_err(fail)?;
        let start = if first_bytes == BOM { BOM.len() as u64 } else { 0 };
        if new_file.width().is_none() {
            let schema = Arc::clone(new_file);
            let mut format = Self { schema, line_end: b"\n", headerless_width: None, start, rows_start: start };
            format.read_first_row(disk).map_err(fail)?;
            return Ok(format);
        }
        let range = FileRange::new(disk, FileKind::Csv, start, start + HEADER_BYTES_MAX);
        let first = scanner::first_record(range).map_err(fail)?.text;
        let header_fault = |fault| OpenError::Header(path.to_owned(), fault);
        // guard: header_nul: the first row does not become the header of a file whose beginning a power cut has lost
        if first.contains(&0) {
            return Err(header_fault(HeaderError::Nul));
        }
        if first.len() as u64 >= HEADER_BYTES_MAX {
            return Err(OpenError::HeaderTooLong(path.to_owned(), HEADER_BYTES_MAX));
        }
        check_quotes(&first).map_err(|fault| header_fault(fault.into()))?;
        let schema = Schema::from_header(without_line_end(&first)).map_err(header_fault)?;
        let rows_start = start + first.len() as u64;
        let line_end = line_end_of(&first);
        Ok(Self { schema: Arc::new(schema), line_end, headerless_width: None, start, rows_start })
    }

    /// Takes over width and line ending of a headerless file's first row, once that is whole.
    pub(crate) fn read_first_row(&mut self, disk: &impl Disk) -> io::Result<()> {
        let first = self.first_row(disk)?;
        if first.is_whole && !first.text.contains(&0) {
            (self.headerless_width, self.line_end) = (Some(first.width), line_end_of(&first.text));
        }
        Ok(())
    }

    /// The first row of a headerless file, whole or not.
    pub(crate) fn first_row(&self, disk: &impl Disk) -> io::Result<FirstRecord> {
        let end = self.start + ROW_BYTES_MAX as u64;
        scanner::first_record(FileRange::new(disk, FileKind::Csv, self.start, end))
    }

    /// How many cells a whole row has, if that is known yet.
    pub(crate) fn width(&self) -> Option<usize> {
        self.schema.width().or(self.headerless_width)
    }
}

fn line_end_of(line: &[u8]) -> &'static [u8] {
    if line.ends_with(b"\r\n") { b"\r\n" } else { b"\n" }
}
