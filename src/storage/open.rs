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
        };
        storage.first_refresh(journal_bytes)?;
        // Not before: a refused start prints one line.
        storage.volume.log(storage.path());
        storage.volume.warn(storage.path());
        Ok(storage)
    }

    /// Refreshes without repairs, which need the lock. Waits a limited time for a process that holds the OS lock.
    fn first_refresh(&mut self, journal_bytes: u64) -> Result<(), OpenError> {
        let path = self.ledger.path().to_owned();
        let refuse = |e| match e {
            AppendError::Unfit(e) => e,
            AppendError::Before { doing, source } => OpenError::io(&path, doing, source),
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
        side_files::grow_keys(&self.files, &path, self.ledger.keys_stored(), self.ledger.keys_capacity())
            .map_err(|e| OpenError::io(&path, "enlarge the keys file of", e))?;
        let outcome = self.ledger.refresh(RepairMode::Forbidden).map_err(refuse)?;
        if let RefreshOutcome::Consistent(Some(open_line)) = outcome {
            self.ledger.refuse_several_lines(open_line)?;
        }
        if outcome != RefreshOutcome::NeedsRepair && self.ledger.journal_bytes() != journal_bytes {
            match self.ledger.resize(journal_bytes) {
                Err(AppendError::DiskFull(e)) => {
                    tracing::warn!(error = %e, "not enough space to resize the journal; it keeps its size");
                }
                other => other.map_err(refuse)?,
            }
        }
        drop(lock);
        self.end_hold();
        self.publish_keys_recorded();
        Ok(())
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
