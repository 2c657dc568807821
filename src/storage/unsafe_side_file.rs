//! A file that another user may have put in the place of a side file.

use std::{fmt, path::PathBuf};

/// A file in the place of a side file that Rowlock does not use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsafeSideFile {
    /// Its path.
    pub(crate) path: PathBuf,
    /// What is wrong with it.
    pub(crate) fault: SideFileFault,
}

/// Why it is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SideFileFault {
    SymbolicLink,
    NotRegular,
    MountPoint,
    HardLinks,
    /// The file's user id.
    Owner(u32),
}

impl std::error::Error for UnsafeSideFile {}

impl fmt::Display for UnsafeSideFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.path.display())?;
        match self.fault {
            SideFileFault::SymbolicLink => write!(f, "is a symbolic link, which is not followed"),
            SideFileFault::NotRegular => write!(f, "is not a regular file"),
            SideFileFault::MountPoint => write!(f, "is a mount point"),
            SideFileFault::HardLinks => write!(f, "has several hard links"),
            SideFileFault::Owner(uid) => {
                write!(f, "belongs to user {uid}, who is neither the CSV's owner nor the user of this process nor root")
            }
        }
    }
}
