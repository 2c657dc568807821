//! What kind of body `/append/batch` gets: CSV, JSON lines, or a JSON array.

use axum::http::{HeaderMap, header};
use serde_json::{Value, json};

use crate::http::error::ApiError;

/// What `/append/batch` reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BatchType {
    /// The first record names the columns.
    CsvWithHeader,
    /// The data columns from the left.
    CsvWithoutHeader,
    JsonLines,
    JsonArray,
}

/// Exactly one `Content-Type`, of a kind that is read here, in UTF-8.
pub(crate) fn batch_type(headers: &HeaderMap) -> Result<BatchType, ApiError> {
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Err(ApiError::UnsupportedBatchType) };
    let mime: Option<mime::Mime> = value.to_str().ok().and_then(|text| text.parse().ok());
    let mime = mime.ok_or(ApiError::UnsupportedBatchType)?;
    let is_utf8 = mime.get_param(mime::CHARSET).is_none_or(|charset| charset == mime::UTF_8);
    // An encoding that is still named here was not decoded.
    if !is_utf8 || headers.contains_key(header::CONTENT_ENCODING) {
        return Err(ApiError::UnsupportedBatchType);
    }
    let csv_header = mime.get_param("header").map(|value| value.as_str().to_ascii_lowercase());
    match (mime.essence_str(), csv_header.as_deref()) {
        ("text/csv", None | Some("present")) => Ok(BatchType::CsvWithHeader),
        ("text/csv", Some("absent")) => Ok(BatchType::CsvWithoutHeader),
        ("application/x-ndjson" | "application/ndjson" | "application/jsonl", _) => Ok(BatchType::JsonLines),
        ("application/json", _) => Ok(BatchType::JsonArray),
        _ => Err(ApiError::UnsupportedBatchType),
    }
}

/// What `parse` reads, in terms of JSON Schema.
pub(crate) fn schemas() -> Value {
    json!({
        "CsvRows": {
            "description": "With `header=present`, which is the default, the first record names data columns; those that are missing stay empty. With `header=absent` cells fill the data columns from the left. All records have the same number of cells.",
            "type": "string",
        },
        "JsonLines": {
            "description": "One JSON value a line, each of what `data` may be. Also application/ndjson and application/jsonl.",
            "type": "string",
        },
        "JsonRows": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Data"}},
    })
}
