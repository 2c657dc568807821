//! Named points in the write path at which tests kill or stop this process. Not part of release builds.
//!
//! `ROWLOCK_TEST_POINTS` names a folder. A process that reaches a point, and finds a file with the point's name there, renames
//! it to `<point>.<process id>`, so that only one process is hit and the test sees which one. Then it sends itself the signal
//! that the file contains, `KILL` or `STOP`.

#[cfg(debug_assertions)]
pub(crate) use armed::{hit, partial_len};

/// The variables that are read here.
pub(crate) const VARIABLES: &[&str] = if cfg!(debug_assertions) { &["ROWLOCK_TEST_POINTS"] } else { &[] };

#[cfg(debug_assertions)]
mod armed {
    use std::{
        fs,
        path::{Path, PathBuf},
        process,
        sync::LazyLock,
        thread,
        time::Duration,
    };

    use rustix::process::{Signal, getpid, kill_process};

    use crate::failpoints::VARIABLES;

    static FOLDER: LazyLock<Option<PathBuf>> = LazyLock::new(|| std::env::var_os(VARIABLES[0]).map(Into::into));

    /// Kills or stops this process if the point is armed.
    pub(crate) fn hit(point: &str) {
        if let Some(folder) = &*FOLDER {
            take(folder, point);
        }
    }

    fn take(folder: &Path, point: &str) {
        // Read first, since the test may delete the renamed file at once.
        let Ok(armed) = fs::read_to_string(folder.join(point)) else { return };
        let taken = folder.join(format!("{point}.{}", process::id()));
        if fs::rename(folder.join(point), taken).is_err() {
            return;
        }
        let signal = match &*armed {
            "KILL" => Signal::KILL,
            "STOP" => Signal::STOP,
            other => panic!("a failpoint is armed with KILL or STOP, not {other:?}"),
        };
        kill_process(getpid(), signal).expect("a process may signal itself");
        // The signal may reach other threads first. This thread must not continue before it arrives.
        thread::sleep(Duration::from_millis(20));
    }

    /// How many of `len` bytes to write before the point in the middle of the write: all of them unless the point is armed.
    pub(crate) fn partial_len(point: &str, len: usize) -> usize {
        let is_armed = FOLDER.as_ref().is_some_and(|folder| folder.join(point).exists());
        if is_armed { len / 2 } else { len }
    }
}

/// Does nothing in release builds.
#[cfg(not(debug_assertions))]
pub(crate) fn hit(_: &str) {}

/// How many of `len` bytes to write before the point in the middle of the write: all of them in release builds.
#[cfg(not(debug_assertions))]
pub(crate) fn partial_len(_: &str, len: usize) -> usize {
    len
}
