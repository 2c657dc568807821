//! What every request passes before and after its handler.

pub(crate) mod authorize;
pub(crate) mod cors;
pub(crate) mod rate_limit;
pub(crate) mod request_context;
pub(crate) mod tokens;
pub(crate) mod trace_span;
