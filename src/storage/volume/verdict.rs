//! Decides from type and options of a mount how its files can be used. docs/network-volumes.md has the same table for users.

use std::fmt;

use crate::storage::volume::mountinfo::Mount;

/// How the files of a volume are read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeKind {
    /// Through the page cache, which all replicas share.
    Local,
    /// By direct I/O, since each host has a page cache of its own.
    Network,
}

/// What a mount is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// A file system of this host.
    Local,
    /// Other hosts may reach the files as well, but locks and caches end at this kernel.
    OneKernel,
    /// Hosts share locks, and caches are coherent, as its documentation says. Rowlock was not tested on it.
    Cluster,
    /// Each host has its cache, and the server refuses a write under a lock that it gave away.
    Network,
    /// The same, but nothing stops a late write, and nobody frees the locks of a host that is cut off.
    NetworkWithoutFence,
    /// Rows would be lost.
    Refused(Reason),
}

/// Why a volume is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reason {
    /// What is wrong with it, as the start of a sentence.
    problem: String,
    /// What to use instead.
    accepted: &'static str,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; accepted: {}", self.problem, self.accepted)
    }
}

const LOCAL_LOCKS: &str = "keeps file locks within this host";
const GIVES_UP: &str = "gives up writes and reads while the server does not answer";
const STALE: &str = "answers from the cache while the server does not answer";
const NFS_ACCEPTED: &str = "NFS mounted with hard and nosoftreval, without nolock and local_lock";
const CLUSTER_ACCEPTED: &str = "a mount with file locks between hosts";
const OTHER_VOLUME: &str = "NFSv4, or a local volume with all replicas on one host";

/// Options of NFS that break a promise.
const NFS_REFUSED: [(&str, &str); 6] = [
    ("nolock", LOCAL_LOCKS),
    ("local_lock=all", LOCAL_LOCKS),
    ("local_lock=flock", LOCAL_LOCKS),
    ("soft", GIVES_UP),
    ("softerr", GIVES_UP),
    ("softreval", STALE),
];

/// Options of cluster file systems that keep `flock` within one host.
const LOCAL_FLOCK: [&str; 3] = ["localflock", "localflocks", "noflock"];

/// File systems behind FUSE that others reach too, by the name after `fuse.`, and what is wrong with them.
const FUSE_REFUSED: [(&[&str], &str); 4] = [
    (
        &[
            "s3fs",
            "gcsfuse",
            "goofys",
            "geesefs",
            "mount-s3",
            "mountpoint-s3",
            "rclone",
            "blobfuse",
            "blobfuse2",
            "ossfs",
            "ossfs2",
            "cosfs",
            "obsfs",
            "objectivefs",
            "seaweedfs",
            "s3ql",
            "yas3fs",
            "riofs",
        ],
        "object stores have no file locks between hosts, and an append writes the whole object",
    ),
    (
        &["juicefs", "alluxio", "alluxio-fuse", "curvefs", "quobyte", "mfs", "moosefs", "lizardfs", "saunafs"],
        "its client caches data and attributes, and it was not tested",
    ),
    (&["sshfs", "davfs", "davfs2", "curlftpfs", "ftpfs", "smbnetfs", "fuse_dfs"], "it has no file locks between hosts"),
    (
        &["glusterfs"],
        "its client caches data and attributes unless the volume's performance.* options are off and its time-outs are 0, which cannot be seen from here",
    ),
];

/// Network file systems of the kernel that cannot be used.
const KERNEL_REFUSED: [(&[&str], &str); 4] = [
    (&["cifs", "smb3", "smb2", "smbfs", "ncpfs"], "its file locks are mandatory, and an append is not in one piece"),
    (
        &["beegfs"],
        "its file locks end at this host unless tuneUseGlobalFileLocks is set, which cannot be seen from here",
    ),
    (&["afs"], "other hosts see what is written only after the file is closed"),
    (&["orangefs", "pvfs2", "coda"], "it has no file locks between hosts"),
];

const CLUSTER: [&str; 7] = ["ceph", "fuse.ceph", "fuse.ceph-fuse", "gfs2", "ocfs2", "lustre", "gpfs"];
const ONE_KERNEL: [&str; 6] = ["9p", "virtiofs", "vboxsf", "prl_fs", "fakeowner", "fuse"];

