//! `<csv>.events`: lines that replicas send each other for `/events`. No promise depends on this file: it is never synced, it
//! is emptied when it grows large, and a line may be lost then.

use std::{
    io::{self, ErrorKind, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::OFlags;

use crate::storage::{
    files::{
        handles::{retry, try_until},
        is_network,
    },
    safe_open::{Access, open_or_create, open_side_file},
    side_files::{copy_owner_and_mode, side_path},
};

/// A replica that finds the file longer than this empties it.
const BYTES_MAX: u64 = 4 << 20;
/// The most that one poll reads.
const POLL_BYTES_MAX: u64 = 1 << 20;
/// How long a line tries for the file's lock on a network volume. After that it is lost.
const LOCK_WAIT: Duration = Duration::from_millis(100);

/// One replica's view of the lines.
#[derive(Debug)]
pub struct PeerFile {
    csv: PathBuf,
    path: PathBuf,
    /// Where the next poll begins; `None` before the first poll.
    at: Option<u64>,
    /// Whether other hosts append, too. The client of a network volume only imitates `O_APPEND`: without a lock, lines of two
    /// hosts would overwrite each other.
    is_network: bool,
}

impl PeerFile {
    /// The peer file of a CSV whose path is resolved. Opens nothing yet.
    pub fn new(csv: &Path) -> Self {
        Self {
            csv: csv.to_owned(),
            path: side_path(csv, ".events"),
            at: None,
            is_network: is_network(csv).unwrap_or_default(),
        }
    }

    /// Appends one line, given without its line break.
    ///
    /// # Errors
    /// The system's error.
    pub fn publish(&self, line: &str) -> io::Result<()> {
        let mut file = open_or_create(&self.path, &self.csv, Access::Append, OFlags::empty())?;
        if self.is_network && try_until(Instant::now() + LOCK_WAIT, || file.try_lock()).is_err() {
            return Ok(());
        }
        let len = file.metadata()?.len();
        if len == 0 {
            copy_owner_and_mode(&file, &self.csv)?;
        } else if len > BYTES_MAX {
            file.set_len(0)?;
        }
        // One write, so that the lines of several replicas do not mix.
        file.write_all(format!("{line}\n").as_bytes())
    }

    /// Returns the whole lines since the last poll. The first poll returns none.
    ///
    /// # Errors
    /// The system's error.
    pub fn poll(&mut self) -> io::Result<String> {
        let file = match open_side_file(&self.path, &self.csv, Access::Read, OFlags::empty()) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                self.at = Some(0);
                return Ok(String::new());
            }
            other => other?,
        };
        let len = file.metadata()?.len();
        // A shorter file was emptied or replaced: all its lines are new.
        let at = self.at.map_or(len, |at| if at > len { 0 } else { at });
        let from = at.max(len.saturating_sub(POLL_BYTES_MAX));
        let mut text = vec![0; (len - from) as usize];
        let read = retry(|| file.read_at(&mut text, from))?;
        text.truncate(read);
        // An incomplete last line is left for the next poll.
        let whole = memchr::memrchr(b'\n', &text).map_or(0, |at| at + 1);
        text.truncate(whole);
        self.at = Some(from + whole as u64);
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_received_once_by_each_replica_across_emptying() {
        let folder = tempfile::tempdir().expect("a folder");
        let csv = folder.path().join("rows.csv");
        std::fs::write(&csv, "").expect("writable");
        let (mut one, mut two) = (PeerFile::new(&csv), PeerFile::new(&csv));
        assert_eq!(one.poll().expect("readable"), "");
        two.publish("a").expect("writable");
        assert_eq!(two.poll().expect("readable"), "", "lines before the first poll are not returned");
        one.publish("b").expect("writable");
        assert_eq!(one.poll().expect("readable"), "a\nb\n");
        assert_eq!(two.poll().expect("readable"), "b\n");
        let long = "x".repeat(BYTES_MAX as usize + 1);
        one.publish(&long).expect("writable");
        assert!(two.poll().expect("readable").len() <= POLL_BYTES_MAX as usize);
        one.publish("c").expect("writable");
        assert_eq!(two.poll().expect("readable"), "c\n");
        assert!(std::fs::metadata(&two.path).expect("there").len() < 10);
    }
}
