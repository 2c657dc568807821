//! Decodes compressed bodies while they arrive.

use std::{io, pin::Pin};

use async_compression::tokio::bufread::{GzipDecoder, ZstdDecoder};
use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, header},
};
use futures_util::{Stream, TryStreamExt};
use http_body_util::BodyDataStream;
use tokio_util::io::{ReaderStream, StreamReader};

/// The size of the pieces that a decoder returns.
const PIECE_BYTES: usize = 64 << 10;

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
            let mut decoder = ZstdDecoder::new(StreamReader::new(encoded));
            decoder.multiple_members(true);
            Box::pin(ReaderStream::with_capacity(decoder, PIECE_BYTES))
        }
    }
}
