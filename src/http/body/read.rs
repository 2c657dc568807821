//! Reading a body: its type first, then its bytes, bounded in size and time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderMap, header},
};
use bytes::Bytes;
use http_body_util::BodyExt;

use crate::http::error::ApiError;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// What `/append` reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MediaType {
    Json,
    Form,
}

/// Exactly one `Content-Type`, of a kind that is read here, in UTF-8.
pub(crate) fn media_type(headers: &HeaderMap) -> Result<MediaType, ApiError> {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(ApiError::UnsupportedMediaType) };
    if headers.contains_key(header::CONTENT_ENCODING) {
        return Err(ApiError::UnsupportedMediaType);
    }
    // Nearly all say this, and nothing else is to be parsed then.
    if value == "application/json" {
        return Ok(MediaType::Json);
    }
    let mime: mime::Mime =
        value.to_str().ok().and_then(|text| text.parse().ok()).ok_or(ApiError::UnsupportedMediaType)?;
    if mime.get_param(mime::CHARSET).is_some_and(|charset| charset != mime::UTF_8) {
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
pub(crate) async fn refuse(headers: &HeaderMap, mut body: Body, with: ApiError) -> ApiError {
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

/// Room in memory for bodies that are under way, all together: a sender takes as much of it as has arrived.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    used: Arc<AtomicUsize>,
    bytes_max: usize,
}

impl Room {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { used: Arc::default(), bytes_max }
    }

    fn enter(&self) -> Taken<'_> {
        Taken { room: self, bytes: 0 }
    }
}

/// What one body takes of the room, given back when this is dropped.
struct Taken<'a> {
    room: &'a Room,
    bytes: usize,
}

impl Taken<'_> {
    fn more(&mut self, bytes: usize) -> Result<(), ApiError> {
        self.bytes += bytes;
        let all = self.room.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // One body alone may be larger: its own bounds hold it.
        // guard: bodies_bounded
        if all > self.room.bytes_max && all > self.bytes { Err(ApiError::TooMuchUnderWay) } else { Ok(()) }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.room.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The whole body, if it is not larger than `bytes_max`, arrives in time, and finds room.
pub(crate) async fn read(
    headers: &HeaderMap,
    mut body: Body,
    bytes_max: usize,
    room: &Room,
) -> Result<Bytes, ApiError> {
    let mut pieces = Vec::new();
    let mut taken = room.enter();
    let keep = |piece| {
        pieces.push(piece);
        Ok(())
    };
    let read = each_piece(headers, &mut body, bytes_max, &mut taken, keep).await;
    refuse_rest(read, &mut body).await?;
    // Small bodies come in one piece, which need not be copied.
    Ok(if pieces.len() == 1 { pieces.remove(0) } else { pieces.concat().into() })
}

/// What `take` gets at once. After as much, other tasks have their turn.
const PIECE_BYTES_MAX: usize = 256 << 10;

/// Gives a body to `take` as it arrives, if it is not larger than `bytes_max`, arrives in time, and finds room. What `take`
/// refuses is refused at once, the rest of the body as `refuse` does it.
pub(crate) async fn read_in_pieces(
    headers: &HeaderMap,
    mut body: Body,
    bytes_max: usize,
    room: &Room,
    mut take: impl FnMut(&[u8]) -> Result<(), ApiError>,
) -> Result<(), ApiError> {
    let mut taken = room.enter();
    let read = each_piece(headers, &mut body, bytes_max, &mut taken, |piece| take(&piece)).await;
    refuse_rest(read, &mut body).await
}

/// Why a body is not read on, and how much of it may be thrown away then so that its sender hears the answer.
struct Refused {
    with: ApiError,
    discard_bytes: usize,
}

async fn refuse_rest(read: Result<(), Refused>, body: &mut Body) -> Result<(), ApiError> {
    let Err(Refused { with, discard_bytes }) = read else { return Ok(()) };
    if discard_bytes > 0 {
        discard(body, discard_bytes).await;
    }
    Err(with)
}

/// Hands a body on as it arrives, within all bounds.
async fn each_piece(
    headers: &HeaderMap,
    body: &mut Body,
    bytes_max: usize,
    taken: &mut Taken<'_>,
    mut take: impl FnMut(Bytes) -> Result<(), ApiError>,
) -> Result<(), Refused> {
    let refused = |with, discard_bytes| Refused { with, discard_bytes };
    if declares_more_than(headers, bytes_max) {
        // A sender that waits for a go-ahead does not get one.
        let discard_bytes = if headers.contains_key(header::EXPECT) { 0 } else { DISCARD_BYTES_MAX };
        return Err(refused(ApiError::BodyTooLarge(bytes_max), discard_bytes));
    }
    let (mut left, mut since_turn) = (bytes_max, 0);
    let read = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| refused(ended_early(), 0))?;
            let Ok(mut data) = frame.into_data() else { continue };
            let len = data.len();
            let Some(rest) = left.checked_sub(len) else {
                return Err(refused(ApiError::BodyTooLarge(bytes_max), DISCARD_BYTES_MAX));
            };
            left = rest;
            // Its sender has begun, and would not hear the answer before it is through: what a sound body may have is waited for.
            let refuse = |e| refused(e, left.max(DISCARD_BYTES_MAX));
            taken.more(len).map_err(refuse)?;
            while !data.is_empty() {
                let piece = data.split_to(data.len().min(PIECE_BYTES_MAX));
                since_turn += piece.len();
                take(piece).map_err(refuse)?;
                if since_turn >= PIECE_BYTES_MAX {
                    since_turn = 0;
                    tokio::task::yield_now().await;
                }
            }
        }
        Ok(())
    };
    match tokio::time::timeout(BODY_TIMEOUT, read).await {
        Ok(read) => read,
        Err(_) => Err(refused(ApiError::BodyTimeout(BODY_TIMEOUT), 0)),
    }
}
