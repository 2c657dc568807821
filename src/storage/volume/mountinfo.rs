//! Reads `/proc/self/mountinfo`, which lists the mounts that this process sees. Its format is in proc_pid_mountinfo(5).

use std::path::{Path, PathBuf};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    id: u64,
    /// Major and minor number.
    device: (u32, u32),
    /// The path within the file system of what is mounted.
    root: PathBuf,
    mount_point: PathBuf,
    fs_type: String,
    source: String,
    /// The options of the mount, then those of the file system.
    options: Vec<String>,
}

/// Where a directory lies, as `statx` tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Location<'a> {
    /// `None` before Linux 5.8.
    pub(super) mount_id: Option<u64>,
    pub(super) device: (u32, u32),
    /// Absolute, symbolic links resolved.
    pub(super) directory: &'a Path,
}

impl Mount {
    /// A mount of which only the type is known.
    pub(super) fn of_type(fs_type: &str) -> Self {
        let (source, options) = ("unknown".to_owned(), Vec::new());
        Self {
            id: 0,
            device: (0, 0),
            root: PathBuf::new(),
            mount_point: PathBuf::new(),
            fs_type: fs_type.to_owned(),
            source,
            options,
        }
    }

    /// The mount that holds a directory, out of the text of `/proc/self/mountinfo`.
    pub(super) fn holding(mountinfo: &str, location: &Location<'_>) -> Option<Self> {
        let mut mounts: Vec<Self> = mountinfo.lines().filter_map(Self::parse).collect();
        if let Some(id) = location.mount_id {
            return mounts.into_iter().find(|mount| mount.id == id);
        }
        mounts.retain(|mount| mount.device == location.device && location.directory.starts_with(&mount.mount_point));
        // Of mounts stacked on one mount point, the last one is on top, and `max_by_key` returns the last maximum.
        mounts.into_iter().max_by_key(|mount| mount.mount_point.components().count())
    }

    /// The mount on exactly this path, out of the text of `/proc/self/mountinfo`.
    pub(super) fn on(mountinfo: &str, path: &Path) -> Option<Self> {
        // Of mounts stacked on one mount point, the last one is on top.
        mountinfo.lines().filter_map(Self::parse).rfind(|mount| mount.mount_point == path)
    }

    /// The folder that holds what is mounted, within its file system.
    pub(super) fn source_folder(&self) -> Option<String> {
        self.root.parent().map(|folder| format!("{} of {}", folder.display(), self.source))
    }

    /// `36 35 98:0 /root /mount/point rw,noatime shared:1 - ext4 /dev/sda1 rw,errors=continue`
    fn parse(line: &str) -> Option<Self> {
        // Spaces within fields are escaped. The number of fields before the dash varies.
        let (of_mount, of_file_system) = line.split_once(" - ")?;
        let fields: Vec<&str> = of_mount.split(' ').collect();
        let [id, _parent, device, root, mount_point, mount_options, ..] = fields[..] else { return None };
        let (major, minor) = device.split_once(':')?;
        let mut fields = of_file_system.splitn(3, ' ');
        let (fs_type, source) = (fields.next()?, fields.next()?);
        let options = mount_options.split(',').chain(fields.next().unwrap_or_default().split(','));
        Some(Self {
            id: id.parse().ok()?,
            device: (major.parse().ok()?, minor.parse().ok()?),
            root: unescape(root).into(),
            mount_point: unescape(mount_point).into(),
            fs_type: unescape(fs_type),
            source: unescape(source),
            options: options.filter(|option| !option.is_empty()).map(unescape).collect(),
        })
    }

    /// Such as `nfs4`, `ext4` or `fuse.sshfs`.
    pub(super) fn fs_type(&self) -> &str {
        &self.fs_type
    }

    /// A device, or a server and its path.
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Whether an option is set, such as `soft` or `local_lock=all`.
    pub(super) fn has(&self, option: &str) -> bool {
        self.options.iter().any(|set| set == option)
    }

