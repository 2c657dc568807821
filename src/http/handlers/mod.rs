//! The handlers, one file per route.

pub(super) mod append;
pub(super) mod append_batch;
#[cfg(feature = "ceiling")]
pub(super) mod ceiling;
pub(super) mod docs;
pub(super) mod events;
pub(super) mod health;
pub(super) mod lock;
pub(super) mod metrics;
pub(super) mod openapi;
pub(super) mod page;
pub(super) mod rows;
pub(super) mod rows_csv;
mod rows_page;
