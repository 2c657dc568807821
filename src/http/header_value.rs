//! Header values that this service makes itself.

use std::fmt::Debug;

use axum::http::HeaderValue;

/// Converts a text that is known to be printable ASCII.
pub(crate) fn header_value<T>(text: T) -> HeaderValue
where
    HeaderValue: TryFrom<T, Error: Debug>,
{
    HeaderValue::try_from(text).expect("the text is printable ASCII")
}
