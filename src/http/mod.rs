//! HTTP: what a client sees. Knows no Redis and no path.

mod app;
mod body;
mod contract;
mod error;
mod handlers;
mod middleware;
mod query;
mod router;
mod static_content;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod testing;

pub use app::{App, Draining, Parts};
pub use middleware::tokens::{Access, AccessError};
pub use router::Site;
