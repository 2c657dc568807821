//! Which keys must still be known, and how often the rows of each may be written.
//!
//! A retry writes nothing if its key is among the newest keys when it arrives. An attempt whose outcome is unknown may have
//! recorded a key or not, so all counts here are bounds.

use std::collections::BTreeMap;

use crate::storage::testing::simulation::request::Request;

/// A retry uses one of so many of the newest keys, more than are remembered.
const RETRIED_MAX: usize = 12;

/// All keys of a history.
pub(super) struct KeyBook {
    /// How many of the newest keys are remembered.
    capacity: u64,
    /// At most so many keys are recorded.
    recorded_max: u64,
    states: BTreeMap<usize, KeyState>,
}

struct KeyState {
    request: Request,
    /// The number that it was recorded with, or a lower one.
    number: Option<u64>,
    /// The acknowledged offset.
    offset: Option<u64>,
    /// Whether `offset` is of the attempt that wrote the rows.
    is_own_offset: bool,
    /// How many of its attempts wrote, as far as clients know.
    written: u32,
    written_max: u32,
}

impl KeyBook {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity: capacity as u64, recorded_max: 0, states: BTreeMap::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.states.len()
    }

    /// The key of a retry, given the draw of a number below an end.
    pub(super) fn draw_retried(&self, below: impl FnOnce(usize) -> usize) -> Option<usize> {
        let newest = self.len().min(RETRIED_MAX);
        (newest > 0).then(|| self.len() - 1 - below(newest))
    }

    pub(super) fn request(&self, key: usize) -> Option<Request> {
        self.states.get(&key).map(|state| state.request.clone())
    }

    pub(super) fn add(&mut self, key: usize, request: Request) {
        let state = KeyState { request, number: None, offset: None, is_own_offset: false, written: 0, written_max: 1 };
        self.states.insert(key, state);
    }

    fn state(&mut self, key: usize) -> &mut KeyState {
        self.states.get_mut(&key).expect("drawn")
    }

    /// A request arrives at a replica.
    pub(super) fn arrive(&mut self, key: usize) {
        let (recorded_max, capacity) = (self.recorded_max, self.capacity);
        let state = self.state(key);
        if state.number.is_some_and(|number| recorded_max - number > capacity) {
            state.written_max += 1;
        }
    }

    /// Its rows were written, and that was acknowledged.
    pub(super) fn written(&mut self, key: usize, offset: u64) {
        let recorded_max = self.recorded_max;
        let state = self.state(key);
        state.written += 1;
        assert!(state.written <= state.written_max, "key {key} wrote again, although it was among the newest keys");
        (state.number, state.offset, state.is_own_offset) = (Some(recorded_max), Some(offset), true);
        self.recorded_max += 1;
    }

    /// Its first answer was repeated.
    pub(super) fn replayed(&mut self, key: usize, offset: u64, has_unlocked_lines: bool) {
        let state = self.state(key);
        // After an append without the lock, the rows are not at the recorded offset, and a crash may lose their true one.
        state.written = state.written.max(1);
        let is_exact = state.written_max == 1 && (state.is_own_offset || !has_unlocked_lines);
        let first = *state.offset.get_or_insert(offset);
        assert!(first == offset || !is_exact, "key {key} got two answers");
    }

    /// Its rows may be written.
    pub(super) fn unknown(&mut self, key: usize) {
        let recorded_max = self.recorded_max;
        self.state(key).number.get_or_insert(recorded_max);
        self.recorded_max += 1;
    }

    /// Each key's rows, and how often they must and may stand in the CSV.
    pub(super) fn bounds(&self) -> impl Iterator<Item = (&Request, u32, u32)> {
        self.states.values().map(|state| (&state.request, state.written, state.written_max))
    }
}
