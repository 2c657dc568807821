//! Reads rows back while other processes append: never past the verified end, and never half a row.

use std::{
    collections::VecDeque,
    io::{self, Read},
    ops::{ControlFlow, Range},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::{
    api::volume::Volume,
    csv::{
        bom::record_reader,
        row_splitter::{Piece, RowSplitter, without_line_end},
    },
    storage::{
        disk::{FileKind, FileRange},
        error::{AppendError, OpenError},
        file_parts::{FileParts, Snapshot},
        files::Files,
        format::Format,
        journal::{Layout, csv_tail_checksum},
        ledger::{Ledger, LedgerOptions, Purpose, RefreshOutcome},
        row_index::RowIndex,
        side_files,
        types::{NewRows, Options, Page, Position, Row},
    },
};

const CHUNK_BYTES: usize = 64 << 10;
/// A page ends with the row that exceeds this size. It has at least one row.
const PAGE_BYTES_MAX: u64 = 8 << 20;
/// The most bytes of rows, as text, in one `NewRows`.
const NEW_ROWS_BYTES_MAX: usize = 64 << 10;
/// How long a reading waits for the end of a rebuild.
const REBUILD_WAIT: Duration = Duration::from_millis(100);
const REBUILD_PAUSE: Duration = Duration::from_millis(5);
/// How often a reading starts over because a rebuild moved rows.
const READ_TRIES_MAX: u32 = 5;

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
    /// The offset may become valid: another process is writing, or the CSV has to be repaired first.
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
        self.files.refuse_replaced()?;
        let rebuilt_by = Instant::now() + REBUILD_WAIT;
        let outcome = loop {
            let outcome = self.ledger.refresh_unlocked();
            // Also after an error: the ledger may know a newer header.
            self.forget_moved(checkpoint_end);
            if !self.ledger.is_rebuilding() || Instant::now() >= rebuilt_by {
                break outcome;
            }
            thread::sleep(REBUILD_PAUSE);
        };
        self.is_behind = !matches!(outcome, Ok(RefreshOutcome::Consistent(_)));
        outcome?;
        Ok(self.end())
    }

    /// The rows after the checkpoint may have moved.
    fn forget_moved(&mut self, checkpoint_end: u64) {
        if self.ledger.checkpoint_end() != checkpoint_end || self.end() < self.index.end() {
            self.index.forget_from(checkpoint_end.min(self.end()), self.ledger.format());
        }
    }

    /// Where the rows end that readers may see.
    fn end(&self) -> u64 {
        // guard: verified_end: readers see only verified rows
        let verified = self.ledger.whole_end();
        // guard: not_while_rebuilding: rows that a rebuild is moving are not served
        if self.ledger.is_rebuilding() {
            return verified.min(self.ledger.checkpoint_end());
        }
        verified
    }

    /// Refreshes and calls `read` with the end of the rows; again if a rebuild moved rows meanwhile.
    fn read<T>(&mut self, mut read: impl FnMut(&mut Self, u64) -> Result<T, ReadError>) -> Result<T, ReadError> {
        for _ in 0..READ_TRIES_MAX {
            let end = self.committed()?;
            let result = read(self, end);
            // Otherwise the index may hold what was read while a rebuild moved rows.
            if !self.ledger.has_moved()? {
                return result;
            }
            self.index.forget_from(self.ledger.checkpoint_end(), self.ledger.format());
        }
        Err(ReadError::Behind { offset: self.end() })
    }

    /// As `read`, with an index of all rows.
    fn read_indexed<T>(&mut self, mut read: impl FnMut(&Self, u64) -> Result<T, ReadError>) -> Result<T, ReadError> {
        self.read(|reader, end| {
            reader.index.extend(&reader.files, end)?;
            read(reader, end)
        })
    }

    /// The last rows: as many of the newest as fit a page, and at least one, if there is one.
    ///
    /// # Errors
    /// That the files can't be read.
    pub fn last(&mut self, rows: usize) -> Result<Page, ReadError> {
        self.read_indexed(|reader, end| {
            let index = &reader.index;
            let by_number = index.entry_at_row(index.rows().saturating_sub(rows as u64));
            let by_size = index.entry_before(end.saturating_sub(PAGE_BYTES_MAX).max(index.first_row()));
            let mut newest = VecDeque::<Range<u64>>::new();
            reader.each_row(by_number.offset.max(by_size.offset), end, |row| {
                newest.push_back(row);
                while newest.len() > rows || newest.len() > 1 && end - newest[0].start > PAGE_BYTES_MAX {
                    newest.pop_front();
                }
                ControlFlow::Continue(())
            })?;
            let start = newest.front().map_or(end, |first| first.start);
            newest.shrink_to_fit();
            Ok(Page { rows: newest.into(), start, next: None })
        })
    }

    /// The rows from an offset on, at which a row must begin; 0 stands for the first row.
    ///
    /// # Errors
    /// `NotARowStart`, `Behind`, or that the files can't be read.
    pub fn from(&mut self, offset: u64, limit: usize) -> Result<Page, ReadError> {
        self.read_indexed(|reader, end| {
            let offset = if offset == 0 { reader.index.first_row() } else { offset };
            if !reader.is_row_start(offset, end)? {
                return Err(ReadError::NotARowStart { offset, end });
            }
            Ok(reader.page(offset, limit, end)?)
        })
    }

    /// The rows from a position on: up to 8 MiB of them, and at least one row, if there is one. They begin before the position if a rebuild
    /// may have moved rows since it was taken. Only the newest are returned as cells, at most `rows_max` rows and 64 KiB.
    ///
    /// # Errors
    /// That the files can't be read.
    pub fn new_rows(&mut self, from: Position, rows_max: usize) -> Result<NewRows, ReadError> {
        self.read(|reader, end| Ok(reader.rows_after(reader.still_valid(from), end, rows_max)?))
    }

    /// The position itself, or the last one before it where no row can have moved.
    fn still_valid(&self, position: Position) -> Position {
        // guard: position_goes_back: a reader that follows the file does not begin in the middle of a row that a rebuild moved
        if position.rebuilds == self.ledger.rebuilds() {
            return self.position(position.offset);
        }
        self.position(position.offset.min(position.settled))
    }

    fn position(&self, offset: u64) -> Position {
        Position { offset, settled: self.ledger.checkpoint_end(), rebuilds: self.ledger.rebuilds() }
    }

    fn rows_after(&self, start: Position, file_end: u64, rows_max: usize) -> io::Result<NewRows> {
        let from = start.offset;
        let mut new_rows = NewRows { start, end: start, count: 0, rows: Vec::new() };
        let (mut newest, mut newest_bytes) = (VecDeque::new(), 0);
        let mut input = FileRange::new(&self.files, FileKind::Csv, from, file_end);
        let (mut splitter, mut chunk) = (RowSplitter::new(from), vec![0; CHUNK_BYTES]);
        while new_rows.end.offset - from < PAGE_BYTES_MAX {
            let read = input.read(&mut chunk)?;
            if read == 0 {
                break;
            }
            splitter.feed(&chunk[..read], &mut |piece| {
                let Piece::Row(offset, row) = piece else { return };
                new_rows.end.offset = offset + row.len() as u64;
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

    /// The position where the last row ends.
    ///
    /// # Errors
    /// That the files can't be read.
    pub fn end_position(&mut self) -> Result<Position, ReadError> {
        let end = self.committed()?;
        Ok(self.position(end))
    }

    /// The position at `offset`, if a row begins there or the last row ends there.
    ///
    /// # Errors
    /// `Behind`, or that the files can't be read.
    pub fn position_at(&mut self, offset: u64) -> Result<Option<Position>, ReadError> {
        self.read_indexed(|reader, end| Ok(reader.is_row_start(offset, end)?.then(|| reader.position(offset))))
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
        FileParts::new(&self.files, self.ledger.checkpoint_end(), self.ledger.rebuilds())
    }

    /// The file up to its verified end.
    ///
    /// # Errors
    /// That the files can't be read.
    pub fn snapshot(&mut self) -> Result<Snapshot, ReadError> {
        self.read(|reader, bytes| {
            let tag = format!("{bytes:x}-{:08x}", csv_tail_checksum(&reader.files, bytes)?);
            Ok(Snapshot::new(reader.parts(), bytes, tag))
        })
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
