//! Disk usage, as `/events` and `/metrics` report it.

use serde::Serialize;
use utoipa::ToSchema;

/// Sizes on the disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Volume {
    /// The CSV, up to its last committed row.
    pub csv_bytes: u64,
    /// Free space of the volume for users other than root.
    pub free_bytes: u64,
    /// The volume's size.
    pub volume_bytes: u64,
    /// The journal's file.
    pub journal_bytes: u64,
    /// The part of the journal that waits for a checkpoint.
    pub journal_used_bytes: u64,
}
