//! Reads rows back, beside whoever writes: never further than what was verified, and never half a row.

use std::{
    collections::VecDeque,
    io::{self, Read},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    api::events::Volume,
    csv::row_splitter::{Piece, RowSplitter, bare},
    storage::{
        AppendError, OpenError, Options,
        disk::{Disk, Place, Stretch},
        files::Files,
        format::Format,
        journal::Layout,
        ledger::{Ledger, LedgerOptions, Repair, Seen, checkpoint::print_of},
        side_files,
    },
};

/// A place is noted about this often, in bytes: a search reads no more than that.
const INDEX_STEP_BYTES: u64 = 64 << 10;
const CHUNK_BYTES: usize = 64 << 10;
/// As much is sent in one page, but always one row.
const PAGE_BYTES_MAX: u64 = 8 << 20;
/// The rows of one piece of news, as text.
const NEWS_BYTES_MAX: usize = 64 << 10;
/// How long a look tries for the files: a process that keeps them makes no reader wait.
const PATIENCE: Duration = Duration::from_millis(100);

/// One row of the CSV.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its cells; what is not UTF-8 in them is replaced.
    pub cells: Vec<String>,
}

/// Some rows that stand together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// In the file's order.
    pub rows: Vec<Row>,
    /// Where the last of them ends.
    pub end: u64,
    /// Where the row after them begins, if there is one by now.
    pub next: Option<u64>,
}

/// Rows that are new to somebody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// Where the first of them begins.
    pub offset: u64,
    /// Where the last of them ends.
    pub end: u64,
    /// How many they are.
    pub count: u64,
    /// The newest of them.
    pub rows: Vec<Row>,
}

