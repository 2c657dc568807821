//! Finds out on what kind of volume the CSV lies, and what that means for it.

mod mountinfo;
mod verdict;

use std::{fmt, fs, io, path::Path};

use rustix::{
    fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statfs, statx},
    io::retry_on_intr,
};

use crate::storage::volume::{
    mountinfo::{Location, Mount},
    verdict::{Verdict, version},
};

pub use crate::storage::volume::verdict::VolumeKind;

/// The options that the log shows.
const SHOWN_OPTIONS: [&str; 24] = [
    "ro",
    "vers",
    "minorversion",
    "hard",
    "soft",
    "softerr",
    "softreval",
    "nolock",
    "local_lock",
    "noac",
    "sync",
    "actimeo",
    "acregmin",
    "acregmax",
    "acdirmin",
    "acdirmax",
    "lookupcache",
    "nobrl",
    "cache",
    "flock",
    "noflock",
    "localflock",
    "localflocks",
    "trans",
];

/// Types by the magic number of `statfs`, for a mount that `/proc/self/mountinfo` does not list.
const MAGIC_NUMBERS: [(u64, &str); 21] = [
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x2fc1_2fc1, "zfs"),
    (0x0102_1994, "tmpfs"),
    (0xf2f5_2010, "f2fs"),
    (0x794c_7630, "overlay"),
    (0x6969, "nfs"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb3"),
    (0x6573_5546, "fuse"),
    (0x0102_1997, "9p"),
    (0x00c3_6400, "ceph"),
    (0x0116_1970, "gfs2"),
    (0x7461_636f, "ocfs2"),
    (0x0bd0_0bd0, "lustre"),
    (0x4750_4653, "gpfs"),
    (0x1983_0326, "beegfs"),
    (0x5346_414f, "afs"),
    (0x6b41_4653, "afs"),
    (0x786f_4256, "vboxsf"),
];

/// Whether a file is mounted by itself, as by `mount --bind` or a container's volume of one file.
///
/// # Errors
/// The system's error.
pub(crate) fn is_mount_point(file: &Path) -> io::Result<bool> {
    let found = retry_on_intr(|| statx(CWD, file, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::INO))?;
    let is_known = found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT);
    // Before Linux 5.8 only the list of mounts tells.
    let is_listed = || Mount::on(&mountinfo(), file).is_some();
    Ok(if is_known { found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) } else { is_listed() })
}

/// The folder from which a file was mounted, as part of a line.
pub(crate) fn mounted_folder(file: &Path) -> String {
    let folder = Mount::on(&mountinfo(), file).and_then(|mount| mount.source_folder());
    folder.unwrap_or_else(|| "that holds it".to_owned())
}

/// Paths that are not UTF-8 are only compared before Linux 5.8.
fn mountinfo() -> String {
    String::from_utf8_lossy(&fs::read("/proc/self/mountinfo").unwrap_or_default()).into_owned()
}

/// The volume that holds a CSV.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeInfo {
    mount: Mount,
    verdict: Verdict,
}

/// Why the CSV cannot lie on a volume, as part of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeRefusal(Box<VolumeInfo>);

impl VolumeInfo {
    /// Finds the volume of a CSV that need not exist yet. `csv` is absolute, symbolic links resolved.
    ///
    /// # Errors
    /// The system's error.
    pub(crate) fn of(csv: &Path) -> io::Result<Self> {
        let directory = csv.parent().unwrap_or(Path::new("/"));
        let asked = StatxFlags::INO | StatxFlags::MNT_ID;
        let found = retry_on_intr(|| statx(CWD, directory, AtFlags::empty(), asked))?;
        let has_mount_id = found.stx_mask & StatxFlags::MNT_ID.bits() != 0;
        let location = Location {
            mount_id: has_mount_id.then_some(found.stx_mnt_id),
            device: (found.stx_dev_major, found.stx_dev_minor),
            directory,
        };
        match Mount::holding(&mountinfo(), &location) {
            Some(mount) => Ok(Self::from_mount(mount)),
            None => Ok(Self::from_magic_number(retry_on_intr(|| statfs(directory))?.f_type as u64)),
        }
    }

