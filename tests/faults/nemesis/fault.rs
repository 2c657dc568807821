//! The names of all faults, and what they do.

macro_rules! faults {
    ($($subject:ident { $($name:ident $description:literal,)* })*) => {
        /// Something that goes wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
        pub(crate) enum Fault { $($(#[doc = $description] $name,)*)* }

        impl Fault {
            pub(crate) fn description(self) -> &'static str {
                match self { $($(Self::$name => $description,)*)* }
            }

            pub(crate) fn subject(self) -> Subject {
                match self { $($(Self::$name => Subject::$subject,)*)* }
            }
        }
    };
}

/// The part of a cluster that a fault hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    Replica,
    Redis,
    Network,
    Disk,
    Csv,
}

faults! {
    Replica {
        KillOne "SIGKILL of a replica",
        KillAtFailpoint "SIGKILL of a replica at a failpoint",
        KillAll "SIGKILL of all replicas",
        StopOne "SIGSTOP of a replica for longer than the time to live",
        StopAtFailpoint "SIGSTOP of a replica at a failpoint for longer than the time to live",
        StopAll "SIGSTOP of all replicas for longer than the time to live",
        Terminate "SIGTERM of a replica under load",
        RollingRestart "a rolling restart",
        ScaleOut "two more replicas",
        ScaleIn "one replica less",
    }
    Redis {
        StopRedis "SIGSTOP of Redis",
        StopUnderForeignHolder "SIGSTOP of a holder until its lock expires and another client holds it",
        RedisRestartsEmpty "SIGKILL of Redis, which restarts empty",
        RedisRestarts "SIGKILL of Redis, which restarts from its file",
        FlushAll "FLUSHALL",
        FlushUnderHolder "FLUSHALL while the holder is stopped for less than the time to live",
        KillClients "CLIENT KILL",
        OutOfMemory "Redis out of memory",
        DebugSleep "DEBUG SLEEP of Redis",
        DeleteLock "an early DEL of the lock",
        ExpireLock "an early PEXPIRE of the lock",
        PromoteLagging "promotion of a Redis replica that lags",
        ClockForward "Redis's clock jumps forward by an hour",
        ClockBackward "Redis's clock jumps backward by an hour",
    }
    Network {
        PartitionFromRedis "a replica partitioned from Redis, both ways",
        DropRedisRequests "a replica whose requests to Redis are dropped",
        DropRedisReplies "a replica whose replies from Redis are dropped",
        PartitionClients "clients partitioned from a replica after they sent requests",
        ResetResponses "responses to clients reset half way",
        ResetRedisReplies "replies of Redis reset half way",
        SlowClients "a slow network between clients and a replica",
        SlowRedis "a slow network between replicas and Redis",
    }
    Disk {
        PowerCut "a power cut",
        FailSync "a sync that fails",
        FailWrite "a write that fails",
        ShortWrites "short writes",
        DiskFull "a full disk",
        ReadOnly "a volume that turns read-only",
        FilesystemError "an ext4 that detects an error and turns read-only",
    }
    Csv {
        ForeignLines "lines of a foreign writer that takes no lock",
        ForeignHalfLine "half a line of a foreign writer",
    }
}

impl Fault {
    /// Whether the other replicas acknowledge rows while the fault lasts.
    pub(crate) fn others_keep_serving(self) -> bool {
        use Fault::*;
        matches!(
            self,
            KillOne
                | StopOne
                | PartitionFromRedis
                | DropRedisRequests
                | DropRedisReplies
                | PartitionClients
                | ResetResponses
                | SlowClients
                | ShortWrites
                | ForeignLines
                | ForeignHalfLine
                | KillClients
                | FlushAll
                | DeleteLock
                | ExpireLock
                | ClockForward
                | ScaleOut
                | ScaleIn
                | Terminate
                | RollingRestart
        )
    }

    /// Whether the fault must last longer than the lock's time to live.
    pub(crate) fn outlasts_lock(self) -> bool {
        use Fault::*;
        matches!(
            self,
            StopOne
                | StopAll
                | StopRedis
                | PartitionFromRedis
                | DropRedisRequests
                | DropRedisReplies
                | ClockForward
                | ClockBackward
                | OutOfMemory
        )
    }

    /// Whether another fault may begin while this one lasts.
    pub(crate) fn allows_overlap(self) -> bool {
        use Fault::*;
        matches!(self, StopOne | PartitionClients | SlowRedis | ClockForward | ClockBackward | ScaleOut)
    }

    /// Whether the effect is a failed or shortened operation of the disk.
    pub(crate) fn fails_disk_operations(self) -> bool {
        matches!(self, Self::FailSync | Self::FailWrite | Self::ShortWrites)
    }
}
