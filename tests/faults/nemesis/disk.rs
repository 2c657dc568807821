//! Faults of the volume with the CSV.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::Path,
    time::{Duration, Instant},
};

use rowlock::random::Random;
use rustix::io::Errno;

use super::{ActiveFault, Fault, wait_until_written};
use crate::{
    cluster::{Cluster, REPLICAS, Volume},
    support::PATIENCE,
};

/// Files whose writes or syncs may fail.
const FILES: [&str; 3] = ["rows.csv.journal", "rows.csv", "rows.csv.keys"];
/// Fills the disk.
const FILLER: &str = "filler";
const BLOCK: usize = 4096;

impl ActiveFault {
    pub(super) async fn begin_on_disk(&mut self, cluster: &mut Cluster<'_>, random: &mut Random) {
        let folder = cluster.disk_folder();
        if self.fault == Fault::PowerCut {
            return self.cut_power(cluster, random).await;
        }
        // Most writes and syncs hit the journal; not every row writes the keys.
        let (synced, written) = (FILES[random.below(4) % FILES.len()], FILES[random.below(2)]);
        let Volume::Fuse { disk, .. } = &cluster.volume else {
            match (self.fault, &cluster.volume) {
                (Fault::DiskFull, _) => self.effects += u64::from(fill(&folder.join(FILLER))),
                (Fault::FilesystemError, Volume::Ext4(ext4)) => {
                    ext4.give_up();
                    self.effects += u64::from(is_read_only(&folder));
                }
                (fault, _) => unreachable!("{fault:?} needs another volume"),
            }
            return;
        };
        match self.fault {
            Fault::FailSync => disk.fail_syncs(synced, 1),
            Fault::FailWrite => disk.fail_writes(written, 1, Errno::IO),
            Fault::ShortWrites => disk.short_writes(true),
            Fault::ReadOnly => {
                disk.read_only(true);
                self.effects += u64::from(is_read_only(&folder));
            }
            Fault::DiskFull => {
                let allocated =
                    |name: &String| disk.read(name).map_or(0, |content| content.len().next_multiple_of(BLOCK));
                disk.capacity(Some(disk.names().iter().map(allocated).sum::<usize>() as u64));
                self.effects += u64::from(fill(&folder.join(FILLER)));
            }
            fault => unreachable!("{fault:?} needs another volume"),
        }
    }

    /// Repeats the cut until it loses a write: everything may have been synced just before.
    async fn cut_power(&mut self, cluster: &mut Cluster<'_>, random: &mut Random) {
        let (folder, deadline) = (cluster.disk_folder(), Instant::now() + PATIENCE);
        while self.effects == 0 && Instant::now() < deadline {
            if cluster.serving().is_empty() {
                cluster.start_missing(REPLICAS).await;
                wait_until_written(cluster).await;
            }
            tokio::time::sleep(Duration::from_millis(random.below(100) as u64)).await;
            for slot in cluster.serving() {
                cluster.kill(slot);
            }
            let Volume::Fuse { disk, mounted } = &mut cluster.volume else { unreachable!("a volume without power") };
            mounted.take().expect("it was mounted").unmount();
            self.effects += disk.cut_power().writes as u64;
            *mounted = Some(disk.mount(&folder));
        }
        // Half of the time Redis loses power, too, and has no file.
        if random.chance(50) {
            cluster.redis.cli(&["flushall"]);
        }
    }

    pub(super) fn end_on_disk(&self, cluster: &mut Cluster<'_>) {
        if self.fault == Fault::PowerCut {
            return;
        }
        let folder = cluster.disk_folder();
        if self.fault == Fault::FilesystemError {
            for slot in cluster.serving() {
                cluster.kill(slot);
            }
        }
        match &cluster.volume {
            Volume::Fuse { disk, .. } => {
                for file in FILES {
                    disk.fail_writes(file, 0, Errno::IO);
                    disk.fail_syncs(file, 0);
                }
                disk.short_writes(false);
                disk.read_only(false);
                disk.capacity(None);
            }
            Volume::Ext4(ext4) if self.fault == Fault::FilesystemError => ext4.repair_and_mount_again(),
            _ => {}
        }
        let _ = fs::remove_file(folder.join(FILLER));
    }
}

/// How many syncs or writes the disk has failed or shortened so far.
pub(super) fn failures(cluster: &Cluster<'_>, fault: Fault) -> u64 {
    match (&cluster.volume, fault) {
        (Volume::Fuse { disk, .. }, Fault::FailSync) => disk.syncs_failed().into(),
        (Volume::Fuse { disk, .. }, Fault::FailWrite) => disk.writes_failed().into(),
        (Volume::Fuse { disk, .. }, Fault::ShortWrites) => disk.writes_shortened().into(),
        _ => 0,
    }
}

/// Writes until the disk is full; false if a write fails for another reason.
fn fill(path: &Path) -> bool {
    let mut file = File::create(path).expect("created");
    let mut bytes = 1 << 20;
    while bytes > 0 {
        match file.write_all(&vec![b'x'; bytes]) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::StorageFull => bytes /= 16,
            Err(_) => return false,
        }
    }
    true
}

fn is_read_only(folder: &Path) -> bool {
    File::create(folder.join("x")).is_err_and(|e| e.kind() == ErrorKind::ReadOnlyFilesystem)
}
