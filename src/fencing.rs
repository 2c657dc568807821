//! Fencing tokens and lease ids, which identify one lease of the lock.

/// A number that increases with every grant of the lock. A row contains the token of the lease that it was written under.
pub type FencingToken = u64;

/// A random number that is unique to one lease. It tells two leases apart that were granted the same token.
pub type LeaseId = u128;
