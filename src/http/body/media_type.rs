//! The media types of request bodies that `/append` and `/append/batch` accept.

use axum::http::{HeaderMap, HeaderValue, header};
use mime::Mime;
use serde_json::{Value, json};

use crate::http::{body::encoding::Encoding, error::ApiError};

/// The formats of `/append`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MediaType {
    Json,
    Form,
}

/// The formats of `/append/batch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BatchType {
    /// The first record names the columns.
    CsvWithHeader,
    /// Cells fill the data columns from the left.
    CsvWithoutHeader,
    JsonLines,
    JsonArray,
}

impl MediaType {
    /// # Errors
    /// `UnsupportedMediaType`, if the body is not JSON or a form in UTF-8, or if it is encoded.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let is_plain = Encoding::of(headers) == Some(Encoding::Identity);
        let value = content_type(headers).filter(|_| is_plain).ok_or(ApiError::UnsupportedMediaType)?;
        // Nearly all clients send exactly this, which needs no parsing.
        if value == "application/json" {
            return Ok(Self::Json);
        }
        let mime = utf8_mime(value).ok_or(ApiError::UnsupportedMediaType)?;
        match mime.essence_str() {
            "application/json" => Ok(Self::Json),
            "application/x-www-form-urlencoded" => Ok(Self::Form),
            _ => Err(ApiError::UnsupportedMediaType),
        }
    }
}

impl BatchType {
    /// # Errors
    /// `UnsupportedBatchType`, if the body is not CSV or JSON in UTF-8.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let mime = content_type(headers).and_then(utf8_mime).ok_or(ApiError::UnsupportedBatchType)?;
        let csv_header = mime.get_param("header").map(|value| value.as_str().to_ascii_lowercase());
        match (mime.essence_str(), csv_header.as_deref()) {
            ("text/csv", None | Some("present")) => Ok(Self::CsvWithHeader),
            ("text/csv", Some("absent")) => Ok(Self::CsvWithoutHeader),
            ("application/x-ndjson" | "application/ndjson" | "application/jsonl", _) => Ok(Self::JsonLines),
            ("application/json", _) => Ok(Self::JsonArray),
            _ => Err(ApiError::UnsupportedBatchType),
        }
    }
}

/// The one `Content-Type` of a body.
fn content_type(headers: &HeaderMap) -> Option<&HeaderValue> {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    Some(value)
}

fn utf8_mime(value: &HeaderValue) -> Option<Mime> {
    let mime: Mime = value.to_str().ok()?.parse().ok()?;
    mime.get_param(mime::CHARSET).is_none_or(|charset| charset == mime::UTF_8).then_some(mime)
}

/// The batch formats as JSON Schemas.
pub(crate) fn schemas() -> Value {
    json!({
        "CsvRows": {
            "description": "With `header=present`, the default, the first record names data columns; the other columns stay empty. With `header=absent`, cells fill the data columns from the left. All records have the same number of cells, and lines end with LF or CRLF. In a CSV of one column, a blank line between two records is a row with an empty cell; other blank lines are skipped.",
            "type": "string",
        },
        "JsonLines": {
            "description": "One JSON value per line; each is a value that `data` accepts. Blank lines are skipped. Also application/ndjson and application/jsonl.",
            "type": "string",
        },
        "JsonRows": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Data"}},
    })
}
