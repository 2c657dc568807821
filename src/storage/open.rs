//! Opens or creates a CSV and its side files, and refuses what would put rows at risk.

use std::{io, path::Path, sync::Arc, time::Instant};

use crate::{
    metrics::NONE,
    storage::{
        Storage, adopt,
        error::{AppendError, OpenError},
        files::{Files, START_WAIT},
        format::Format,
        journal::Layout,
        ledger::{Ledger, LedgerOptions, Purpose, RefreshOutcome, RepairMode},
        safe_open::{refuse_unsafe_side_files, warn_of_open_folder},
        side_files,
        slow_call::watched,
        types::Options,
        volume::VolumeInfo,
    },
};

impl Storage {
    /// Opens or creates the CSV and its side files. A CSV without a journal is read through once.
    ///
    /// # Errors
    /// Whatever makes the file unusable for appending, as one line that names it.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        let path = watched(&options.path, "find", || side_files::resolve(&options.path))?;
        let new_file = Arc::new(side_files::parse_header_option(&options.header)?);
        let volume = judge_volume(&path, &options)?;
        watched(&path, "find", || refuse_unsafe_side_files(&path))?;
        if !options.is_repair {
            watched(&path, "find", || adopt::refuse_missing(&path))?;
        }
        watched(&path, "create", || {
            side_files::ensure_exists(&path, &new_file)?;
            adopt::write_header_if_empty(&path, &new_file)?;
            side_files::ensure_keys(&path, options.keys as u64)
                .map_err(|e| OpenError::io(&path, "create the keys file of", e))
        })?;
        if !side_files::side_path(&path, ".journal").exists() {
            adopt::create_journal(&path, &new_file, &options)?;
        }
        let files = open_files(&path, options.accept_unlocked)?;
        let files = Arc::new(files);
        let format = watched(&path, "read", || Format::read(&files, &path, &new_file))?;
        if *format.schema != *new_file {
            tracing::info!(csv = %path.display(), "the file keeps its own header, which differs from ROWLOCK_CSV_HEADER");
        }
        let purpose = if options.is_repair { Purpose::Repair } else { Purpose::Append };
        let Options { replica, journal_bytes, keys, meter, .. } = options;
        let options = LedgerOptions { path, layout: Layout::REAL, format, replica, keys, purpose, meter };
        let ledger = Ledger::open(Arc::clone(&files), options)?;
        let mut storage = Self {
            volume,
            files,
            ledger,
            hold: None,
            failed_holds: 0,
            keep_until: Instant::now(),
            own_until: 0,
            is_alone: false,
            checkpoint: None,
            checkpoint_failed: false,
            idle_since: 0,
            keys_recorded: Arc::default(),
            is_keys_file_large_enough: false,
            journal_bytes_wanted: Some(journal_bytes),
        };
        storage.first_refresh()?;
        // Not before: a refused start prints one line.
        storage.volume.log(storage.path());
        storage.volume.warn(storage.path());
        warn_of_open_folder(storage.path());
        Ok(storage)
    }

    /// Refreshes without repairs, which need the lock. Waits a limited time for a process that holds the OS lock.
    fn first_refresh(&mut self) -> Result<(), OpenError> {
        let path = self.ledger.path().to_owned();
        let refuse = |e| match e {
            AppendError::Unfit(e) => e,
            AppendError::Before { doing, source } => OpenError::io(&path, doing, source),
            AppendError::DiskFull(source) => OpenError::io(&path, "make room for keys of", source),
            other => OpenError::io(&path, "refresh", io::Error::other(other)),
        };
        let lock = match watched(&path, "lock", || self.begin_hold(Instant::now() + START_WAIT)) {
            Ok(lock) => lock,
            Err(AppendError::Busy) => {
                tracing::warn!(csv = %path.display(), "another process holds the file lock; rows wait for it");
                return Ok(());
            }
            Err(e) => return Err(refuse(e)),
        };
        let outcome = self.ledger.refresh(RepairMode::Forbidden).map_err(refuse)?;
        if let RefreshOutcome::Consistent(Some(open_line)) = outcome {
            self.ledger.refuse_several_lines(open_line)?;
        }
        if outcome != RefreshOutcome::NeedsRepair {
            self.resize_journal().map_err(refuse)?;
        }
        drop(lock);
        self.end_hold();
        self.publish_keys_recorded();
        Ok(())
    }

    /// Makes the keys file as large as this replica remembers keys, once. The OS lock is held.
    pub(super) fn make_room_for_keys(&mut self) -> Result<(), AppendError> {
        if self.is_keys_file_large_enough {
            return Ok(());
        }
        let (path, capacity) = (self.ledger.path(), self.ledger.keys_capacity());
        let grown = self.ledger.keys_stored().and_then(|end| side_files::grow_keys(&self.files, path, end, capacity));
        grown.map_err(AppendError::before("enlarge the keys file of"))?;
        self.is_keys_file_large_enough = true;
        Ok(())
    }

    /// Gives the journal the size that this replica was started with, once. Follows a refresh that found no damage.
    pub(super) fn resize_journal(&mut self) -> Result<(), AppendError> {
        let Some(bytes) = self.journal_bytes_wanted.take().filter(|&bytes| bytes != self.ledger.journal_bytes()) else {
            return Ok(());
        };
        match self.ledger.resize(bytes) {
            Err(AppendError::DiskFull(e)) => {
                tracing::warn!(error = %e, "not enough space to resize the journal; it keeps its size");
                Ok(())
            }
            other => other,
        }
    }
}

