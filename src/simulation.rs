//! `sleep` and `skip_release`: a request may simulate a slow or a crashed holder of the lock.

/// What one request simulates.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Simulation {
    /// How long the lock is held before the write.
    pub sleep: std::time::Duration,
    /// Whether the lock is left to expire after the write, as if the replica had crashed.
    pub skip_release: bool,
}

impl Simulation {
    /// Whether this request needs a turn of its own.
    pub fn wants_own_turn(&self) -> bool {
        self.skip_release || !self.sleep.is_zero()
    }
}