    fn from_mount(mount: Mount) -> Self {
        Self { verdict: Verdict::on(&mount), mount }
    }

    fn from_magic_number(magic: u64) -> Self {
        // Some architectures extend its sign.
        let known = MAGIC_NUMBERS.iter().find(|(number, _)| *number == magic & 0xffff_ffff);
        Self::from_mount(Mount::of_type(known.map_or("unknown", |(_, fs_type)| fs_type)))
    }

    /// How the files are read and written.
    pub fn kind(&self) -> VolumeKind {
        self.verdict.kind()
    }

    /// Whether no write can land after its OS lock went to another process.
    pub fn is_fenced(&self) -> bool {
        self.verdict.is_fenced()
    }

    /// Such as `nfs4` or `ext4`.
    pub(crate) fn fs_type(&self) -> &str {
        self.mount.fs_type()
    }

    /// The version of a network file system's protocol.
    pub(crate) fn version(&self) -> Option<&str> {
        version(&self.mount)
    }

    /// Refuses a volume on which rows would be lost.
    ///
    /// # Errors
    /// The reason.
    pub(crate) fn refuse_unsafe(&self) -> Result<(), VolumeRefusal> {
        match &self.verdict {
            Verdict::Refused(_) => Err(VolumeRefusal(Box::new(self.clone()))),
            _ => Ok(()),
        }
    }

    /// Logs the volume and what it means.
    pub(crate) fn log(&self, csv: &Path) {
        let Self { mount, verdict } = self;
        tracing::info!(
            csv = %csv.display(), kind = self.kind().name(), r#type = mount.fs_type(), source = mount.source(),
            options = mount.options_among(&SHOWN_OPTIONS).join(","), hosts = verdict.hosts(), meaning = verdict.meaning(),
            "volume"
        );
    }

    /// Warns of what can go wrong on it.
    pub(crate) fn warn(&self, csv: &Path) {
        match &self.verdict {
            Verdict::Refused(reason) => {
                tracing::warn!(csv = %csv.display(), %reason, "this volume is only accepted by ROWLOCK_UNLOCKED_VOLUME: rows may be lost");
            }
            Verdict::NetworkWithoutFence => {
                tracing::warn!(csv = %csv.display(), "NFSv3 keeps the locks of a host that is cut off, and does not stop its late writes: use NFSv4");
            }
            Verdict::Local | Verdict::OneKernel | Verdict::Cluster | Verdict::Network => {}
        }
    }
}

impl VolumeKind {
    /// As in the log and in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Network => "network",
        }
    }
}

