//! Replaces a journal that no start accepts: one that is damaged, or that holds rows of another file.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use crate::{
    csv::{
        row_splitter::{Piece, RowSplitter, without_line_end},
        scanner::{Scanner, split_rows},
    },
    fencing::FencingToken,
    storage::{
        adopt::adopted_header,
        check::report::CheckOptions,
        disk::{Disk, FileKind, FileRange},
        edited::is_edited,
        error::{AppendError, OpenError},
        files::{Files, START_WAIT},
        format::Format,
        journal::{Header, Layout, plausible_payloads, records_since},
        keys,
        safe_open::refuse_unsafe_side_files,
        side_files::{self, side_path},
    },
};

/// What happened to a journal that was replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// The new name of the old journal.
    pub kept_as: PathBuf,
    /// Rows of it that the CSV did not have and does not get, now in `<csv>.torn`.
    pub rows_quarantined: u64,
    /// Rows of it that were added to the CSV.
    pub rows_restored: u64,
}

/// Creates a CSV that is missing, with its header, so that a repair can deal with the journal that it left.
///
/// # Errors
/// If it cannot be created.
pub fn create_missing(options: &CheckOptions) -> Result<(), OpenError> {
    let path = side_files::resolve(&options.path)?;
    side_files::ensure_exists(&path, &side_files::parse_header_option(&options.header)?)
}

/// Keeps a journal that no start accepts under another name, and creates a new one for the CSV as it is. `restores` says whether
/// rows of the journal that the CSV does not have are added to it, or go to `<csv>.torn`. The caller holds the lock.
///
/// The new journal continues above the highest token of both, so that older holders stay fenced out, and with the keys of the
/// keys file.
///
/// # Errors
/// If a start accepts the journal, or if the files can't be read or written.
pub fn replace_journal(options: &CheckOptions, journal_bytes: u64, restores: bool) -> Result<Replaced, OpenError> {
    let path = side_files::resolve(&options.path)?;
    let fail = |doing| {
        let path = path.clone();
        move |e| OpenError::io(&path, doing, e)
    };
    let new_file = Arc::new(side_files::parse_header_option(&options.header)?);
    refuse_unsafe_side_files(&path)?;
    let files = Arc::new(Files::open(&path).map_err(fail("open"))?);
    let _lock = files.lock(Instant::now() + START_WAIT).map_err(|e| match e {
        AppendError::Busy => OpenError::Busy(path.clone()),
        AppendError::Unfit(e) => e,
        other => fail("lock")(io::Error::other(other)),
    })?;
    let format = Format::read(&files, &path, &new_file)?;
    let old = OldJournal::read(&files).map_err(fail("read the journal of"))?;
    if old.is_accepted {
        return Err(OpenError::SoundJournal(path));
    }

    let missing = missing_rows(&files, old.csv_from.max(format.start), &old.payloads).map_err(fail("read"))?;
    // Rows that were laid out for other columns would be torn lines.
    let mut scanner = Scanner::new();
    let fits = |row: &&[u8]| restores && scanner.is_closable(without_line_end(row), format.width());
    let (to_restore, to_quarantine): (Vec<_>, Vec<_>) = missing.into_iter().partition(fits);
    append(&files, FileKind::Torn, &to_quarantine).map_err(fail("quarantine rows of"))?;
    restore(&files, &format, &to_restore).map_err(fail("add rows to"))?;
    let (adopted, _) = adopted_header(&path, &files, &format, journal_bytes)?;
    let keys = match old.keys {
        Some(keys) => keys,
        None => keys::end_of_file(&files).map_err(fail("read the keys of"))?,
    };
    let head = Header { highest_token: adopted.highest_token.max(old.highest_token), keys, ..adopted };
    let kept_as = unused_name(&path);
    side_files::replace_journal(&path, &kept_as, &head, Layout::REAL).map_err(fail("replace the journal of"))?;
    let (rows_quarantined, rows_restored) = (to_quarantine.len() as u64, to_restore.len() as u64);
    Ok(Replaced { kept_as, rows_quarantined, rows_restored })
}

