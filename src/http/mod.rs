//! The HTTP interface: routes, request bodies, answers and refusals. It knows neither Redis nor file paths.

mod answer_budget;
mod app;
mod body;
mod conditional;
mod contract;
mod created;
mod error;
mod handlers;
mod header_value;
mod idempotency_key;
mod json;
mod middleware;
mod query;
mod request_labels;
mod router;
mod static_content;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod testing;
mod unparsed;

pub use answer_budget::{AnswerBudget, AnswerBytes};
pub use app::{AppParts, Draining};
pub use middleware::tokens::{Access, AccessError};
pub use router::Service;
