//! The process of a reader that lives through a history.

use std::{cell::RefCell, rc::Rc};

use crate::{
    random::Random,
    storage::{
        ledger::Ledger,
        testing::{
            reader_disk::ReaderDisk,
            simulation::moments::{Moments, SharedMoments},
        },
    },
};

/// Tells the draws of a reader from those of its history.
const READER_SEED: u64 = 0x4ead_e400;
/// A reader's process, and what it showed last.
pub(super) struct LiveReader {
    pub(super) moments: Rc<RefCell<Moments>>,
    /// Whether it is on a host of its own.
    pub(super) is_direct: bool,
    pub(super) ledger: Option<Ledger<ReaderDisk<SharedMoments>>>,
    pub(super) shown: Vec<u8>,
    /// How many rebuilds there were then, and the checkpoint before the rows that the next one may move.
    pub(super) rebuilds: u64,
    pub(super) settled: usize,
    /// How much of `shown` must still stand there.
    pub(super) unmoved_end: usize,
    /// How often the host had lost power when it started.
    pub(super) power_cuts: u32,
    /// How many rows were acknowledged when it began to look.
    pub(super) acked: Option<usize>,
}

impl LiveReader {
    pub(super) fn new(seed: u64, is_direct: bool) -> Self {
        let moments = Rc::new(RefCell::new(Moments::new(Random(seed ^ READER_SEED))));
        Self {
            moments,
            is_direct,
            ledger: None,
            shown: Vec::new(),
            rebuilds: 0,
            settled: 0,
            unmoved_end: 0,
            power_cuts: 0,
            acked: None,
        }
    }

    pub(super) fn show(&mut self, shown: Vec<u8>) {
        let Some(ledger) = &self.ledger else { return };
        (self.rebuilds, self.settled) = (ledger.rebuilds(), ledger.checkpoint_end() as usize);
        (self.shown, self.unmoved_end) = (shown, usize::MAX);
    }
}
