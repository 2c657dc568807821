//! A temporary ext4 file system on a loop device.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use crate::support::not_run;

/// Runs a program that must succeed.
pub(crate) fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

/// An ext4 in an image file, which turns read-only when it detects an error.
pub(crate) struct Ext4 {
    pub(crate) at: PathBuf,
    image: PathBuf,
}

impl Ext4 {
    /// Mounts it on `disk` in this folder. None without root or loop devices, which fails the test where `CI` is set.
    pub(crate) fn mount(folder: &Path, size: u64) -> Option<Self> {
        if !is_root() || !Path::new("/dev/loop-control").exists() {
            not_run("only root may mount an ext4, and only where there are loop devices");
            return None;
        }
        let (at, image) = (folder.join("disk"), folder.join("image"));
        fs::create_dir(&at).expect("a folder");
        File::create(&image).and_then(|file| file.set_len(size)).expect("room");
        run("mkfs.ext4", &["-q", "-F", &image.to_string_lossy()]);
        let ext4 = Self { at, image };
        ext4.mount_again();
        Some(ext4)
    }

    fn mount_again(&self) {
        run("mount", &["-o", "loop,errors=remount-ro", &self.image.to_string_lossy(), &self.at.to_string_lossy()]);
    }

    /// Makes the kernel report a file system error, as after a damaged block.
    pub(crate) fn give_up(&self) {
        let mounts = fs::read_to_string("/proc/mounts").expect("readable");
        let line = mounts.lines().find(|line| line.split(' ').nth(1) == self.at.to_str()).expect("it is mounted");
        let device = line.trim_start_matches("/dev/").split(' ').next().expect("a device");
        fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "a test").expect("the kernel lets root do so");
    }

    pub(crate) fn repair_and_mount_again(&self) {
        run("umount", &[&self.at.to_string_lossy()]);
        // 1: errors were corrected.
        let status = Command::new("e2fsck").args(["-fy"]).arg(&self.image).output().expect("e2fsck runs").status;
        assert!(matches!(status.code(), Some(0 | 1)), "{status:?}");
        self.mount_again();
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
