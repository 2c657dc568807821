//! What a run has to work with, and which faults may hit it.

use crate::{checker::Allowed, cluster::VolumeKind, nemesis::Fault};

/// Faults that belong together.
pub(crate) struct Scene {
    pub(crate) name: &'static str,
    pub(crate) volume: VolumeKind,
    pub(crate) faults: &'static [Fault],
    /// Whether they overlap.
    pub(crate) is_mixed: bool,
}

use Fault::*;

pub(crate) const SCENES: [Scene; 13] = [
    alone("kill", VolumeKind::Folder, &[KillOne, KillAtPoint, KillAll]),
    alone("stop", VolumeKind::Folder, &[StopOne, StopAtPoint, StopAll, StopRedis, StopUnderForeignHolder]),
    alone(
        "redis-lost",
        VolumeKind::Folder,
        &[RedisBeginsEmpty, RedisBeginsAgain, FlushAll, FlushUnderHolder, PromoteLagging],
    ),
    alone("redis-ill", VolumeKind::Folder, &[KillClients, OutOfMemory, DebugSleep, DeleteLock, ExpireLock]),
    alone("network", VolumeKind::Folder, &[CutFromRedis, LoseRequests, LoseAnswers, CutClients]),
    alone("links", VolumeKind::Folder, &[ResetAnswers, ResetRedis, SlowClients, SlowRedis]),
    alone("power", VolumeKind::Fuse, &[PowerCut, FailSync, FailWrite, ShortWrites]),
    alone("room", VolumeKind::Fuse, &[DiskFull, ReadOnly, PowerCut]),
    alone("tmpfs", VolumeKind::Tmpfs, &[DiskFull, KillAll]),
    alone("ext4", VolumeKind::Ext4, &[DiskFull, DiskGivesUp]),
    alone("clock", VolumeKind::Folder, &[ClockAhead, ClockBack]),
    alone("fleet", VolumeKind::Folder, &[Leave, RollingRestart, ScaleOut, ScaleIn, ForeignLines, ForeignHalfLine]),
    Scene {
        name: "mixed",
        // Power cuts among all else; foreign lines are left out, since what was never synced is lost with the power.
        volume: VolumeKind::Fuse,
        faults: &[
            KillOne,
            KillAtPoint,
            KillAll,
            StopOne,
            StopAtPoint,
            StopAll,
            StopRedis,
            FlushUnderHolder,
            RedisBeginsEmpty,
            RedisBeginsAgain,
            FlushAll,
            KillClients,
            OutOfMemory,
            DeleteLock,
            PromoteLagging,
            CutFromRedis,
            LoseAnswers,
            CutClients,
            ResetAnswers,
            SlowRedis,
            PowerCut,
            FailSync,
            FailWrite,
            ReadOnly,
            DiskFull,
            ClockAhead,
            ClockBack,
            Leave,
            RollingRestart,
            ScaleOut,
        ],
        is_mixed: true,
    },
];

/// What may hit while another fault lasts that can bear it.
pub(crate) const MEANWHILE: [Fault; 5] = [FlushAll, KillClients, KillOne, CutFromRedis, PowerCut];

/// Whether another fault may hit meanwhile.
pub(crate) fn bears_another(fault: Fault) -> bool {
    matches!(fault, StopOne | CutClients | SlowRedis | ClockAhead | ClockBack | ScaleOut)
}

const fn alone(name: &'static str, volume: VolumeKind, faults: &'static [Fault]) -> Scene {
    Scene { name, volume, faults, is_mixed: false }
}

impl Scene {
    pub(crate) fn named(name: &str) -> Result<&'static Self, String> {
        let found = SCENES.iter().find(|scene| scene.name == name);
        let names = || SCENES.iter().map(|scene| scene.name).collect::<Vec<_>>().join(", ");
        found.ok_or_else(|| format!("there are the scenes {}", names()))
    }

    pub(crate) fn has(&self, any: &[Fault]) -> bool {
        self.faults.iter().any(|fault| any.contains(fault))
    }

    /// What these faults explain.
    pub(crate) fn allowed(&self) -> Allowed {
        let disk_trouble = self.volume != VolumeKind::Folder;
        let in_the_middle = [KillOne, KillAtPoint, KillAll, StopOne, StopAtPoint, StopAll, ForeignHalfLine];
        Allowed { disk_trouble, short_reads: disk_trouble || self.has(&in_the_middle) }
    }
}