impl fmt::Display for VolumeRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let VolumeInfo { mount, verdict } = &*self.0;
        write!(f, "its volume {} ({}) is refused", mount.source(), mount.fs_type())?;
        match verdict {
            Verdict::Refused(reason) => write!(f, ": {reason}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HARD_NFS: &str = "rsize=262144,wsize=262144,namlen=255,hard,proto=tcp,timeo=600,retrans=2,sec=sys";

    /// A mount with this type, source and options of the file system.
    fn volume(fs_type: &str, source: &str, options: &str) -> VolumeInfo {
        let line = format!("36 22 0:57 / /data rw,relatime shared:9 - {fs_type} {source} rw,{options}");
        let location = Location { mount_id: Some(36), device: (0, 57), directory: Path::new("/data") };
        VolumeInfo::from_mount(Mount::holding(&line, &location).expect("a mount"))
    }

    fn nfs(fs_type: &str, more: &str) -> VolumeInfo {
        volume(fs_type, "nas:/export", &format!("{more},{HARD_NFS},addr=10.0.0.2"))
    }

    fn judged(volume: &VolumeInfo) -> &'static str {
        match volume.verdict {
            Verdict::Local => "local",
            Verdict::OneKernel => "one kernel",
            Verdict::Cluster => "cluster",
            Verdict::Network => "network",
            Verdict::NetworkWithoutFence => "no fence",
            Verdict::Refused(_) => "refused",
        }
    }

    #[test]
    fn nfs_is_judged_by_version_and_options() {
        for (fs_type, options, verdict, version) in [
            ("nfs4", "vers=4.2,clientaddr=10.0.0.1,local_lock=none", "network", "4.2"),
            ("nfs4", "vers=4.1,local_lock=none", "network", "4.1"),
            ("nfs4", "vers=4.0,local_lock=none", "network", "4.0"),
            ("nfs4", "vers=4,minorversion=1,local_lock=none", "network", "4.1"),
            ("nfs4", "local_lock=none", "network", "4"),
            ("nfs4", "vers=4.2,sync,noac,acregmin=0,acregmax=0,local_lock=none", "network", "4.2"),
            ("nfs4", "vers=4.1,nconnect=4,actimeo=1,lookupcache=pos", "network", "4.1"),
            ("nfs", "vers=3,mountaddr=10.0.0.2,mountvers=3,local_lock=none", "no fence", "3"),
            ("nfs", "vers=3,local_lock=posix", "no fence", "3"),
            ("nfs", "vers=3,nolock,local_lock=all", "refused", "3"),
            ("nfs", "vers=3,local_lock=all", "refused", "3"),
            ("nfs", "vers=3,local_lock=flock", "refused", "3"),
            ("nfs4", "vers=4.2,soft,local_lock=none", "refused", "4.2"),
            ("nfs4", "vers=4.2,softerr,softreval,local_lock=none", "refused", "4.2"),
            ("nfs4", "vers=4.2,softreval,local_lock=none", "refused", "4.2"),
            ("nfs", "vers=2,local_lock=none", "refused", "2"),
        ] {
            let volume = nfs(fs_type, options);
            assert_eq!((judged(&volume), volume.version()), (verdict, Some(version)), "{fs_type} {options}");
            assert_eq!(volume.kind(), VolumeKind::Network, "{fs_type} {options}");
            assert_eq!(volume.is_fenced(), verdict == "network", "{fs_type} {options}");
            assert_eq!(volume.refuse_unsafe().is_err(), verdict == "refused", "{fs_type} {options}");
        }
    }

    #[test]
    fn other_volumes_are_judged_by_type_and_options() {
        for (fs_type, source, options, verdict) in [
            ("ext4", "/dev/vda1", "discard,errors=remount-ro", "local"),
            ("xfs", "/dev/mapper/vg-data", "attr2,inode64,noquota", "local"),
            ("btrfs", "/dev/vdb", "space_cache=v2,subvolid=256,subvol=/@data", "local"),
            ("zfs", "tank/data", "xattr,posixacl,casesensitive", "local"),
            ("tmpfs", "tmpfs", "size=65536k,mode=755", "local"),
            ("f2fs", "/dev/sda3", "background_gc=on", "local"),
            ("overlay", "overlay", "lowerdir=/l,upperdir=/u,workdir=/w", "local"),
            ("fuseblk", "/dev/sdb1", "user_id=0,group_id=0,allow_other,blksize=4096", "local"),
            ("newfs", "/dev/sdb1", "", "local"),
            ("fuse.fuse-overlayfs", "fuse-overlayfs", "user_id=0,group_id=0", "one kernel"),
            ("fuse", "a-disk-of-a-test", "user_id=0,group_id=0", "one kernel"),
            ("fakeowner", "/run/host_mark/Users", "nodev", "one kernel"),
            ("9p", "drvfs", "aname=drvfs;path=C:\\134,cache=5,access=client,msize=65536,trans=fd", "one kernel"),
            ("virtiofs", "shared", "", "one kernel"),
            ("vboxsf", "share", "nodev", "one kernel"),
            ("ceph", "10.0.0.2:6789:/", "name=admin,secret=<hidden>,acl", "cluster"),
            ("fuse.ceph-fuse", "ceph-fuse", "user_id=0,group_id=0,allow_other", "cluster"),
            ("fuse.ceph", "ceph-fuse", "user_id=0,group_id=0", "cluster"),
            ("gfs2", "/dev/vg/shared", "acl", "cluster"),
            ("gfs2", "/dev/vg/shared", "localflocks", "refused"),
            ("ocfs2", "/dev/sdc", "_netdev,heartbeat=local,nointr,data=ordered,coherency=full", "cluster"),
            ("ocfs2", "/dev/sdc", "heartbeat=local,localflocks,", "refused"),
            ("lustre", "10.0.0.2@tcp:/scratch", "checksum,flock,user_xattr", "cluster"),
            ("lustre", "10.0.0.2@tcp:/scratch", "checksum,localflock,user_xattr", "refused"),
            ("gpfs", "gpfs0", "relatime", "cluster"),
            ("beegfs", "beegfs_nodev", "cfgFile=/etc/beegfs/beegfs-client.conf", "refused"),
            ("afs", "#cell:root.cell.", "dyn", "refused"),
            ("cifs", "//nas/share", "vers=3.1.1,cache=strict,username=u,soft,nounix", "refused"),
            ("smb3", "//nas/share", "vers=3.1.1,cache=none", "refused"),
            ("fuse.glusterfs", "gluster1:/rows", "user_id=0,group_id=0,allow_other,max_read=131072", "refused"),
            ("fuse.s3fs", "s3fs", "user_id=0,group_id=0", "refused"),
            ("fuse.gcsfuse", "bucket", "user_id=0,group_id=0", "refused"),
            ("fuse.goofys", "bucket", "user_id=0,group_id=0", "refused"),
            ("fuse.mount-s3", "mountpoint-s3", "user_id=0", "refused"),
            ("fuse", "mountpoint-s3", "user_id=0,group_id=0,default_permissions", "refused"),
            ("fuse", "blobfuse2", "user_id=0,group_id=0", "refused"),
            ("fuse.blobfuse2", "blobfuse2", "user_id=0,group_id=0", "refused"),
            ("fuse.rclone", "remote:bucket", "user_id=0,group_id=0", "refused"),
            ("fuse.juicefs", "JuiceFS:rows", "user_id=0,group_id=0", "refused"),
            ("fuse.sshfs", "user@host:/data", "user_id=0,group_id=0", "refused"),
        ] {
            let volume = volume(fs_type, source, options);
            assert_eq!(judged(&volume), verdict, "{fs_type} {source} {options}");
            let is_local = verdict != "refused";
            assert_eq!(volume.kind() == VolumeKind::Local, is_local, "{fs_type} {source} {options}");
        }
    }

    #[test]
    fn refusal_names_volume_problem_and_what_is_accepted() {
        for (volume, parts) in [
            (
                nfs("nfs", "vers=3,nolock,local_lock=all"),
                ["nas:/export (nfs)", "nolock keeps file locks within this host", "mounted with hard"],
            ),
            (nfs("nfs4", "vers=4.2,soft"), ["nas:/export (nfs4)", "soft gives up writes", "mounted with hard"]),
            (volume("cifs", "//nas/my\\040share", "vers=3.1.1"), ["//nas/my share (cifs)", "mandatory", "NFSv4"]),
            (volume("fuse.glusterfs", "g:/v", ""), ["g:/v (fuse.glusterfs)", "performance.*", "NFSv4"]),
        ] {
            let line = volume.refuse_unsafe().expect_err("refused").to_string();
            assert!(parts.iter().all(|part| line.contains(part)) && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn unlisted_mount_is_judged_by_its_magic_number() {
        for (magic, fs_type, verdict) in [
            (0xef53, "ext4", "local"),
            // Sign extended.
            (0xffff_ffff_9123_683e, "btrfs", "local"),
            // Its options may be unsafe, and nobody tells.
            (0x6969, "nfs", "refused"),
            (0xfe53_4d42, "smb3", "refused"),
            (0x6573_5546, "fuse", "one kernel"),
            (0x1234_5678, "unknown", "local"),
        ] {
            let volume = VolumeInfo::from_magic_number(magic);
            assert_eq!((volume.fs_type(), judged(&volume)), (fs_type, verdict));
        }
    }

    #[test]
    fn volume_of_proc_and_of_a_folder_is_found() {
        let proc = VolumeInfo::of(Path::new("/proc/rows.csv")).expect("found");
        assert_eq!((proc.fs_type(), proc.kind()), ("proc", VolumeKind::Local));
        let folder = tempfile::tempdir().expect("a folder");
        let volume = VolumeInfo::of(&folder.path().join("rows.csv")).expect("found");
        assert_ne!(volume.fs_type(), "unknown");
        assert!(VolumeInfo::of(&folder.path().join("missing/rows.csv")).is_err());
    }
}
