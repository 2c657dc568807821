//! Reading back: storage's reader on a thread that may block, one reading at a time.

use std::sync::Arc;

use tokio::sync::Mutex;

use crate::commit::{Appender, OpenError};
pub use crate::{
    api::volume::Volume,
    storage::{NewRows, Page, ReadError, Row, Snapshot},
};
use crate::{config::Config, storage::Reader};

/// The way to read one CSV, for as many tasks as want to: they wait for each other in order, and without a thread.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Gone while it reads: one that panicked has an index that may be anything, and does not come back.
    reader: Arc<Mutex<Option<Reader>>>,
}

impl Reading {
    /// Opens a CSV for reading that was opened for appending before.
    ///
    /// # Errors
    /// What keeps the files from being read.
    pub fn open(config: &Config, appender: &Appender) -> Result<Self, OpenError> {
        let reader = Reader::open(&super::storage_options(config, "", &appender.meter))?;
        Ok(Self { reader: Arc::new(Mutex::new(Some(reader))) })
    }

    /// The last rows.
    ///
    /// # Errors
    /// What keeps the files from being read.
    pub async fn last(&self, rows: usize) -> Result<Page, ReadError> {
        self.read(move |reader| reader.last(rows)).await
    }

    /// The rows from an offset on, where one must begin; 0 is the first.
    ///
    /// # Errors
    /// `NotARowStart`, `Behind`, or what keeps the files from being read.
    pub async fn from(&self, offset: u64, limit: usize) -> Result<Page, ReadError> {
        self.read(move |reader| reader.from(offset, limit)).await
    }

    /// The whole file as of now.
    ///
    /// # Errors
    /// What keeps the files from being read.
    pub async fn snapshot(&self) -> Result<Snapshot, ReadError> {
        self.read(Reader::snapshot).await
    }

    /// What follows an offset where a row begins; of its rows, the newest.
    ///
    /// # Errors
    /// What keeps the files from being read.
    pub async fn new_rows(&self, from: u64, rows_max: usize) -> Result<NewRows, ReadError> {
        self.read(move |reader| reader.new_rows(from, rows_max)).await
    }

    /// Whether a row begins at `offset`, or the last one ends there.
    ///
    /// # Errors
    /// `Behind`, or what keeps the files from being read.
    pub async fn is_start(&self, offset: u64) -> Result<bool, ReadError> {
        self.read(move |reader| reader.is_start(offset)).await
    }

    /// File, journal and volume, as of now.
    ///
    /// # Errors
    /// What keeps the files from being read.
    pub async fn volume(&self) -> Result<Volume, ReadError> {
        let look = |reader: &mut Reader| {
            reader.committed()?;
            Ok(reader.volume()?)
        };
        self.read(look).await
    }

    /// As `new_rows`, for a thread that may block.
    pub(crate) fn new_rows_now(&self, from: u64, rows_max: usize) -> Result<NewRows, ReadError> {
        work(&mut self.reader.blocking_lock(), |reader| reader.new_rows(from, rows_max))
    }

    /// Where the last row ends.
    pub(crate) fn end_now(&self) -> Result<u64, ReadError> {
        work(&mut self.reader.blocking_lock(), Reader::committed)
    }

    /// File, journal and volume, as of the last reading.
    pub(crate) fn volume_now(&self) -> Result<Volume, ReadError> {
        work(&mut self.reader.blocking_lock(), |reader| Ok(reader.volume()?))
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Reader) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let mut reader = Arc::clone(&self.reader).lock_owned().await;
        let done = tokio::task::spawn_blocking(move || work(&mut reader, read));
        done.await.unwrap_or_else(|e| Err(std::io::Error::other(e).into()))
    }
}

fn work<T>(place: &mut Option<Reader>, read: impl FnOnce(&mut Reader) -> Result<T, ReadError>) -> Result<T, ReadError> {
    let mut reader = place.take().ok_or_else(|| std::io::Error::other("an earlier reading failed"))?;
    let result = read(&mut reader);
    *place = Some(reader);
    result
}

/// Reads a part of a snapshot on a thread that may block.
///
/// # Errors
/// The system's answer.
pub async fn read_part(snapshot: &Snapshot, offset: u64, bytes: u64) -> std::io::Result<Vec<u8>> {
    let snapshot = snapshot.clone();
    tokio::task::spawn_blocking(move || snapshot.read(offset, bytes)).await.map_err(std::io::Error::other)?
}
