//! Replaces a journal that no start accepts: one that is damaged, or that holds rows of another file.

use std::{
    collections::HashSet,
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use crate::{
    csv::scanner::split_rows,
    fencing::FencingToken,
    storage::{
        adopt::adopted_header,
        check::report::CheckOptions,
        disk::{Disk, FileKind},
        error::{AppendError, OpenError},
        files::{Files, START_WAIT},
        format::Format,
        journal::{Header, Layout, plausible_payloads, records_since},
        keys,
        side_files::{self, side_path},
    },
};

/// What happened to a journal that was replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// The new name of the old journal.
    pub kept_as: PathBuf,
    /// Rows of it that the CSV does not have, now in `<csv>.torn`.
    pub rows_quarantined: u64,
}

/// Keeps a journal that no start accepts under another name, and creates a new one for the CSV as it is. The caller holds the
/// lock.
///
/// The new journal continues above the highest token of both, so that older holders stay fenced out, and with the keys of the
/// keys file.
///
/// # Errors
/// If a start accepts the journal, or if the files can't be read or written.
pub fn replace_journal(options: &CheckOptions, journal_bytes: u64) -> Result<Replaced, OpenError> {
    let path = side_files::resolve(&options.path)?;
    let fail = |doing| {
        let path = path.clone();
        move |e| OpenError::io(&path, doing, e)
    };
    let new_file = Arc::new(side_files::parse_header_option(&options.header)?);
    let files = Arc::new(Files::open(&path).map_err(fail("open"))?);
    let _lock = files.lock(Instant::now() + START_WAIT).map_err(|e| match e {
        AppendError::Busy => OpenError::Busy(path.clone()),
        other => fail("lock")(io::Error::other(other)),
    })?;
    let format = Format::read(&files, &path, &new_file)?;
    let old = OldJournal::read(&files).map_err(fail("read the journal of"))?;
    if old.is_accepted {
        return Err(OpenError::SoundJournal(path));
    }

    let rows_quarantined = quarantine(&files, &old.payloads).map_err(fail("quarantine rows of"))?;
    let adopted = adopted_header(&path, &files, &format, journal_bytes)?;
    let keys = match old.keys {
        Some(keys) => keys,
        None => keys::end_of_file(&files).map_err(fail("read the keys of"))?,
    };
    let head = Header { highest_token: adopted.highest_token.max(old.highest_token), keys, ..adopted };
    let kept_as = unused_name(&path);
    side_files::replace_journal(&path, &kept_as, &head, Layout::REAL).map_err(fail("replace the journal of"))?;
    Ok(Replaced { kept_as, rows_quarantined })
}

/// What can still be read of the old journal.
struct OldJournal {
    /// A start accepts it as it is.
    is_accepted: bool,
    highest_token: FencingToken,
    /// `None` without a valid header.
    keys: Option<u64>,
    /// Rows that the CSV does not have.
    payloads: Vec<Vec<u8>>,
}

impl OldJournal {
    fn read(files: &Arc<Files>) -> io::Result<Self> {
        let pages = files.read(FileKind::Journal, 0, Layout::REAL.space())?;
        let Ok((head, _)) = Header::newest(&pages, Layout::REAL) else {
            // Without a header no record can be verified: everything that looks like one and is not in the CSV is kept.
            let mut payloads = Vec::new();
            for (offset, payload) in plausible_payloads(files, Layout::REAL)? {
                if files.read(FileKind::Csv, offset, payload.len() as u64)? != payload {
                    payloads.push(payload);
                }
            }
            return Ok(Self { is_accepted: false, highest_token: 0, keys: None, payloads });
        };
        let mut highest_token = head.highest_token;
        let mut payloads = Vec::new();
        for record in records_since(files, Layout::REAL, &head)? {
            highest_token = highest_token.max(record.token);
            payloads.push(record.payload);
        }
        let is_accepted = head.matches_csv(files)? || payloads.is_empty() && head.rebuild.is_none();
        Ok(Self { is_accepted, highest_token, keys: Some(head.keys), payloads })
    }
}

/// Appends the rows to `<csv>.torn`. Recycled space may hold several copies of a row: each row is kept once.
fn quarantine(files: &Arc<Files>, payloads: &[Vec<u8>]) -> io::Result<u64> {
    let mut seen = HashSet::new();
    let rows: Vec<_> =
        payloads.iter().flat_map(|payload| split_rows(payload).0).filter(|row| seen.insert(*row)).collect();
    if !rows.is_empty() {
        files.append(FileKind::Torn, &rows.concat())?;
        files.sync(FileKind::Torn)?;
    }
    Ok(rows.len() as u64)
}

/// `<csv>.journal.old`, or `.old-2` and so on.
fn unused_name(path: &Path) -> PathBuf {
    let is_unused = |name: &PathBuf| matches!(fs::symlink_metadata(name), Err(e) if e.kind() == ErrorKind::NotFound);
    let suffix = |n| if n == 1 { ".journal.old".to_owned() } else { format!(".journal.old-{n}") };
    (1..).map(|n| side_path(path, &suffix(n))).find(is_unused).expect("some number is unused")
}
