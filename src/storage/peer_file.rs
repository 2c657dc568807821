//! `<csv>.events`: lines that replicas leave for each other, for people to see. Nothing rests on it: it is never synced, it is
//! emptied when it has grown, and a line may be lost then.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use crate::storage::{files::beside, side_files};

/// Whoever finds it longer empties it.
const BYTES_MAX: u64 = 4 << 20;
/// The most that one look reads.
const LOOK_BYTES_MAX: u64 = 1 << 20;

/// One replica's view of the lines.
#[derive(Debug)]
pub struct Bulletin {
    csv: PathBuf,
    path: PathBuf,
    /// Where the next look begins; none before the first.
    at: Option<u64>,
}

impl Bulletin {
    /// Of a CSV whose path is resolved. Opens nothing yet.
    pub fn new(csv: &Path) -> Self {
        Self { csv: csv.to_owned(), path: beside(csv, ".events"), at: None }
    }

    /// Leaves one line, without its line break.
    ///
    /// # Errors
    /// The system's answer.
    pub fn post(&self, line: &str) -> io::Result<()> {
        let mut file = OpenOptions::new().append(true).create(true).open(&self.path)?;
        let len = file.metadata()?.len();
        if len == 0 {
            side_files::like_csv(&file, &self.csv)?;
        } else if len > BYTES_MAX {
            file.set_len(0)?;
        }
        // One write, so that lines of several replicas don't mix.
        file.write_all(format!("{line}\n").as_bytes())
    }

    /// The whole lines since the last look; from the first look on.
    ///
    /// # Errors
    /// The system's answer.
    pub fn look(&mut self) -> io::Result<String> {
        let file = match File::open(&self.path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                self.at = Some(0);
                return Ok(String::new());
            }
            other => other?,
        };
        let len = file.metadata()?.len();
        // Emptied, or another one: what is there now is new.
        let at = self.at.map_or(len, |at| if at > len { 0 } else { at });
        let from = at.max(len.saturating_sub(LOOK_BYTES_MAX));
        let mut text = vec![0; (len - from) as usize];
        let read = file.read_at(&mut text, from)?;
        text.truncate(read);
        // A line whose end is still to come is for the next look.
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
    fn each_replica_sees_every_line_once_and_goes_on_when_the_file_was_emptied() {
        let folder = tempfile::tempdir().expect("a folder");
        let csv = folder.path().join("rows.csv");
        std::fs::write(&csv, "").expect("writable");
        let (mut one, mut two) = (Bulletin::new(&csv), Bulletin::new(&csv));
        assert_eq!(one.look().expect("readable"), "");
        two.post("a").expect("writable");
        assert_eq!(two.look().expect("readable"), "", "what was there before the first look is over");
        one.post("b").expect("writable");
        assert_eq!(one.look().expect("readable"), "a\nb\n");
        assert_eq!(two.look().expect("readable"), "b\n");
        let long = "x".repeat(BYTES_MAX as usize + 1);
        one.post(&long).expect("writable");
        assert!(two.look().expect("readable").len() <= LOOK_BYTES_MAX as usize);
        one.post("c").expect("writable");
        assert_eq!(two.look().expect("readable"), "c\n");
        assert!(std::fs::metadata(&two.path).expect("there").len() < 10);
    }
}
