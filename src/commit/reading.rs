//! Reading back: storage's reader on threads that may block, a few at a time.

use std::sync::{Arc, Mutex};

use tokio::sync::Semaphore;

use super::OpenError;
pub use crate::storage::{Page, ReadError, Row, Snapshot};
use crate::{config::Config, storage::Reader};

/// So many read at once; the others wait their turn without a thread.
const AT_ONCE: usize = 4;

/// The way to read one CSV, for as many tasks as want to.
#[derive(Debug, Clone)]
pub struct Reading {
    reader: Arc<Mutex<Reader>>,
    turns: Arc<Semaphore>,
}

impl Reading {
    /// Opens a CSV for reading that was opened for appending before.
    ///
    /// # Errors
    /// What keeps the files from being read.
    pub fn open(config: &Config) -> Result<Self, OpenError> {
        let reader = Reader::open(&super::storage_options(config, ""))?;
        Ok(Self { reader: Arc::new(Mutex::new(reader)), turns: Arc::new(Semaphore::new(AT_ONCE)) })
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
    /// `NotARowStart`, or what keeps the files from being read.
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

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Reader) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(std::io::Error::other)?;
        let reader = Arc::clone(&self.reader);
        let read = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            // A reader that panicked has an index that may be anything: no more is read by it.
            let mut reader = reader.lock().map_err(|_| std::io::Error::other("an earlier reading failed"))?;
            work(&mut reader)
        });
        read.await.unwrap_or_else(|e| Err(std::io::Error::other(e).into()))
    }
}

/// Reads a part of a snapshot on a thread that may block.
///
/// # Errors
/// The system's answer.
pub async fn read_part(snapshot: &Snapshot, offset: u64, bytes: u64) -> std::io::Result<Vec<u8>> {
    let snapshot = snapshot.clone();
    tokio::task::spawn_blocking(move || snapshot.read(offset, bytes)).await.map_err(std::io::Error::other)?
}
