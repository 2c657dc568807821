//! An append whose outcome is not known yet.

use crate::{
    fencing::{FencingToken, LeaseId},
    storage::types::EntryOutcome,
};

/// An append that was interrupted after its record may have been written.
#[derive(Debug)]
pub(super) struct InDoubt {
    pub(super) sequence: u64,
    pub(super) token: FencingToken,
    pub(super) lease: LeaseId,
    /// Their offsets count from the first row.
    pub(super) outcomes: Vec<EntryOutcome>,
}

/// Makes offsets that count from the first row count from the start of the file.
pub(super) fn move_outcomes(outcomes: &mut [EntryOutcome], start: u64) {
    for outcome in outcomes {
        if let EntryOutcome::Written { offset, .. } = outcome {
            *offset += start;
        }
    }
}
