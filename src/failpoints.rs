//! Named points on a row's way at which a test kills or stops this very process. Nothing of it is in a release build.
//!
//! `ROWLOCK_TEST_POINTS` names a folder. Whoever comes to a point and finds a file of its name there renames it to
//! `<point>.<process id>`, so that one process is hit and no other and the test sees which; then it sends itself the signal
//! that the file names, `KILL` or `STOP`.

#[cfg(debug_assertions)]
pub(crate) use armed::{half, reach};

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

    static FOLDER: LazyLock<Option<PathBuf>> =
        LazyLock::new(|| std::env::var_os("ROWLOCK_TEST_POINTS").map(Into::into));

    /// A point on the way.
    pub(crate) fn reach(point: &str) {
        if let Some(folder) = &*FOLDER {
            take(folder, point);
        }
    }

    fn take(folder: &Path, point: &str) {
        // Read before it is taken: the test may remove what it sees taken.
        let Ok(armed) = fs::read_to_string(folder.join(point)) else { return };
        let taken = folder.join(format!("{point}.{}", process::id()));
        if fs::rename(folder.join(point), taken).is_err() {
            return;
        }
        let signal = match &*armed {
            "KILL" => Signal::KILL,
            "STOP" => Signal::STOP,
            other => panic!("a point is armed with KILL or STOP, not {other:?}"),
        };
        kill_process(getpid(), signal).expect("a process may signal itself");
        // It reaches the other threads first: this one goes no further before it does.
        thread::sleep(Duration::from_millis(20));
    }

    /// How much of a write of `len` bytes comes before the point in its middle: all of it, unless a test waits there.
    pub(crate) fn half(point: &str, len: usize) -> usize {
        let is_armed = FOLDER.as_ref().is_some_and(|folder| folder.join(point).exists());
        if is_armed { len / 2 } else { len }
    }
}

/// A point on the way.
#[cfg(not(debug_assertions))]
pub(crate) fn reach(_: &str) {}

/// How much of a write of `len` bytes comes before the point in its middle: all of it.
#[cfg(not(debug_assertions))]
pub(crate) fn half(_: &str, len: usize) -> usize {
    len
}
