//! Reads rows back while other processes append: never past the verified end, and never half a row.

use std::{
    collections::VecDeque,
    io::{self, Read},
    ops::{ControlFlow, Range},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    api::volume::Volume,
    csv::{
        bom::record_reader,
        row_splitter::{Piece, RowSplitter, without_line_end},
    },
    storage::{
        disk::{Disk, FileKind, FileRange},
        error::{AppendError, OpenError},
        files::Files,
        format::Format,
        journal::{Layout, csv_tail_checksum},
        ledger::{Ledger, LedgerOptions, Purpose, RefreshOutcome, RepairMode},
        row_index::RowIndex,
        side_files,
        types::{NewRows, Options, Page, Row},
    },
};

const CHUNK_BYTES: usize = 64 << 10;
/// A page ends with the row that exceeds this size. It has at least one row.
const PAGE_BYTES_MAX: u64 = 8 << 20;
/// The most bytes of rows, as text, in one `NewRows`.
const NEW_ROWS_BYTES_MAX: usize = 64 << 10;
/// How long a refresh tries for the OS lock.
const LOCK_WAIT: Duration = Duration::from_millis(100);

/// Why no rows were read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No row begins at that offset.
    #[error("no row begins at byte {offset}; the file's rows end at byte {end}")]
    NotARowStart {
        /// The requested offset.
        offset: u64,
        /// Offset after the last row.
        end: u64,
    },
    /// The offset may become valid: another process holds the OS lock, or the CSV has to be repaired first.
    #[error("byte {offset} is past the verified end of the file")]
    Behind {
        /// The requested offset.
        offset: u64,
    },
    /// The files can't be read.
    #[error("cannot read the CSV: {0}")]
    Files(#[from] AppendError),
    /// A system call failed.
    #[error("cannot read the CSV: {0}")]
    Io(#[from] io::Error),
}

/// The file up to its verified end at one moment: whole rows, which do not change any more.
#[derive(Debug, Clone)]
pub struct Snapshot {
    files: Arc<Files>,
    bytes: u64,
    tag: String,
}

impl Snapshot {
    /// Its length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Differs from the tags of other snapshots; letters, digits and a dash.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// Reads a part of it, or less at its end.
    ///
    /// # Errors
    /// The system's error.
    pub fn read(&self, offset: u64, bytes: u64) -> io::Result<Vec<u8>> {
        self.files.read(FileKind::Csv, offset, bytes.min(self.bytes.saturating_sub(offset)))
    }
}

/// Reads rows whose place is known.
#[derive(Debug, Clone)]
pub struct FileParts(Arc<Files>);

impl FileParts {
    /// Reads a part of the CSV, or less at its end.
    ///
    /// # Errors
    /// The system's error.
    pub fn read(&self, offset: u64, bytes: u64) -> io::Result<Vec<u8>> {
        self.0.read(FileKind::Csv, offset, bytes)
    }
}

/// Reads one CSV with a ledger of its own, so that readers never wait for the committer.
#[derive(Debug)]
pub struct Reader {
    files: Arc<Files>,
    ledger: Ledger<Arc<Files>>,
    index: RowIndex,
    /// The last refresh could not verify the whole file.
    is_behind: bool,
}

impl Reader {
    /// Opens a CSV that `Storage::open` has opened or created.
    ///
    /// # Errors
    /// That the files can't be read.
    pub fn open(options: &Options) -> Result<Self, OpenError> {
        let path = side_files::resolve(&options.path)?;
        let schema = Arc::new(side_files::parse_header_option(&options.header)?);
        let mut files = Files::open_beside(&path).map_err(|e| OpenError::io(&path, "open", e))?;
        if options.accept_unlocked {
            files.accept_unlocked();
        }
        let files = Arc::new(files);
        let format = Format::read(&files, &path, &schema)?;
        let index = RowIndex::new(&format);
        let (layout, replica, meter) = (Layout::REAL, options.replica.clone(), Arc::clone(&options.meter));
        let ledger = Ledger::open(
            Arc::clone(&files),
            LedgerOptions { path, layout, format, replica, keys: 1, purpose: Purpose::Read, meter },
        )?;
        Ok(Self { files, ledger, index, is_behind: false })
    }

    /// Refreshes, and returns the length of the committed rows and other processes' whole lines, in bytes.
    ///
    /// # Errors
    /// That the files can't be read.
    pub fn committed(&mut self) -> Result<u64, ReadError> {
        let checkpoint_end = self.ledger.checkpoint_end();
        self.is_behind = true;
        let outcome = if self.files.is_direct() {
            self.ledger.refresh_unlocked()?
        } else {
            match self.files.lock(Instant::now() + LOCK_WAIT) {
                Ok(_lock) => self.ledger.refresh(RepairMode::Forbidden)?,
                // What was verified before is still valid.
                Err(AppendError::Busy) => return Ok(self.ledger.whole_end()),
                Err(e) => return Err(e.into()),
            }
        };
        self.is_behind = outcome == RefreshOutcome::NeedsRepair;
        let (end, indexed_end) = (self.ledger.whole_end(), self.index.end());
        if self.ledger.checkpoint_end() != checkpoint_end || end < indexed_end {
            // A rebuild may have moved the rows after the checkpoint.
            self.index.forget_from(checkpoint_end.min(end), self.ledger.format());
        }
        // guard: verified_end: readers see only verified rows
        Ok(self.ledger.whole_end())
    }

    /// The last rows: as many of the newest as fit a page, and at least one, if there is one.
    ///
    /// # Errors
    /// That the files can't be read.
    pub fn last(&mut self, rows: usize) -> Result<Page, ReadError> {
        let end = self.committed()?;
        self.index.extend(&self.files, end)?;
        let by_number = self.index.entry_at_row(self.index.rows().saturating_sub(rows as u64));
        let by_size = self.index.entry_before(end.saturating_sub(PAGE_BYTES_MAX).max(self.index.first_row()));
        let mut newest = VecDeque::<Range<u64>>::new();
        self.each_row(by_number.offset.max(by_size.offset), end, |row| {
            newest.push_back(row);
            while newest.len() > rows || newest.len() > 1 && end - newest[0].start > PAGE_BYTES_MAX {
                newest.pop_front();
            }
            ControlFlow::Continue(())
        })?;
        let start = newest.front().map_or(end, |first| first.start);
        newest.shrink_to_fit();
        Ok(Page { rows: newest.into(), start, next: None })
    }

    /// The rows from an offset on, at which a row must begin; 0 stands for the first row.
    ///
    /// # Errors
    /// `NotARowStart`, `Behind`, or that the files can't be read.
    pub fn from(&mut self, offset: u64, limit: usize) -> Result<Page, ReadError> {
        let end = self.committed()?;
        self.index.extend(&self.files, end)?;
        let offset = if offset == 0 { self.index.first_row() } else { offset };
        if !self.is_row_start(offset, end)? {
            return Err(ReadError::NotARowStart { offset, end });
        }
        Ok(self.page(offset, limit, end)?)
    }

    /// The rows from `from` on, at which a row must begin: up to 8 MiB of them, and at least one row, if there is one. Only
    /// the newest are returned as cells, at most `rows_max` rows and 64 KiB.
    ///
    /// # Errors
    /// That the files can't be read.
    pub fn new_rows(&mut self, from: u64, rows_max: usize) -> Result<NewRows, ReadError> {
        let file_end = self.committed()?;
        let mut new_rows = NewRows { offset: from, end: from, count: 0, rows: Vec::new() };
        let (mut newest, mut newest_bytes) = (VecDeque::new(), 0);
        let mut input = FileRange::new(&self.files, FileKind::Csv, from, file_end);
        let (mut splitter, mut chunk) = (RowSplitter::new(from), vec![0; CHUNK_BYTES]);
        while new_rows.end - from < PAGE_BYTES_MAX {
            let read = input.read(&mut chunk)?;
            if read == 0 {
                break;
            }
            splitter.feed(&chunk[..read], &mut |piece| {
                let Piece::Row(offset, row) = piece else { return };
                new_rows.end = offset + row.len() as u64;
                if without_line_end(row).is_empty() {
                    return;
                }
                new_rows.count += 1;
                newest_bytes += row.len();
                newest.push_back((offset, row.to_vec()));
                while newest.len() > rows_max || newest_bytes > NEW_ROWS_BYTES_MAX {
                    newest_bytes -= newest.pop_front().map_or(newest_bytes, |(_, row)| row.len());
                }
            });
        }
        new_rows.rows = newest.into_iter().map(|(offset, row)| Row { offset, cells: cells_of(&row) }).collect();
        Ok(new_rows)
    }

    /// Whether a row begins at `offset`, or the last row ends there.
    ///
    /// # Errors
    /// `Behind`, or that the files can't be read.
    pub fn is_start(&mut self, offset: u64) -> Result<bool, ReadError> {
        let end = self.committed()?;
        self.index.extend(&self.files, end)?;
        self.is_row_start(offset, end)
    }

    /// Sizes of the files as of the last refresh, and the space on the volume.
    ///
    /// # Errors
    /// The system's error.
    pub fn volume(&self) -> io::Result<Volume> {
        let (free_bytes, volume_bytes) = self.files.volume_bytes()?;
        Ok(Volume {
            csv_bytes: self.ledger.whole_end(),
            free_bytes,
            volume_bytes,
            journal_bytes: self.ledger.journal_bytes(),
            journal_used_bytes: self.ledger.live_bytes(),
        })
    }

    /// Reads parts of the CSV without a refresh.
    pub fn parts(&self) -> FileParts {
        FileParts(Arc::clone(&self.files))
    }

    /// The file up to its verified end.
    ///
    /// # Errors
    /// That the files can't be read.
    pub fn snapshot(&mut self) -> Result<Snapshot, ReadError> {
        let bytes = self.committed()?;
        let tag = format!("{bytes:x}-{:08x}", csv_tail_checksum(&self.files, bytes)?);
        Ok(Snapshot { files: Arc::clone(&self.files), bytes, tag })
    }

    fn is_row_start(&self, offset: u64, end: u64) -> Result<bool, ReadError> {
        if self.is_behind && offset > end {
            return Err(ReadError::Behind { offset });
        }
        if !(self.index.first_row()..=end).contains(&offset) {
            return Ok(false);
        }
        let mut splitter = RowSplitter::new(self.index.entry_before(offset).offset);
        let mut input = FileRange::new(&self.files, FileKind::Csv, splitter.at(), end);
        let mut chunk = vec![0; CHUNK_BYTES];
        while splitter.at() < offset {
            let read = input.read(&mut chunk)?;
            let mut is_start = false;
            splitter.feed(&chunk[..read], &mut |piece| {
                is_start = is_start
                    || matches!(piece, Piece::Row(start, row) if start == offset && !without_line_end(row).is_empty());
            });
            if is_start || read == 0 {
                return Ok(is_start || splitter.at() == offset);
            }
        }
        Ok(splitter.at() == offset)
    }

    /// Finds the rows from an offset on, at which a row begins: the first `limit` of them, or fewer if they are larger than a page.
    fn page(&self, from: u64, limit: usize, end: u64) -> io::Result<Page> {
        let mut page = Page { rows: Vec::new(), start: from, next: None };
        self.each_row(from, end, |row| {
            let first = page.rows.first().map_or(row.start, |first| first.start);
            if page.rows.len() == limit || row.start - first > PAGE_BYTES_MAX {
                page.next = Some(row.start);
                return ControlFlow::Break(());
            }
            page.rows.push(row);
            ControlFlow::Continue(())
        })?;
        page.rows.shrink_to_fit();
        Ok(page)
    }

    /// Finds the rows between two offsets at which rows begin. Blank lines are no rows.
    fn each_row(&self, from: u64, end: u64, mut found: impl FnMut(Range<u64>) -> ControlFlow<()>) -> io::Result<()> {
        let mut input = FileRange::new(&self.files, FileKind::Csv, from, end);
        let (mut splitter, mut chunk) = (RowSplitter::new(from), vec![0; CHUNK_BYTES]);
        let mut flow = ControlFlow::Continue(());
        while flow.is_continue() {
            let read = input.read(&mut chunk)?;
            if read == 0 {
                break;
            }
            splitter.feed(&chunk[..read], &mut |piece| {
                let Piece::Row(offset, row) = piece else { return };
                if flow.is_continue() && !without_line_end(row).is_empty() {
                    flow = found(offset..offset + row.len() as u64);
                }
            });
        }
        Ok(())
    }
}

fn cells_of(row: &[u8]) -> Vec<String> {
    let record = record_reader(row).byte_records().next().and_then(Result::ok).unwrap_or_default();
    record.iter().map(|cell| String::from_utf8_lossy(cell).into_owned()).collect()
}
