//! One file for each route.

pub(crate) mod append;
pub(crate) mod append_batch;
#[cfg(feature = "ceiling")]
pub(crate) mod ceiling;
pub(crate) mod docs;
pub(crate) mod events;
pub(crate) mod health;
pub(crate) mod lock;
pub(crate) mod metrics;
pub(crate) mod page;
pub(crate) mod rows;
pub(crate) mod rows_csv;