/// Why nothing was read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No row begins at that offset.
    #[error("no row begins at byte {offset}; the file's rows end at byte {end}")]
    NotARowStart {
        /// What was asked for.
        offset: u64,
        /// Where the last row ends.
        end: u64,
    },
    /// Where that is cannot be known yet: a process keeps the files, or they have to be made whole first.
    #[error("the file is not known as far as byte {offset} yet")]
    Behind {
        /// What was asked for.
        offset: u64,
    },
    /// The files can't be read.
    #[error("cannot read the CSV: {0}")]
    Files(#[from] AppendError),
    /// The system said no.
    #[error("cannot read the CSV: {0}")]
    Io(#[from] io::Error),
}

/// The file as it was at one moment: whole rows, which nobody changes any more.
#[derive(Debug, Clone)]
pub struct Snapshot {
    files: Arc<Files>,
    bytes: u64,
    tag: String,
}

impl Snapshot {
    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Tells it from other snapshots: letters, digits and a dash.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Reads a part of it, or less where it ends.
    ///
    /// # Errors
    /// The system's answer.
    pub fn read(&self, offset: u64, bytes: u64) -> io::Result<Vec<u8>> {
        self.files.read(Place::Csv, offset, bytes.min(self.bytes.saturating_sub(offset)))
    }
}

/// A view of one CSV for readers: of its own, so that they never wait for who writes.
#[derive(Debug)]
pub struct Reader {
    files: Arc<Files>,
    ledger: Ledger<Arc<Files>>,
    index: Index,
    /// There may be more than the last look could see.
    is_behind: bool,
}

impl Reader {
    /// Opens a CSV that `Storage::open` has opened before.
    ///
    /// # Errors
    /// What keeps the files from being read.
    pub fn open(options: &Options) -> Result<Self, OpenError> {
        let path = side_files::resolve(&options.path)?;
        let schema = Arc::new(side_files::parse_header_option(&options.header)?);
        let mut files = Files::open(&path).map_err(|e| OpenError::io(&path, "open", e))?;
        if options.accept_unlocked {
            files.accept_unlocked();
        }
        let files = Arc::new(files);
        let format = Format::read(&files, &path, &schema)?;
        let index = Index::new(&format);
        let (layout, replica, meter) = (Layout::REAL, options.replica.clone(), Arc::clone(&options.meter));
        let ledger = Ledger::open(Arc::clone(&files), LedgerOptions { path, layout, format, replica, keys: 1, meter })?;
        Ok(Self { files, ledger, index, is_behind: false })
    }

    /// How much of the file is whole rows that are committed, or others' whole lines behind them, in bytes.
    ///
    /// # Errors
    /// What keeps the files from being read.
    pub fn committed(&mut self) -> Result<u64, ReadError> {
        let settled = self.ledger.head.csv_bytes;
        self.is_behind = true;
        match self.files.lock(Instant::now() + PATIENCE) {
            Ok(_lock) => {
                let seen = self.ledger.look(Repair::Forbidden)?;
                self.is_behind = matches!(seen, Seen::NeedsRepair);
            }
            // Who keeps the files is in the middle of something: what was there before stands.
            Err(AppendError::Busy) => return Ok(self.ledger.whole),
            Err(e) => return Err(e.into()),
        }
        if self.ledger.head.csv_bytes != settled || self.ledger.whole < self.index.splitter.at() {
            // A rebuild may have moved what followed the checkpoint.
            self.index.forget_from(settled.min(self.ledger.whole), &self.ledger.format);
        }
        // guard: verified_end
        Ok(self.ledger.whole)
    }

    /// The last rows.
    ///
    /// # Errors
    /// What keeps the files from being read.
    pub fn last(&mut self, rows: usize) -> Result<Page, ReadError> {
        let end = self.committed()?;
        self.index.extend(&self.files, end)?;
        let skip = self.index.rows.saturating_sub(rows as u64);
        let entry = self.index.entry_at_row(skip);
        self.page(entry.offset, (skip - entry.rows_before) as usize, rows, end)
    }

    /// The rows from an offset on, where one must begin; 0 is the first.
    ///
    /// # Errors
    /// `NotARowStart`, `Behind`, or what keeps the files from being read.
    pub fn from(&mut self, offset: u64, limit: usize) -> Result<Page, ReadError> {
        let end = self.committed()?;
        self.index.extend(&self.files, end)?;
        let offset = if offset == 0 { self.index.first() } else { offset };
        if !self.is_row_start(offset, end)? {
            return Err(ReadError::NotARowStart { offset, end });
        }
        self.page(offset, 0, limit, end)
    }

    /// What follows `from`, where a row must begin: up to 8 MiB of it, and at least one row, if there is one. Of its rows, the
    /// newest that make up no more than `rows_max` and 64 KiB.
    ///
    /// # Errors
    /// What keeps the files from being read.
    pub fn news(&mut self, from: u64, rows_max: usize) -> Result<News, ReadError> {
        let file_end = self.committed()?;
        let mut news = News { offset: from, end: from, count: 0, rows: Vec::new() };
        let (mut newest, mut newest_bytes) = (VecDeque::new(), 0);
        let mut input = Stretch::new(&self.files, Place::Csv, from, file_end);
        let (mut splitter, mut chunk) = (RowSplitter::new(from), vec![0; CHUNK_BYTES]);
        while news.end - from < PAGE_BYTES_MAX {
            let read = input.read(&mut chunk)?;
            if read == 0 {
                break;
            }
            splitter.feed(&chunk[..read], &mut |piece| {
                let Piece::Row(offset, row) = piece else { return };
                news.end = offset + row.len() as u64;
                if bare(row).is_empty() {
                    return;
                }
                news.count += 1;
                newest_bytes += row.len();
                newest.push_back((offset, row.to_vec()));
                while newest.len() > rows_max || newest_bytes > NEWS_BYTES_MAX {
                    newest_bytes -= newest.pop_front().map_or(newest_bytes, |(_, row)| row.len());
                }
            });
        }
        news.rows = newest.into_iter().map(|(offset, row)| Row { offset, cells: cells_of(&row) }).collect();
        Ok(news)
    }

    /// Whether a row begins at `offset`, or the last one ends there.
    ///
    /// # Errors
    /// `Behind`, or what keeps the files from being read.
    pub fn is_start(&mut self, offset: u64) -> Result<bool, ReadError> {
        let end = self.committed()?;
        self.index.extend(&self.files, end)?;
        self.is_row_start(offset, end)
    }

    /// How much there is, and how much room is left, as of the last reading.
    ///
    /// # Errors
    /// The system's answer.
    pub fn volume(&self) -> io::Result<Volume> {
        let (free_bytes, volume_bytes) = self.files.volume_bytes()?;
        Ok(Volume {
            csv_bytes: self.ledger.whole,
            free_bytes,
            volume_bytes,
            journal_bytes: self.ledger.head.bytes,
            journal_used_bytes: self.ledger.live_bytes(),
        })
    }

    /// The whole file, as of now.
    ///
    /// # Errors
    /// What keeps the files from being read.
    pub fn snapshot(&mut self) -> Result<Snapshot, ReadError> {
        let bytes = self.committed()?;
        let tag = format!("{bytes:x}-{:08x}", print_of(&self.files, bytes)?);
        Ok(Snapshot { files: Arc::clone(&self.files), bytes, tag })
    }

    fn is_row_start(&self, offset: u64, end: u64) -> Result<bool, ReadError> {
        if self.is_behind && offset > end {
            return Err(ReadError::Behind { offset });
        }
        if !(self.index.first()..=end).contains(&offset) {
            return Ok(false);
        }
        let mut splitter = RowSplitter::new(self.index.entry_before(offset).offset);
        let mut input = Stretch::new(&self.files, Place::Csv, splitter.at(), end);
        let mut chunk = vec![0; CHUNK_BYTES];
        while splitter.at() < offset {
            let read = input.read(&mut chunk)?;
            let mut is_start = false;
            splitter.feed(&chunk[..read], &mut |piece| {
                is_start =
                    is_start || matches!(piece, Piece::Row(start, row) if start == offset && !bare(row).is_empty());
            });
            if is_start || read == 0 {
                return Ok(is_start || splitter.at() == offset);
            }
        }
        Ok(splitter.at() == offset)
    }

    fn page(&self, from: u64, skip: usize, limit: usize, end: u64) -> Result<Page, ReadError> {
        let (mut skip, mut rows, mut next, mut page_end) = (skip, Vec::new(), None, from);
        let mut input = Stretch::new(&self.files, Place::Csv, from, end);
        let (mut splitter, mut chunk) = (RowSplitter::new(from), vec![0; CHUNK_BYTES]);
        let mut start_of_page = from;
        while next.is_none() {
            let read = input.read(&mut chunk)?;
            if read == 0 {
                break;
            }
            splitter.feed(&chunk[..read], &mut |piece| {
                let Piece::Row(offset, row) = piece else { return };
                if bare(row).is_empty() || next.is_some() {
                } else if skip > 0 {
                    (skip, start_of_page) = (skip - 1, offset + row.len() as u64);
                    page_end = start_of_page;
                } else if rows.len() == limit || !rows.is_empty() && offset - start_of_page > PAGE_BYTES_MAX {
                    next = Some(offset);
                } else {
                    rows.push(Row { offset, cells: cells_of(row) });
                    page_end = offset + row.len() as u64;
                }
            });
        }
        Ok(Page { rows, end: page_end, next })
    }
}

fn cells_of(row: &[u8]) -> Vec<String> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(row);
    let record = reader.byte_records().next().and_then(Result::ok).unwrap_or_default();
    record.iter().map(|cell| String::from_utf8_lossy(cell).into_owned()).collect()
}

