//! Scenes: the volume of a run, and the faults that may hit it.

use crate::{checker::AllowedErrors, cluster::VolumeKind, nemesis::Fault};

/// Faults that belong together.
pub(crate) struct Scene {
    pub(crate) name: &'static str,
    pub(crate) volume: VolumeKind,
    pub(crate) faults: &'static [Fault],
    /// Whether faults overlap.
    pub(crate) overlaps: bool,
}

use Fault::*;

pub(crate) const SCENES: [Scene; 13] = [
    scene("kill", VolumeKind::Folder, &[KillOne, KillAtFailpoint, KillAll]),
    scene("stop", VolumeKind::Folder, &[StopOne, StopAtFailpoint, StopAll, StopRedis, StopUnderForeignHolder]),
    scene(
        "redis-lost",
        VolumeKind::Folder,
        &[RedisRestartsEmpty, RedisRestarts, FlushAll, FlushUnderHolder, PromoteLagging],
    ),
    scene("redis-errors", VolumeKind::Folder, &[KillClients, OutOfMemory, DebugSleep, DeleteLock, ExpireLock]),
    scene("network", VolumeKind::Folder, &[PartitionFromRedis, DropRedisRequests, DropRedisReplies, PartitionClients]),
    scene("connections", VolumeKind::Folder, &[ResetResponses, ResetRedisReplies, SlowClients, SlowRedis]),
    scene("power", VolumeKind::Fuse, &[PowerCut, FailSync, FailWrite, ShortWrites]),
    scene("disk-full", VolumeKind::Fuse, &[DiskFull, ReadOnly, PowerCut]),
    scene("tmpfs", VolumeKind::Tmpfs, &[DiskFull, KillAll]),
    scene("ext4", VolumeKind::Ext4, &[DiskFull, FilesystemError]),
    scene("clock", VolumeKind::Folder, &[ClockForward, ClockBackward]),
    scene(
        "replicas",
        VolumeKind::Folder,
        &[Terminate, RollingRestart, ScaleOut, ScaleIn, ForeignLines, ForeignHalfLine],
    ),
    Scene {
        name: "mixed",
        // Without foreign lines: their writer does not sync them, and a power cut loses them.
        volume: VolumeKind::Fuse,
        faults: &[
            KillOne,
            KillAtFailpoint,
            KillAll,
            StopOne,
            StopAtFailpoint,
            StopAll,
            StopRedis,
            FlushUnderHolder,
            RedisRestartsEmpty,
            RedisRestarts,
            FlushAll,
            KillClients,
            OutOfMemory,
            DeleteLock,
            PromoteLagging,
            PartitionFromRedis,
            DropRedisReplies,
            PartitionClients,
            ResetResponses,
            SlowRedis,
            PowerCut,
            FailSync,
            FailWrite,
            ReadOnly,
            DiskFull,
            ClockForward,
            ClockBackward,
            Terminate,
            RollingRestart,
            ScaleOut,
        ],
        overlaps: true,
    },
];

/// Faults that may begin while another one lasts, see `Fault::allows_overlap`.
pub(crate) const OVERLAPPING: [Fault; 5] = [FlushAll, KillClients, KillOne, PartitionFromRedis, PowerCut];

const fn scene(name: &'static str, volume: VolumeKind, faults: &'static [Fault]) -> Scene {
    Scene { name, volume, faults, overlaps: false }
}

impl Scene {
    pub(crate) fn named(name: &str) -> Result<&'static Self, String> {
        let found = SCENES.iter().find(|scene| scene.name == name);
        let names = || SCENES.iter().map(|scene| scene.name).collect::<Vec<_>>().join(", ");
        found.ok_or_else(|| format!("the scenes are {}", names()))
    }

    pub(crate) fn has(&self, any: &[Fault]) -> bool {
        self.faults.iter().any(|fault| any.contains(fault))
    }

    /// Errors that the faults explain.
    pub(crate) fn allowed(&self) -> AllowedErrors {
        let disk_errors = self.volume != VolumeKind::Folder;
        let interrupt_appends = [KillOne, KillAtFailpoint, KillAll, StopOne, StopAtFailpoint, StopAll, ForeignHalfLine];
        AllowedErrors { disk_errors, short_reads: disk_errors || self.has(&interrupt_appends) }
    }
}
