//! Group commit: appends that wait are written together, in one batch, under one hold of the lock, with one fsync.
//!
//! [`Appender`] is the handle that HTTP handlers and commands call. Behind it, the committer is a task on a thread of its own
//! that owns the lock and the file; `committer/turn.rs` is its protocol. Only this module sees both lock and storage.

mod appender;
mod committer;
mod error;
mod file_fault;
mod file_room;
mod in_flight;
mod lock_changes;
mod open;
pub mod peer_events;
mod queue;
pub mod reading;
mod repair;
mod storage_watch;

pub use crate::api::{lock_status::ForcedRelease, outcome::Outcome};
pub use crate::commit::appender::Appender;
pub use crate::commit::committer::Fatal;
pub use crate::commit::error::AppendError;
pub use crate::commit::file_fault::FileFault;
pub(crate) use crate::commit::file_room::FileRoom;
pub use crate::commit::open::{CommitterHandle, LockStatusError, OpenError, lock_status, open};
pub use crate::commit::repair::{RepairError, repair};
