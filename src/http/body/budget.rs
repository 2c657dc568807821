//! A bound on the memory of all request bodies that are being received.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::http::error::ApiError;

/// Bytes for all bodies together. A body reserves the bytes that have arrived.
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
    /// # Errors
    /// `BodyBudgetExceeded`, if other bodies hold too much of the budget.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        self.bytes += bytes;
        let all = self.budget.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
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