    /// The value of an option that has one.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
    }

    /// The options whose names are in the list, each once.
    pub(super) fn options_among(&self, names: &[&str]) -> Vec<&str> {
        let mut found: Vec<&str> = Vec::new();
        for option in &self.options {
            let name = option.split('=').next().unwrap_or_default();
            if names.contains(&name) && !found.contains(&option.as_str()) {
                found.push(option);
            }
        }
        found
    }
}

/// Decodes the octal escapes of spaces, tabs, line feeds, backslashes and number signs.
fn unescape(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let escaped = after.get(..3).filter(|_| byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match escaped.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(decoded) => {
                bytes.push(decoded);
                rest = &after[3..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STACKED: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
30 22 0:40 / /data rw,relatime shared:5 master:2 - nfs nas:/old rw,vers=3,hard,local_lock=none
31 30 0:41 / /data rw,nosuid - nfs4 nas:/new\\040folder rw,vers=4.2,hard,local_lock=none
32 31 0:41 /sub /data/my\\040rows\\011a\\134b ro,relatime - nfs4 nas:/new\\040folder rw,vers=4.2
33 22 0:50 /@home /home rw - btrfs /dev/vdb rw,subvolid=256
a line that is none
34 22 0:51 / /odd rw - fuse
";

    fn found(mount_id: Option<u64>, device: (u32, u32), directory: &str) -> Option<(u64, String)> {
        let location = Location { mount_id, device, directory: Path::new(directory) };
        Mount::holding(STACKED, &location).map(|mount| (mount.id, mount.source))
    }

    #[test]
    fn mount_is_found_by_id_or_by_device_and_longest_path() {
        let by_id = |id| found(Some(id), (9, 9), "/anything").map(|(id, _)| id);
        assert_eq!([22, 30, 31, 33, 35].map(by_id), [Some(22), Some(30), Some(31), Some(33), None]);
        assert_eq!(found(None, (0, 41), "/data"), Some((31, "nas:/new folder".to_owned())));
        assert_eq!(found(None, (0, 40), "/data/deep/er"), Some((30, "nas:/old".to_owned())));
        assert_eq!(found(None, (0, 41), "/data/my rows\ta\\b/deep").map(|(id, _)| id), Some(32));
        assert_eq!(found(None, (254, 0), "/database"), Some((22, "/dev/vda".to_owned())));
        assert_eq!(found(None, (0, 99), "/data"), None);
    }

    #[test]
    fn mount_of_a_file_is_found_with_its_source_folder() {
        let text = format!(
            "{STACKED}40 22 254:0 /srv/old/rows.csv /data/rows.csv rw - ext4 /dev/vda rw\n\
             41 40 254:0 /srv/my\\040rows/rows.csv /data/rows.csv rw - ext4 /dev/vda rw\n"
        );
        let folder = |path| Mount::on(&text, Path::new(path)).and_then(|mount| mount.source_folder());
        assert_eq!(folder("/data/rows.csv").as_deref(), Some("/srv/my rows of /dev/vda"));
        assert_eq!(folder("/home/rows.csv"), None);
        assert_eq!(Mount::on(&text, Path::new("/data/rows.csv.journal")), None);
    }

    #[test]
    fn last_of_mounts_stacked_on_one_point_is_on_top() {
        let text = STACKED.replace("0:40", "0:41");
        let location = Location { mount_id: None, device: (0, 41), directory: Path::new("/data") };
        assert_eq!(Mount::holding(&text, &location).map(|mount| mount.id), Some(31));
    }

    #[test]
    fn options_of_mount_and_file_system_are_read() {
        let location = Location { mount_id: Some(32), device: (0, 0), directory: Path::new("/") };
        let mount = Mount::holding(STACKED, &location).expect("listed");
        assert!(mount.has("ro") && mount.has("rw") && mount.has("vers=4.2") && !mount.has("vers"));
        assert_eq!((mount.value("vers"), mount.value("ver")), (Some("4.2"), None));
        assert_eq!(mount.options_among(&["ro", "vers"]), ["ro", "vers=4.2"]);
        assert_eq!(["a\\04", "\\999x", "\\\\", "", "\\043"].map(unescape), ["a\\04", "\\999x", "\\\\", "", "#"]);
    }
}
