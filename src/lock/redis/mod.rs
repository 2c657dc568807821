//! The lock in Redis.

pub(crate) mod lease;
mod notifications;
pub(crate) mod topology;