/// What can still be read of the old journal.
struct OldJournal {
    /// A start accepts it as it is.
    is_accepted: bool,
    highest_token: FencingToken,
    /// `None` without a valid header.
    keys: Option<u64>,
    /// Rows that the CSV may not have.
    payloads: Vec<Vec<u8>>,
    /// Where in the CSV they may be.
    csv_from: u64,
}

impl OldJournal {
    fn read(files: &Arc<Files>) -> io::Result<Self> {
        let pages = files.read(FileKind::Journal, 0, Layout::REAL.space())?;
        let Ok((head, _)) = Header::newest(&pages, Layout::REAL) else {
            // Without a header no record can be verified: everything that looks like one and is not in the CSV is kept.
            // Recycled space may hold several copies of a row: each counts once.
            let (mut payloads, mut seen) = (Vec::new(), HashSet::new());
            for (offset, payload) in plausible_payloads(files, Layout::REAL)? {
                if files.read(FileKind::Csv, offset, payload.len() as u64)? != payload {
                    let rows = split_rows(&payload).0.into_iter().map(<[u8]>::to_vec);
                    payloads.extend(rows.filter(|row| seen.insert(row.clone())));
                }
            }
            return Ok(Self { is_accepted: false, highest_token: 0, keys: None, payloads, csv_from: 0 });
        };
        let matches = head.matches_csv(files)?;
        let records = records_since(files, Layout::REAL, &head)?;
        let highest_token = records.iter().map(|record| record.token).fold(head.highest_token, u64::max);
        let is_accepted = match matches {
            true => !is_edited(files, &head, &records)?,
            false => records.is_empty() && head.rebuild.is_none(),
        };
        let payloads = records.into_iter().map(|record| record.payload).collect();
        let csv_from = if matches { head.csv_bytes } else { 0 };
        Ok(Self { is_accepted, highest_token, keys: Some(head.keys), payloads, csv_from })
    }
}

/// The rows of the journal that the CSV does not have from an offset on, in order. Of equal rows, as many as it has are left out.
fn missing_rows<'a>(files: &Arc<Files>, from: u64, payloads: &'a [Vec<u8>]) -> io::Result<Vec<&'a [u8]>> {
    let rows: Vec<_> = payloads.iter().flat_map(|payload| split_rows(payload).0).collect();
    let mut missing: HashMap<&[u8], usize> = HashMap::new();
    for row in &rows {
        *missing.entry(row).or_default() += 1;
    }
    let input = FileRange::new(files, FileKind::Csv, from, u64::MAX);
    RowSplitter::new(from).feed_all(input, &mut |piece| {
        if let Piece::Row(_, row) = piece
            && let Some(count) = missing.get_mut(row)
        {
            *count = count.saturating_sub(1);
        }
    })?;
    let mut is_missing = |row: &&[u8]| {
        let Some(count @ 1..) = missing.get_mut(*row) else { return false };
        *count -= 1;
        true
    };
    Ok(rows.into_iter().filter(|row| is_missing(row)).collect())
}

fn append(files: &Arc<Files>, kind: FileKind, rows: &[&[u8]]) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    files.append(kind, &rows.concat())?;
    files.sync(kind)
}

/// Adds rows to the end of the CSV, whose last line may be open.
fn restore(files: &Arc<Files>, format: &Format, rows: &[&[u8]]) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let len = files.len(FileKind::Csv)?;
    let is_open = len > format.start && files.read(FileKind::Csv, len - 1, 1)? != b"\n";
    let line_end = if is_open { format.line_end } else { b"" };
    append(files, FileKind::Csv, &[&[line_end], rows].concat())
}

/// `<csv>.journal.old`, or `.old-2` and so on.
fn unused_name(path: &Path) -> PathBuf {
    let is_unused = |name: &PathBuf| matches!(fs::symlink_metadata(name), Err(e) if e.kind() == ErrorKind::NotFound);
    let suffix = |n| if n == 1 { ".journal.old".to_owned() } else { format!(".journal.old-{n}") };
    (1..).map(|n| side_path(path, &suffix(n))).find(is_unused).expect("some number is unused")
}
