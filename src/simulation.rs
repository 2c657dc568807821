//! The simulation of slow and crashed holders that a request may ask for.

/// What the rows of one request ask of their turn, besides being written.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Simulation {
    /// How long the lock is held before the rows are written.
    pub sleep: std::time::Duration,
    /// After the write the lock is left to expire, as if the replica had crashed.
    pub skip_release: bool,
}

impl Simulation {
    /// Whether this request wants a lock hold of its own, shared with nobody.
    pub fn wants_own_turn(&self) -> bool {
        self.skip_release || !self.sleep.is_zero()
    }
}
