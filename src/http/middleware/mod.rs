//! The layers around the router, from the outside in: request context, CORS, authorization with the rate limit.

pub(crate) mod authorize;
pub(crate) mod cors;
pub(crate) mod rate_limit;
pub(crate) mod request_context;
pub(crate) mod request_head;
pub(crate) mod tokens;
mod trace_parent;
mod trace_span;
