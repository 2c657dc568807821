//! A bound on the memory of all request bodies that are being received.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::http::error::ApiError;

/// Bytes for all bodies together. A body reserves the memory that is kept of it: its text or its rows, and the decoder's window.
#[derive(Debug, Clone)]
pub(crate) struct BodyBudget {
    used: Arc<AtomicUsize>,
    bytes_max: usize,
}

impl BodyBudget {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { used: Arc::default(), bytes_max }
    }

    /// A reservation of zero bytes.
    pub(super) fn reservation(&self) -> BodyReservation<'_> {
        BodyReservation { budget: self, bytes: 0 }
    }
}

/// The bytes of one body, released on drop.
pub(super) struct BodyReservation<'a> {
    budget: &'a BodyBudget,
    bytes: usize,
}

impl BodyReservation<'_> {
    /// Changes the reservation to this many bytes.
    ///
    /// # Errors
    /// `BodyBudgetExceeded`, if other bodies hold too much of the budget.
    pub(super) fn resize(&mut self, bytes: usize) -> Result<(), ApiError> {
        let before = std::mem::replace(&mut self.bytes, bytes);
        let Some(more) = bytes.checked_sub(before) else {
            self.budget.used.fetch_sub(before - bytes, Ordering::Relaxed);
            return Ok(());
        };
        let all = self.budget.used.fetch_add(more, Ordering::Relaxed) + more;
        // A body that is alone may be larger than the budget: its own limit bounds it.
        // guard: bodies_bounded: bodies in flight use bounded memory
        if all > self.budget.bytes_max && all > self.bytes { Err(ApiError::BodyBudgetExceeded) } else { Ok(()) }
    }
}

impl Drop for BodyReservation<'_> {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
