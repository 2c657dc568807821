//! The media types of request bodies that `/append` and `/append/batch` accept.

use axum::http::{HeaderMap, HeaderValue, header};
use mime::Mime;
use serde_json::{Value, json};

use crate::http::error::ApiError;

/// The names of UTF-8 and of its part ASCII that clients send.
const CHARSETS: [&str; 4] = ["utf-8", "utf8", "us-ascii", "ascii"];

/// The formats of `/append`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MediaType {
    Json,
    Form,
    /// The body is the text of the first data column.
    Text,
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
    /// `UnsupportedMediaType`, if the body is not JSON, a form or plain text in UTF-8.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let value = content_type(headers).ok_or(ApiError::UnsupportedMediaType)?;
        // Nearly all clients send exactly this, which needs no parsing.
        if value == "application/json" {
            return Ok(Self::Json);
        }
        let mime = utf8_mime(value).ok_or(ApiError::UnsupportedMediaType)?;
        match mime.essence_str() {
            "application/json" => Ok(Self::Json),
            "application/x-www-form-urlencoded" => Ok(Self::Form),
            "text/plain" => Ok(Self::Text),
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

/// A media type whose text is UTF-8, or a part of it.
fn utf8_mime(value: &HeaderValue) -> Option<Mime> {
    // RFC 9110, 5.6.6 allows spaces around a semicolon and empty parameters, which `Mime` does not parse. No accepted value has a
    // semicolon within quotes.
    let parts = value.to_str().ok()?.split(';').map(|part| part.trim_matches([' ', '\t']));
    let mime: Mime = parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join(";").parse().ok()?;
    let is_utf8 = |charset: &str| CHARSETS.iter().any(|known| charset.eq_ignore_ascii_case(known));
    mime.get_param(mime::CHARSET).is_none_or(|charset| is_utf8(charset.as_str())).then_some(mime)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(content_type: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_str(content_type).expect("a value"))])
    }

    #[test]
    fn media_types_are_read_as_rfc_9110_writes_them() {
        for parameters in [
            "",
            ";",
            " ;; ",
            ";charset=utf-8",
            " ; charset=utf-8",
            "\t;\tcharset=UTF-8 ;",
            ";charset=utf8",
            "; charset=\"utf-8\"",
            "; charset=\"UTF8\"",
            "; charset=us-ascii",
            "; charset=US-ASCII",
            "; CHARSET=utf-8",
            "; version=1; charset=utf-8",
            "; version=\"a b\"",
        ] {
            for (essence, expected) in [
                ("application/json", MediaType::Json),
                ("Application/JSON", MediaType::Json),
                ("application/x-www-form-urlencoded", MediaType::Form),
                ("text/plain", MediaType::Text),
            ] {
                let value = format!("{essence}{parameters}");
                assert_eq!(MediaType::of(&headers(&value)).ok(), Some(expected), "{value:?}");
            }
            for (essence, expected) in [
                ("text/csv", BatchType::CsvWithHeader),
                ("TEXT/CSV ; header = absent", BatchType::CsvWithoutHeader),
                ("text/csv;header=\"present\"", BatchType::CsvWithHeader),
                ("application/x-ndjson", BatchType::JsonLines),
                ("application/json", BatchType::JsonArray),
            ] {
                let value = format!("{}{parameters}", essence.replace(" = ", "="));
                assert_eq!(BatchType::of(&headers(&value)).ok(), Some(expected), "{value:?}");
            }
        }
    }

    #[test]
    fn other_types_and_character_sets_are_refused() {
        for value in [
            "",
            ";",
            "json",
            "application/jsonp",
            "application/json, text/csv",
            "application/json charset=utf-8",
            "application/json; charset",
            "application/json; charset=latin1",
            "application/json; charset=\"utf-16\"",
            "text/plain; charset=iso-8859-1",
            "multipart/form-data; boundary=x",
        ] {
            assert!(MediaType::of(&headers(value)).is_err(), "{value:?}");
            assert!(BatchType::of(&headers(value)).is_err(), "{value:?}");
        }
        assert!(BatchType::of(&headers("text/plain")).is_err());
        let mut twice = headers("application/json");
        twice.append(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        assert!(MediaType::of(&twice).is_err() && BatchType::of(&twice).is_err());
    }
}