/// A row that begins at `offset`, and how many stand before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    offset: u64,
    rows_before: u64,
}

/// Where rows begin, about every 64 KiB: a quoted cell may hold line breaks, so that only a reading from the start can tell.
struct Index {
    entries: Vec<Entry>,
    splitter: RowSplitter,
    /// Rows so far, without the header.
    rows: u64,
    /// The header is yet to be passed over.
    header_is_due: bool,
}

impl Index {
    fn new(format: &Format) -> Self {
        let splitter = RowSplitter::new(format.start);
        Self { entries: Vec::new(), splitter, rows: 0, header_is_due: format.schema.width().is_some() }
    }

    /// Where the first row begins.
    fn first(&self) -> u64 {
        self.entries.first().map_or(self.splitter.at(), |entry| entry.offset)
    }

    /// Reads on to `end`, where a row ends.
    fn extend(&mut self, files: &Arc<Files>, end: u64) -> io::Result<()> {
        let Self { entries, splitter, rows, header_is_due } = self;
        let mut input = Stretch::new(files, Place::Csv, splitter.at(), end);
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let read = input.read(&mut chunk)?;
            if read == 0 {
                return Ok(());
            }
            splitter.feed(&chunk[..read], &mut |piece| {
                let Piece::Row(offset, row) = piece else { return };
                if std::mem::take(header_is_due) || bare(row).is_empty() {
                    return;
                }
                if entries.last().is_none_or(|entry: &Entry| offset - entry.offset >= INDEX_STEP_BYTES) {
                    entries.push(Entry { offset, rows_before: *rows });
                }
                *rows += 1;
            });
        }
    }

    fn forget_from(&mut self, offset: u64, format: &Format) {
        let kept = self.entries.partition_point(|entry| entry.offset <= offset);
        // Rows behind the last place are counted again.
        let Some(&last) = self.entries[..kept].last() else {
            *self = Self::new(format);
            return;
        };
        self.entries.truncate(kept - 1);
        (self.splitter, self.rows) = (RowSplitter::new(last.offset), last.rows_before);
    }

    fn entry_before(&self, offset: u64) -> Entry {
        let at = self.entries.partition_point(|entry| entry.offset <= offset);
        self.nth(at)
    }

    fn entry_at_row(&self, row: u64) -> Entry {
        let at = self.entries.partition_point(|entry| entry.rows_before <= row);
        self.nth(at)
    }

    fn nth(&self, at: usize) -> Entry {
        let none = Entry { offset: self.splitter.at(), rows_before: 0 };
        at.checked_sub(1).and_then(|at| self.entries.get(at)).copied().unwrap_or(none)
    }
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Index({} rows)", self.rows)
    }
}
