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
    if !headers.contains_key(header::EXPECT) {
        discard(&mut body, DISCARD_BYTES_MAX).await;
    }
    with
}

async fn discard(body: &mut Body, bytes_max: usize) {
    let rest = async {
        let mut bytes = 0;
        while let Some(Ok(frame)) = body.frame().await {
            bytes += frame.data_ref().map_or(0, Bytes::len);
            if bytes > bytes_max {
                return;
            }
        }
    };
    // Past the bounds, the connection is closed with the answer.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, rest).await;
}

fn declares_more_than(headers: &HeaderMap, bytes_max: usize) -> bool {
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    declared.is_some_and(|declared: u64| declared > bytes_max as u64)
}

fn ended_early() -> ApiError {
    ApiError::BrokenBody("the body ended early, or is not encoded as it says".to_owned())
}

/// The whole body, if it is not larger than `bytes_max` and arrives in time.
pub(super) async fn read(headers: &HeaderMap, mut body: Body, bytes_max: usize) -> Result<Bytes, ApiError> {
    if declares_more_than(headers, bytes_max) {
        return Err(refuse(headers, body, ApiError::BodyTooLarge(bytes_max)).await);
    }
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(&mut body, bytes_max).collect()).await;
    match collected.map_err(|_| ApiError::BodyTimeout(BODY_TIMEOUT))? {
        Ok(body) => Ok(body.to_bytes()),
        Err(e) if e.is::<LengthLimitError>() => Err(refuse(headers, body, ApiError::BodyTooLarge(bytes_max)).await),
        Err(_) => Err(ended_early()),
    }
}

/// What `take` gets at once. After as much, other tasks have their turn.
const PIECE_BYTES_MAX: usize = 256 << 10;

/// Gives a body to `take` as it arrives, if it is not larger than `bytes_max` and arrives in time. What `take` refuses is
/// refused at once, the rest of the body as `refuse` does it.
pub(super) async fn read_in_pieces(
    headers: &HeaderMap,
    mut body: Body,
    bytes_max: usize,
    mut take: impl FnMut(&[u8]) -> Result<(), ApiError>,
) -> Result<(), ApiError> {
    if declares_more_than(headers, bytes_max) {
        return Err(refuse(headers, body, ApiError::BodyTooLarge(bytes_max)).await);
    }
    let (mut left, mut taken) = (bytes_max, 0);
    let read = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| ended_early())?;
            let Some(data) = frame.data_ref() else { continue };
            let Some(rest) = left.checked_sub(data.len()) else { return Ok(Some(ApiError::BodyTooLarge(bytes_max))) };
            left = rest;
            for piece in data.chunks(PIECE_BYTES_MAX) {
                if let Err(e) = take(piece) {
                    return Ok(Some(e));
                }
                taken += piece.len();
                if taken >= PIECE_BYTES_MAX {
                    taken = 0;
                    tokio::task::yield_now().await;
                }
            }
        }
        Ok::<_, ApiError>(None)
    };
    let read = tokio::time::timeout(BODY_TIMEOUT, read).await;
    let Some(refusal) = read.map_err(|_| ApiError::BodyTimeout(BODY_TIMEOUT))?? else { return Ok(()) };
    // Its sender has begun, and would not hear the answer before it is through: what a sound body may have is waited for.
    discard(&mut body, left.max(DISCARD_BYTES_MAX)).await;
    Err(refusal)
}
