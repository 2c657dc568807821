//! Reading rows back: the storage's reader on threads that may block, one read at a time.

use std::{io::ErrorKind, sync::Arc, time::Duration};

use tokio::sync::Mutex;

use crate::commit::{
    appender::Appender,
    open::{OpenError, storage_options},
    storage_watch::StorageWatch,
};
pub use crate::storage::{FileParts, NewRows, Page, Position, ReadError, Row, Snapshot};
use crate::{api::volume::Volume, config::Config, storage::Reader};

/// The handle to read one CSV. Tasks wait for each other in order, without occupying a thread.
#[derive(Debug, Clone)]
pub struct Reading {
    /// `None` after a read that panicked: its index may be wrong.
    reader: Arc<Mutex<Option<Reader>>>,
    storage_watch: StorageWatch,
    /// How long a read waits for a volume that does not answer.
    wait_timeout: Duration,
}

impl Reading {
    /// Opens a CSV that is already open for appending, on a thread that may block.
    ///
    /// # Errors
    /// If the files cannot be read.
    pub async fn open(config: &Config, appender: &Appender) -> Result<Self, OpenError> {
        let options = storage_options(config, "", appender.shared_meter());
        let opened = tokio::task::spawn_blocking(move || Reader::open(&options)).await;
        let reader = opened.unwrap_or_else(|e| std::panic::resume_unwind(e.into_panic()))?;
        let storage_watch = appender.storage_watch().clone();
        Ok(Self { reader: Arc::new(Mutex::new(Some(reader))), storage_watch, wait_timeout: config.wait_timeout })
    }

    /// Where the last rows are, and how to read them.
    ///
    /// # Errors
    /// If the files cannot be read.
    pub async fn last(&self, rows: usize) -> Result<(Page, FileParts), ReadError> {
        self.read(move |reader| Ok((reader.last(rows)?, reader.parts()))).await
    }

    /// Where the rows from an offset on are, and how to read them. The offset must be the start of a row; 0 is the first row.
    ///
    /// # Errors
    /// `NotARowStart`, `Behind`, or if the files cannot be read.
    pub async fn from(&self, offset: u64, limit: usize) -> Result<(Page, FileParts), ReadError> {
        self.read(move |reader| Ok((reader.from(offset, limit)?, reader.parts()))).await
    }

    /// The whole file as of now.
    ///
    /// # Errors
    /// If the files cannot be read.
    pub async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        self.read(Reader::snapshot).await
    }

    /// The rows after a position; at most the newest `rows_max` of them. They begin before it if a rebuild may have moved rows since.
    ///
    /// # Errors
    /// If the files cannot be read.
    pub async fn new_rows(&self, from: Position, rows_max: usize) -> Result<NewRows, ReadError> {
        self.read(move |reader| reader.new_rows(from, rows_max)).await
    }

    /// The position at `offset`, if a row begins there or the last one ends there.
    ///
    /// # Errors
    /// `Behind`, or if the files cannot be read.
    pub async fn position_at(&self, offset: u64) -> Result<Option<Position>, ReadError> {
        self.read(move |reader| reader.position_at(offset)).await
    }

    /// File, journal and volume, as of now.
    ///
    /// # Errors
    /// If the files cannot be read.
    pub async fn volume(&self) -> Result<Volume, ReadError> {
        self.read(|reader| {
            reader.committed()?;
            Ok(reader.volume()?)
        })
        .await
    }

    /// `new_rows`, for a thread that may block.
    pub(super) fn new_rows_blocking(&self, from: Position, rows_max: usize) -> Result<NewRows, ReadError> {
        with_reader(&mut self.reader.blocking_lock(), |reader| reader.new_rows(from, rows_max))
    }

    /// The position where the last row ends.
    pub(super) fn end_blocking(&self) -> Result<Position, ReadError> {
        with_reader(&mut self.reader.blocking_lock(), Reader::end_position)
    }

    /// File, journal and volume, as of the last read.
    pub(super) fn volume_blocking(&self) -> Result<Volume, ReadError> {
        with_reader(&mut self.reader.blocking_lock(), |reader| Ok(reader.volume()?))
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Reader) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let done = async {
            let mut reader = Arc::clone(&self.reader).lock_owned().await;
            let done = tokio::task::spawn_blocking(move || with_reader(&mut reader, read));
            done.await.unwrap_or_else(|e| Err(std::io::Error::other(e).into()))
        };
        let give_up = async {
            tokio::time::sleep(self.wait_timeout).await;
            self.storage_watch.until_stuck().await;
        };
        tokio::select! {
            result = done => result,
            () = give_up => Err(std::io::Error::from(ErrorKind::TimedOut).into()),
        }
    }
}

fn with_reader<T>(
    slot: &mut Option<Reader>,
    read: impl FnOnce(&mut Reader) -> Result<T, ReadError>,
) -> Result<T, ReadError> {
    let mut reader = slot.take().ok_or_else(|| std::io::Error::other("an earlier read panicked"))?;
    let result = read(&mut reader);
    *slot = Some(reader);
    result
}

/// Reads a part of a snapshot on a thread that may block.
///
/// # Errors
/// If the file cannot be read.
pub async fn read_part(snapshot: &Snapshot, offset: u64, bytes: u64) -> std::io::Result<Vec<u8>> {
    let snapshot = snapshot.clone();
    tokio::task::spawn_blocking(move || snapshot.read(offset, bytes)).await.map_err(std::io::Error::other)?
}
