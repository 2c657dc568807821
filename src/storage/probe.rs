//! Asks the volume whether it answers.

use std::{io, path::Path};

use rustix::{fs::statvfs, io::retry_on_intr};

/// Returns once the volume of this file has answered. The kernel caches no `statvfs`, so the server of a network volume is asked each
/// time, without any lock or open file.
///
/// # Errors
/// What the volume answered, if it was an error.
pub fn probe(path: &Path) -> io::Result<()> {
    retry_on_intr(|| statvfs(path))?;
    Ok(())
}
