//! Reading a body: its type first, then its bytes, bounded in size and time.

use std::time::Duration;

use axum::{
    body::Body,
    http::{HeaderMap, header},
};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::error::ApiError;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// What `/append` reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MediaType {
    Json,
    Form,
}

/// Exactly one `Content-Type`, of a kind that is read here, in UTF-8.
pub(super) fn media_type(headers: &HeaderMap) -> Result<MediaType, ApiError> {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(ApiError::UnsupportedMediaType) };
    let mime: mime::Mime =
        value.to_str().ok().and_then(|text| text.parse().ok()).ok_or(ApiError::UnsupportedMediaType)?;
    if mime.get_param(mime::CHARSET).is_some_and(|charset| charset != mime::UTF_8)
        || headers.contains_key(header::CONTENT_ENCODING)
    {
        return Err(ApiError::UnsupportedMediaType);
    }
    match mime.essence_str() {
        "application/json" => Ok(MediaType::Json),
        "application/x-www-form-urlencoded" => Ok(MediaType::Form),
        _ => Err(ApiError::UnsupportedMediaType),
    }
}

/// How much of a refused body is read and thrown away, so that its sender hears the answer rather than a reset.
const DISCARD_BYTES_MAX: usize = 16 << 20;
/// And for how long.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// Refuses a request `with` an error, once its body has arrived, within bounds. A sender that waits for a go-ahead does
/// not get one.
pub(super) async fn refuse(headers: &HeaderMap, mut body: Body, with: ApiError) -> ApiError {
    if headers.contains_key(header::EXPECT) {
        return with;
    }
    let rest = async {
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes > DISCARD_BYTES_MAX {
                return;
            }
        }
    };
    // Past the bounds, the connection is closed with the answer.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, rest).await;
    with
}

/// The whole body, if it is not larger than `bytes_max` and arrives in time.
pub(super) async fn read(headers: &HeaderMap, mut body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if declared.is_some_and(|declared: u64| declared > bytes_max as u64) {
        return Err(refuse(headers, body, ApiError::BodyTooLarge(bytes_max)).await);
    }
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(&mut body, bytes_max).collect()).await;
    match collected.map_err(|_| ApiError::BodyTimeout(BODY_TIMEOUT))? {
        Ok(body) => Ok(body.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => Err(refuse(headers, body, ApiError::BodyTooLarge(bytes_max)).await),
        Err(_) => Err(ApiError::BrokenBody("the body ended early, or is not encoded as it says".to_owned())),
    }
}