impl Verdict {
    /// Judges a mount.
    pub(super) fn on(mount: &Mount) -> Self {
        let fs_type = mount.fs_type();
        if matches!(fs_type, "nfs" | "nfs4") {
            return on_nfs(mount);
        }
        if let Some((_, problem)) = KERNEL_REFUSED.iter().find(|(names, _)| names.contains(&fs_type)) {
            return refused((*problem).to_owned(), OTHER_VOLUME);
        }
        if let Some((_, problem)) = FUSE_REFUSED.iter().find(|(names, _)| names.contains(&fuse_name(mount))) {
            return refused((*problem).to_owned(), OTHER_VOLUME);
        }
        if CLUSTER.contains(&fs_type) {
            return match LOCAL_FLOCK.iter().find(|option| mount.has(option)) {
                Some(option) => refused(format!("{option} {LOCAL_LOCKS}"), CLUSTER_ACCEPTED),
                None => Self::Cluster,
            };
        }
        // Unknown file systems behind FUSE are often local: fuse-overlayfs, encryption, shared folders of a desktop.
        if ONE_KERNEL.contains(&fs_type) || fs_type.starts_with("fuse.") { Self::OneKernel } else { Self::Local }
    }

    /// How the files are read and written, also if a refused volume is accepted.
    pub(super) fn kind(&self) -> VolumeKind {
        match self {
            Self::Local | Self::OneKernel | Self::Cluster => VolumeKind::Local,
            Self::Network | Self::NetworkWithoutFence | Self::Refused(_) => VolumeKind::Network,
        }
    }

    /// Whether no write can land after its OS lock went to another process.
    pub(super) fn is_fenced(&self) -> bool {
        // A local lock ends with its process, and a killed process has no call in flight.
        matches!(self, Self::Local | Self::OneKernel | Self::Network)
    }

    /// On how many hosts replicas of one file may run.
    pub(super) fn hosts(&self) -> &'static str {
        match self {
            Self::Local | Self::OneKernel | Self::Refused(_) => "one",
            Self::Cluster => "several, not tested",
            Self::Network | Self::NetworkWithoutFence => "several",
        }
    }

    /// The verdict in a few words.
    pub(super) fn meaning(&self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::OneKernel => "shared folder or FUSE: only replicas of this host may share the file",
            Self::Cluster => "cluster file system: not tested",
            Self::Network => "network: each host has a cache of its own, and the server fences lost locks",
            Self::NetworkWithoutFence => "network: each host has a cache of its own, and nothing fences lost locks",
            Self::Refused(_) => "refused, but accepted by ROWLOCK_UNLOCKED_VOLUME",
        }
    }
}

fn on_nfs(mount: &Mount) -> Verdict {
    if let Some((option, problem)) = NFS_REFUSED.iter().find(|(option, _)| mount.has(option)) {
        return refused(format!("{option} {problem}"), NFS_ACCEPTED);
    }
    match version(mount) {
        Some(version) if version.starts_with('4') => Verdict::Network,
        Some("3") => Verdict::NetworkWithoutFence,
        Some(_) => refused("this NFS version has no reliable writes".to_owned(), NFS_ACCEPTED),
        None => refused("/proc/self/mountinfo does not tell its mount options".to_owned(), NFS_ACCEPTED),
    }
}

/// The version of the network file system's protocol.
pub(super) fn version(mount: &Mount) -> Option<&str> {
    match (mount.value("vers"), mount.value("minorversion")) {
        // Linux before 3.11 lists the minor version by itself.
        (Some("4"), Some("1")) => Some("4.1"),
        (Some(version), _) => Some(version),
        (None, _) => (mount.fs_type() == "nfs4" && mount.has("hard")).then_some("4"),
    }
}

/// The name of a file system behind FUSE: after the dot of its type, or else its source.
fn fuse_name(mount: &Mount) -> &str {
    match mount.fs_type() {
        "fuse" => mount.source().split(':').next().unwrap_or_default(),
        other => other.strip_prefix("fuse.").unwrap_or_default(),
    }
}

fn refused(problem: String, accepted: &'static str) -> Verdict {
    Verdict::Refused(Reason { problem, accepted })
}