/// Finds the volume, and refuses one on which rows would be lost.
fn judge_volume(csv: &Path, options: &Options) -> Result<VolumeInfo, OpenError> {
    let volume = watched(csv, "find the volume of", || VolumeInfo::of(csv))
        .map_err(|e| OpenError::io(csv, "find the volume of", e))?;
    if !options.accept_unlocked {
        volume.refuse_unsafe().map_err(|refusal| OpenError::UnsafeVolume(csv.to_owned(), refusal))?;
    }
    options.meter.set_volume_info(volume.fs_type(), volume.kind().name(), volume.version().unwrap_or(NONE));
    Ok(volume)
}

/// Opens the files, and refuses a volume whose locks do nothing unless that is accepted.
fn open_files(csv: &Path, accept_unlocked: bool) -> Result<Files, OpenError> {
    let mut files = watched(csv, "open", || Files::open(csv)).map_err(|e| OpenError::io(csv, "open", e))?;
    if !watched(csv, "lock", || files.locks_work()).map_err(|e| OpenError::io(csv, "lock", e))? {
        if !accept_unlocked {
            return Err(OpenError::Unlocked(csv.to_owned()));
        }
        tracing::warn!(csv = %csv.display(), "file locks do not work on this volume: a stopped replica that continues may damage rows");
        files.accept_unlocked();
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        path::PathBuf,
        sync::atomic::Ordering,
        thread,
        time::Duration,
    };

    use super::*;
    use crate::storage::{keys, tests::append_key, types::EntryOutcome};

    const FEW: usize = 50;
    const MANY: usize = 400;

    fn open(path: &Path, keys: usize, journal_bytes: u64) -> Storage {
        let options = Options {
            path: path.to_owned(),
            header: "token,data".to_owned(),
            replica: "r".to_owned(),
            journal_bytes,
            keys,
            accept_unlocked: false,
            is_repair: false,
            meter: Arc::default(),
        };
        Storage::open(options).expect("opens")
    }

    /// Appends a row with the key of this number.
    fn append(storage: &mut Storage, number: usize) -> EntryOutcome {
        let seen = storage.keys_recorded().load(Ordering::Relaxed);
        append_key(storage, number as u64, seen)
    }

    /// A CSV whose keys file has few slots, and the lock on its journal, as a stopped process holds it.
    fn held_csv(folder: &Path) -> (PathBuf, File) {
        let path = folder.join("rows.csv");
        open(&path, FEW, 1 << 20).close().expect("closed");
        let journal = File::open(side_files::side_path(&path, ".journal")).expect("opens");
        journal.lock().expect("locks");
        (path, journal)
    }

    #[test]
    fn keys_stay_known_after_a_start_beside_a_held_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, held) = held_csv(folder.path());
        let mut storage = open(&path, MANY, 1 << 20);
        held.unlock().expect("unlocks");
        for number in 0..MANY {
            assert!(matches!(append(&mut storage, number), EntryOutcome::Written { .. }));
        }
        storage.close().expect("closed");
        let mut storage = open(&path, MANY, 1 << 20);
        for number in 0..MANY {
            assert!(matches!(append(&mut storage, number), EntryOutcome::Replayed(_)), "key {number} is forgotten");
        }
    }

    #[test]
    fn keys_of_others_outlive_a_late_growth_of_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, held) = held_csv(folder.path());
        let mut late = open(&path, MANY, 1 << 20);
        held.unlock().expect("unlocks");
        // Many more keys are stored than the late replica knew of when it started.
        let mut other = open(&path, FEW, 1 << 20);
        for number in 0..FEW * 5 {
            append(&mut other, number);
        }
        other.close().expect("closed");
        for number in FEW * 4..FEW * 5 {
            assert!(matches!(append(&mut late, number), EntryOutcome::Replayed(_)), "key {number} is forgotten");
        }
        assert_eq!(keys::slots(&late.files).expect("readable"), MANY as u64);
    }

    #[test]
    fn journal_is_resized_once_the_held_file_is_free() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, held) = held_csv(folder.path());
        let mut storage = open(&path, FEW, 2 << 20);
        held.unlock().expect("unlocks");
        append(&mut storage, 0);
        while storage.ledger.journal_bytes() != 2 << 20 {
            storage.idle_refresh().expect("refreshes");
            thread::sleep(Duration::from_millis(1));
        }
        let journal = fs::metadata(side_files::side_path(&path, ".journal")).expect("there");
        assert_eq!(journal.len(), 2 << 20);
        assert!(matches!(append(&mut storage, 0), EntryOutcome::Replayed(_)));
    }
}
