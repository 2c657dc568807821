//! What no grant of the lock does by itself: a journal that is damaged or foreign is set aside, and a new one begun.

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
    storage::{
        AppendError, OpenError, START_WAIT, adopted_header,
        check::{CheckOptions, knows_csv},
        disk::{Disk, Place},
        files::{Files, beside},
        format::Format,
        journal::{Header, Layout, plausible_payloads, records_since},
        keys, side_files,
    },
};

/// What became of a journal that was replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// Where the old one is kept.
    pub kept_as: PathBuf,
    /// Rows that it held and the CSV does not, now in `<csv>.torn`.
    pub rows_set_aside: u64,
}

/// Sets a journal aside that no start accepts, and begins a new one for the CSV as it is: for who holds the lock.
///
/// The new journal knows the newest token of both, so that older holders stay fenced out, and the keys that the file of keys has.
///
/// # Errors
/// If the journal is one that a start accepts by now, or what keeps the files from being read or written.
pub fn replace_journal(options: &CheckOptions, journal_bytes: u64) -> Result<Replaced, OpenError> {
    let path = side_files::resolve(&options.path)?;
    let fail = |doing| {
        let path = path.clone();
        move |e| OpenError::io(&path, doing, e)
    };
    let new_schema = Arc::new(side_files::parse_header_option(&options.header)?);
    let files = Arc::new(Files::open(&path).map_err(fail("open"))?);
    let _lock = files.lock(Instant::now() + START_WAIT).map_err(|e| match e {
        AppendError::Busy => OpenError::Busy(path.clone()),
        other => fail("lock")(io::Error::other(other)),
    })?;
    let format = Format::read(&files, &path, &new_schema)?;
    let old = Old::read(&files).map_err(fail("read the journal of"))?;
    if old.is_accepted {
        return Err(OpenError::SoundJournal(path));
    }

    let rows_set_aside = set_aside(&files, &old.payloads).map_err(fail("set aside rows beside"))?;
    let adopted = adopted_header(&path, &files, &format, journal_bytes)?;
    let keys = match old.keys {
        Some(keys) => keys,
        None => keys::end_of_file(&files).map_err(fail("read the keys of"))?,
    };
    let head = Header { mark: adopted.mark.max(old.mark), keys, ..adopted };
    let kept_as = spare_name(&path);
    side_files::replace_journal(&path, &kept_as, &head, Layout::REAL).map_err(fail("replace the journal of"))?;
    Ok(Replaced { kept_as, rows_set_aside })
}

/// What can still be read of the journal that is to go.
struct Old {
    /// A start takes it as it is.
    is_accepted: bool,
    mark: u64,
    /// `None` if no header tells.
    keys: Option<u64>,
    /// Rows that the CSV lacks.
    payloads: Vec<Vec<u8>>,
}

impl Old {
    fn read(files: &Arc<Files>) -> io::Result<Self> {
        let pages = files.read(Place::Journal, 0, Layout::REAL.space())?;
        let Ok((head, _)) = Header::newest(&pages, Layout::REAL) else {
            // Without a header nothing proves a record: all that looks like one and does not stand in the CSV is kept.
            let mut payloads = Vec::new();
            for (offset, payload) in plausible_payloads(files, Layout::REAL)? {
                if files.read(Place::Csv, offset, payload.len() as u64)? != payload {
                    payloads.push(payload);
                }
            }
            return Ok(Self { is_accepted: false, mark: 0, keys: None, payloads });
        };
        let knows_this_file = knows_csv(files, &head)?;
        let mut old = Self { is_accepted: false, mark: head.mark, keys: Some(head.keys), payloads: Vec::new() };
        for record in records_since(files, Layout::REAL, &head)? {
            old.mark = old.mark.max(record.token);
            old.payloads.push(record.payload);
        }
        old.is_accepted = knows_this_file || old.payloads.is_empty() && head.rebuild.is_none();
        Ok(old)
    }
}

/// Each of the rows once, whatever copies of it the journal's old space holds.
fn set_aside(files: &Arc<Files>, payloads: &[Vec<u8>]) -> io::Result<u64> {
    let mut seen = HashSet::new();
    let rows: Vec<_> =
        payloads.iter().flat_map(|payload| split_rows(payload).0).filter(|row| seen.insert(*row)).collect();
    if !rows.is_empty() {
        files.append(Place::Torn, &rows.concat())?;
        files.sync(Place::Torn)?;
    }
    Ok(rows.len() as u64)
}

/// `<csv>.journal.old`, or `.old-2` and so on.
fn spare_name(path: &Path) -> PathBuf {
    let free = |name: &PathBuf| matches!(fs::symlink_metadata(name), Err(e) if e.kind() == ErrorKind::NotFound);
    let names = (1..).map(|n| beside(path, &if n == 1 { ".journal.old".into() } else { format!(".journal.old-{n}") }));
    names.into_iter().find(free).expect("some number is free")
}
