//! What a body of `/append/batch` says: CSV, JSON lines, or a JSON array; all of it fits the file, or the first line that doesn't is
//! named.

use std::borrow::Cow;

use axum::http::{HeaderMap, header};
use serde_json::{Value, json, value::RawValue};

use super::{
    append_request::{json_data, parse_json},
    error::ApiError,
};
use crate::{
    quoting::{QuoteFault, check_quotes},
    record::Rows,
    schema::{Data, InvalidField, Schema},
};

/// What `/append/batch` reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BatchType {
    /// The first record names the columns.
    CsvWithHeader,
    /// The data columns from the left.
    CsvWithoutHeader,
    JsonLines,
    JsonArray,
}

/// Exactly one `Content-Type`, of a kind that is read here, in UTF-8.
pub(super) fn batch_type(headers: &HeaderMap) -> Result<BatchType, ApiError> {
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
pub(super) fn schemas() -> Value {
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

/// Lays all rows out over the file's columns, or names the first line that doesn't fit them.
pub(super) fn parse(batch_type: BatchType, body: &[u8], schema: &Schema) -> Result<Rows, ApiError> {
    let text = std::str::from_utf8(body).map_err(|e| {
        let line = body[..e.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count() + 1;
        ApiError::BrokenBody(format!("line {line}: not UTF-8"))
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let rows = match batch_type {
        BatchType::CsvWithHeader => from_csv(text, true, schema),
        BatchType::CsvWithoutHeader => from_csv(text, false, schema),
        BatchType::JsonLines => from_json_lines(text, schema),
        BatchType::JsonArray => from_json_array(text, schema),
    }?;
    if rows.is_empty() {
        return Err(InvalidField::new("body", "no rows; accepted: at least one").into());
    }
    Ok(rows)
}

fn in_line(line: u64, e: InvalidField) -> ApiError {
    InvalidField::new(e.field, format!("line {line}: {}", e.detail)).into()
}

fn from_csv(text: &str, has_header: bool, schema: &Schema) -> Result<Rows, ApiError> {
    check_quotes(text.as_bytes()).map_err(|fault| {
        ApiError::BrokenBody(match fault {
            QuoteFault::TextBehindQuote(line) => format!("line {line}: text behind a closing quote"),
            QuoteFault::NotClosed(line) => format!("line {line}: a quote that is not closed"),
        })
    })?;
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
    let (mut record, mut rows) = (csv::StringRecord::new(), schema.rows());
    let mut names: Option<Vec<String>> = None;
    let mut width = None;
    while reader.read_record(&mut record).map_err(|e| ApiError::BrokenBody(format!("not CSV: {e}")))? {
        let line = record.position().map_or(0, |start| line_of(text, start));
        if has_header && names.is_none() {
            names = Some(record.iter().map(str::to_owned).collect());
            check_names(&record, schema).map_err(|e| in_line(line, e))?;
            continue;
        }
        let expected = *width.get_or_insert(names.as_ref().map_or(record.len(), Vec::len));
        if record.len() != expected {
            let detail = format!("{} cells, where the lines before have {expected}", record.len());
            return Err(in_line(line, InvalidField::new("body", detail)));
        }
        let cells = record.iter().map(|cell| Some(Cow::Borrowed(cell)));
        let data = match &names {
            Some(names) => Data::Object(names.iter().map(|name| Cow::Borrowed(&**name)).zip(cells).collect()),
            None => Data::List(cells.collect()),
        };
        schema.push(&data, &mut rows).map_err(|e| in_line(line, e))?;
    }
    Ok(rows)
}

/// The reader counts blank lines before a record as its own.
fn line_of(text: &str, start: &csv::Position) -> u64 {
    let rest = text.as_bytes().get(start.byte() as usize..).unwrap_or_default();
    let blank = rest.iter().take_while(|byte| b"\r\n".contains(byte)).filter(|&&byte| byte == b'\n').count();
    start.line() + blank as u64
}

/// A batch without rows still says if its header is wrong.
fn check_names(names: &csv::StringRecord, schema: &Schema) -> Result<(), InvalidField> {
    let nulls = names.iter().map(|name| (Cow::Borrowed(name), None)).collect();
    schema.push(&Data::Object(nulls), &mut schema.rows())
}

fn from_json_lines(text: &str, schema: &Schema) -> Result<Rows, ApiError> {
    let mut rows = schema.rows();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        json_row(line, schema, &mut rows, |detail| format!("line {number}: {detail}"))?;
    }
    Ok(rows)
}

fn from_json_array(text: &str, schema: &Schema) -> Result<Rows, ApiError> {
    let items: Vec<&RawValue> = parse_json(text, "body", "an array of what data may be")?;
    let mut rows = schema.rows();
    for (number, item) in (1..).zip(items) {
        json_row(item.get(), schema, &mut rows, |detail| format!("row {number}: {detail}"))?;
    }
    Ok(rows)
}

/// A row as `data` gives it, its errors told by its place.
fn json_row(text: &str, schema: &Schema, rows: &mut Rows, placed: impl Fn(&str) -> String) -> Result<(), ApiError> {
    let mut row = || -> Result<(), ApiError> {
        let raw: &RawValue = parse_json(text, "body", "a string, an array or an object")?;
        Ok(schema.push(&json_data(raw)?, rows)?)
    };
    row().map_err(|e| match e {
        ApiError::InvalidField(e) => InvalidField::new(e.field, placed(&e.detail)).into(),
        ApiError::BrokenBody(detail) => ApiError::BrokenBody(placed(&detail)),
        other => other,
    })
}
