//! Fencing tokens and lease ids: what tells one hold of the lock from another.

/// A number that grows with every grant of the lock; a row carries that of the lease it was written under.
pub type FencingToken = u64;

/// A random number that one lease has and no other: it tells two leases apart that were granted the same token.
pub type LeaseId = u128;
