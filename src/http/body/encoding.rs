//! Decodes compressed bodies while they arrive.

use std::{io, pin::Pin};

use async_compression::{
    tokio::bufread::{GzipDecoder, ZstdDecoder},
    zstd::DParameter,
};
use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, header},
};
use futures_util::{Stream, TryStreamExt};
use http_body_util::BodyDataStream;
use tokio_util::io::{ReaderStream, StreamReader};

use crate::http::error::ApiError;

/// The size of the pieces that a decoder returns.
const PIECE_BYTES: usize = 64 << 10;

/// How far back a gzip body may refer (RFC 1951, 2).
const GZIP_WINDOW_BYTES: usize = 32 << 10;
/// How far back a zstd frame may refer, as a power of two: what RFC 8878, 3.1.1.1.2 recommends decoders to support. A frame says how
/// much it needs, up to 3.75 TiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// The `Content-Encoding` of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
    Zstd,
}

impl Encoding {
    /// `None`, if the headers name several encodings, or one that is not accepted.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(header::CONTENT_ENCODING).iter();
        let Some(value) = values.next() else { return Some(Self::Identity) };
        if values.next().is_some() {
            return None;
        }
        match value.to_str().ok()?.trim().to_ascii_lowercase().as_str() {
            "identity" => Some(Self::Identity),
            // RFC 9110 has recipients treat both names alike.
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "zstd" => Some(Self::Zstd),
            _ => None,
        }
    }

    /// The most memory that a decoder needs after this many decoded bytes.
    pub(super) fn window_bytes(self, decoded: usize) -> usize {
        match self {
            Self::Identity => 0,
            Self::Gzip => decoded.min(GZIP_WINDOW_BYTES),
            Self::Zstd => decoded.min(1 << ZSTD_WINDOW_LOG_MAX),
        }
    }
}

/// Why a body cannot be decoded.
pub(super) fn decoding_fault(e: &impl std::fmt::Display) -> ApiError {
    // The name of `ZSTD_error_frameParameter_windowTooLarge`, which has no other form here.
    let is_window = e.to_string().contains("requires too much memory");
    let detail = if is_window {
        format!(
            "the zstd window is larger than {} bytes; accepted: what zstd makes without --long or --ultra",
            1 << ZSTD_WINDOW_LOG_MAX
        )
    } else {
        "the body ended early, or does not match its Content-Encoding".to_owned()
    };
    ApiError::BrokenBody(detail)
}

/// The content of a body, in pieces.
pub(super) type Pieces<'a> = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send + 'a>>;

/// Decodes all members of gzip (RFC 1952, 2.2) and all frames of zstd (RFC 8878, 3). An incomplete one, or other bytes behind the last
/// one, are an error.
pub(super) fn decoded(body: &mut Body, encoding: Encoding) -> Pieces<'_> {
    let encoded = BodyDataStream::new(body).map_err(io::Error::other);
    match encoding {
        Encoding::Identity => Box::pin(encoded),
        Encoding::Gzip => {
            let mut decoder = GzipDecoder::new(StreamReader::new(encoded));
            // guard: all_members_decoded: a gzip body of several members is decoded whole
            decoder.multiple_members(true);
            Box::pin(ReaderStream::with_capacity(decoder, PIECE_BYTES))
        }
        Encoding::Zstd => {
            // guard: window_bounded: a zstd frame of a few bytes does not make the decoder take memory as it likes
            let window = [DParameter::window_log_max(ZSTD_WINDOW_LOG_MAX)];
            let mut decoder = ZstdDecoder::with_params(StreamReader::new(encoded), &window);
            decoder.multiple_members(true);
            Box::pin(ReaderStream::with_capacity(decoder, PIECE_BYTES))
        }
    }
}
