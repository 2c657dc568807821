//! The types that clients and other replicas read: answers, lock status, events.

pub mod acknowledgement;
pub mod events;
pub mod lock_status;
pub mod outcome;
pub mod volume;
