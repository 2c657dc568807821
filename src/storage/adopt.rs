//! Adopts a CSV that has no journal, or one whose journal describes another file: reads it through once.

use std::{
    fs,
    io::{self, Read, Write},
    path::Path,
    sync::Arc,
    time::Instant,
};

use rustix::fs::OFlags;

use crate::{
    csv::{
        bom::BOM,
        scanner::{OpenLine, ScannedRows, scan_rows},
        schema::Schema,
    },
    fencing::FencingToken,
    storage::{
        check::audit::Audit,
        disk::{Disk, FileKind, FileRange},
        error::{AppendError, OpenError},
        files::{Files, START_WAIT, handles::try_until},
        format::Format,
        journal::{Header, Layout, csv_tail_checksum, read_after},
        open_line::refuse_several_lines,
        safe_open::{Access, open_csv},
        side_files::{self, side_path},
        types::Options,
    },
};

/// Writes the header of an empty file. The CSV itself is locked for that, since there is no journal yet.
pub(crate) fn write_header_if_empty(path: &Path, schema: &Schema) -> Result<(), OpenError> {
    let file = open_csv(path, Access::Append, OFlags::empty()).map_err(|e| OpenError::io(path, "open", e))?;
    side_files::refuse_unfit(path, &file)?;
    let Some(header) = schema.header() else { return Ok(()) };
    let lacks_header = || -> io::Result<bool> {
        let len = file.metadata()?.len();
        Ok(len == 0 || len == BOM.len() as u64 && fs::read(path)? == BOM)
    };
    let write = || -> io::Result<()> {
        (&file).write_all(&[&header[..], b"\n"].concat())?;
        file.sync_all()
    };
    let fail = |e| OpenError::io(path, "write the header of", e);
    if !lacks_header().map_err(fail)? {
        return Ok(());
    }
    // A volume without working locks is refused later, by the probe of the journal.
    if let Err(AppendError::Busy) = try_until(Instant::now() + START_WAIT, || file.try_lock()) {
        return Err(OpenError::Busy(path.to_owned()));
    }
    // Another replica may have written the header in the meantime. Closing the file releases the lock.
    if lacks_header().map_err(fail)? { write().map_err(fail) } else { Ok(()) }
}

/// Creates the journal of a CSV that has none, after reading the CSV through.
pub(crate) fn create_journal(path: &Path, new_file: &Arc<Schema>, options: &Options) -> Result<(), OpenError> {
    let csv = Arc::new(Files::open_to_read(path).map_err(|e| OpenError::io(path, "open", e))?);
    let format = Format::read(&csv, path, new_file)?;
    let (head, open_line) = adopted_header(path, &csv, &format, options.journal_bytes)?;
    if let Some(open) = open_line.filter(|_| !options.is_repair) {
        refuse_several_lines(&csv, path, &format, head.csv_bytes, open)?;
    }
    side_files::ensure_journal(path, &head, Layout::REAL).map_err(|e| OpenError::io(path, "create the journal of", e))
}

/// Refuses to begin a new CSV while the journal of a missing one holds rows for it.
pub(crate) fn refuse_missing(path: &Path) -> Result<(), OpenError> {
    let fail = |doing| move |e| OpenError::io(path, doing, e);
    if fs::exists(path).map_err(fail("find"))? || !fs::exists(side_path(path, ".journal")).map_err(fail("find"))? {
        return Ok(());
    }
    // Without its CSV, the journal is read alone.
    let files = Arc::new(Files::open_to_read(path).map_err(fail("open the journal of"))?);
    let pages = files.read(FileKind::Journal, 0, Layout::REAL.space()).map_err(fail("read the journal of"))?;
    let (head, _) = Header::newest(&pages, Layout::REAL).map_err(|fault| OpenError::header(path, fault))?;
    let next = read_after(&files, Layout::REAL, &head, head.cursor()).map_err(fail("read the journal of"))?;
    // guard: missing_csv: rows that only the journal has are not left behind by a new file
    if next.is_some() || head.rebuild.is_some() { Err(OpenError::Missing(path.to_owned())) } else { Ok(()) }
}

/// Reads the CSV through and syncs it: the header of a journal that accepts the CSV as it is, and its last line if that is open.
pub(crate) fn adopted_header(
    path: &Path,
    csv: &Arc<Files>,
    format: &Format,
    journal_bytes: u64,
) -> Result<(Header, Option<OpenLine>), OpenError> {
    let fail = |e| OpenError::io(path, "read", e);
    let (rows, highest_token) =
        scan_tokens(FileRange::new(csv, FileKind::Csv, format.start, u64::MAX), format).map_err(fail)?;
    let csv_bytes = format.start + rows.whole_bytes;
    csv.sync(FileKind::Csv).map_err(|e| OpenError::io(path, "sync", e))?;
    let head = Header {
        journal: uuid::Uuid::new_v4().as_u128(),
        number: 0,
        bytes: journal_bytes,
        base: 0,
        next: Layout::REAL.space(),
        csv_bytes,
        csv_tail_checksum: csv_tail_checksum(csv, csv_bytes).map_err(fail)?,
        csv_inode: csv.csv_inode(),
        highest_token,
        highest_token_lease: 0,
        keys: 0,
        rebuild: None,
        rebuilds: 0,
    };
    Ok((head, rows.open))
}

/// Reads a CSV through: its rows, and the highest token in it, so that new tokens continue above it.
pub(crate) fn scan_tokens(input: impl Read, format: &Format) -> io::Result<(ScannedRows, FencingToken)> {
    let mut tee = Tee { input, audit: Audit::new(&format.schema, format.start, 0) };
    let rows = scan_rows(&mut tee)?;
    Ok((rows, tee.audit.newest_token.unwrap_or_default()))
}

/// Passes the input on and audits it on the way, so that the CSV is read only once.
struct Tee<R> {
    input: R,
    audit: Audit,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        self.audit.feed(&buffer[..read]);
        Ok(read)
    }
}
