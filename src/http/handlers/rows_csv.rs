//! `GET /rows.csv`: the file up to its last committed row, whole or a range of it.

use axum::{
    body::{Body, Bytes},
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;

use crate::http::{
    app::App,
    contract::{parameters::IfNoneMatch, refusals::FileRefused},
    error::ApiError,
    header_value::header_value,
    query::Parameters,
    static_content::{client_has, validators},
};
use crate::{
    commit::reading::{Snapshot, read_part},
    csv::{bom::BOM, formula_guard::CellGuard, schema::InvalidField},
};

const TYPE: &str = "text/csv; charset=utf-8; header=present";
const TYPE_HEADERLESS: &str = "text/csv; charset=utf-8; header=absent";
/// The size of the chunks that are read and sent.
const CHUNK_BYTES: u64 = 256 << 10;

/// Which part of the file a request gets.
#[derive(Debug, PartialEq)]
enum RangeOutcome {
    Whole,
    /// Start, and end exclusive.
    Range(u64, u64),
    Unchanged,
    Unsatisfiable,
}

/// Download the file
///
/// Returns the file up to its last committed row, even while rows are being written, compressed if the client accepts gzip. With
/// `formula_guard=on`, each cell that a spreadsheet would run as a formula starts with an apostrophe. These bytes differ from the file:
/// they have an `ETag` of their own, no ranges and no `Content-Length`.
#[utoipa::path(
    get,
    path = "/rows.csv",
    tag = "rows",
    operation_id = "rowsCsv",
    params(
        ("formula_guard" = Option<String>, Query, nullable = false, pattern = "^(on|off)$", description = "`on` or `off`; default `off`."),
        ("Range" = Option<String>, Header, nullable = false, description = "One range of bytes. For several ranges, the whole file is sent."),
        ("If-Range" = Option<String>, Header, nullable = false, description = "An `ETag`. If the file has another one, the whole file is sent."),
        IfNoneMatch,
    ),
    responses(
        (status = OK, description = "The whole file.", content_type = "text/csv", body = String, headers(
            ("ETag" = String, description = "Changes with every row."),
            ("Accept-Ranges" = String, description = "`bytes`; `none` with `formula_guard=on`."),
        )),
        (status = PARTIAL_CONTENT, description = "The range of the file.", content_type = "text/csv", body = String, headers(
            ("ETag" = String, description = "Changes with every row."),
            ("Accept-Ranges" = String, description = "`bytes`"),
            ("Content-Range" = String, description = "The range, and the size of the file."),
        )),
        (status = NOT_MODIFIED, description = "The client's copy is current.", headers(("ETag" = String, description = "Changes with every row."))),
        FileRefused,
    ),
)]
pub(crate) async fn rows_csv(
    State(app): State<App>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let is_guarded = wants_guard(query.as_deref())?;
    let snapshot = app.reading.snapshot().await?;
    let has_header = app.appender.schema().width().is_some();
    let content_type = HeaderValue::from_static(if has_header { TYPE } else { TYPE_HEADERLESS });
    let mut response = if is_guarded { guarded(snapshot, &headers) } else { plain(snapshot, &headers)? };
    if response.status().is_success() {
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    }
    Ok(response)
}

fn wants_guard(query: Option<&str>) -> Result<bool, ApiError> {
    let mut parameters = Parameters::parse(query, &["formula_guard"])?;
    match parameters.take("formula_guard").as_deref() {
        None | Some("off") => Ok(false),
        Some("on") => Ok(true),
        Some(_) => Err(InvalidField::new("formula_guard", "accepted: on or off").into()),
    }
}

/// The whole file with each cell guarded. Its length is known only after it is sent.
fn guarded(snapshot: Snapshot, headers: &HeaderMap) -> Response {
    let etag = format!("\"{}-guarded\"", snapshot.tag());
    if client_has(headers, &etag) {
        return (StatusCode::NOT_MODIFIED, validators(&etag)).into_response();
    }
    let ranges = [(header::ACCEPT_RANGES, HeaderValue::from_static("none"))];
    (validators(&etag), ranges, send_guarded(snapshot)).into_response()
}

fn plain(snapshot: Snapshot, headers: &HeaderMap) -> Result<Response, ApiError> {
    let (len, etag) = (snapshot.bytes(), format!("\"{}\"", snapshot.tag()));
    let (status, from, to) = match requested_range(headers, len, &etag) {
        RangeOutcome::Whole => (StatusCode::OK, 0, len),
        RangeOutcome::Range(from, to) => (StatusCode::PARTIAL_CONTENT, from, to),
        RangeOutcome::Unchanged => return Ok((StatusCode::NOT_MODIFIED, validators(&etag)).into_response()),
        RangeOutcome::Unsatisfiable => {
            let all = header_value(format!("bytes */{len}"));
            return Ok(([(header::CONTENT_RANGE, all)], ApiError::RangeNotSatisfiable(len)).into_response());
        }
    };
    let mut response = (status, validators(&etag), send(snapshot, from, to)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(to - from));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if status == StatusCode::PARTIAL_CONTENT {
        headers.insert(header::CONTENT_RANGE, header_value(format!("bytes {from}-{}/{len}", to - 1)));
    }
    Ok(response)
}

fn requested_range(headers: &HeaderMap, len: u64, etag: &str) -> RangeOutcome {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    if client_has(headers, etag) {
        return RangeOutcome::Unchanged;
    }
    // If the file has changed since the client received a part of it, the whole file is sent.
    let is_unchanged = text(header::IF_RANGE).is_none_or(|tag| tag.trim() == etag);
    let Some(range) = text(header::RANGE).filter(|range| is_unchanged && range.starts_with("bytes=")) else {
        return RangeOutcome::Whole;
    };
    let Ok(parsed) = http_range_header::parse_range_header(range) else { return RangeOutcome::Unsatisfiable };
    match parsed.validate(len) {
        // RFC 9110 allows to answer several ranges with the whole file.
        Ok(ranges) if ranges.len() > 1 => RangeOutcome::Whole,
        Ok(ranges) => {
            ranges.first().map_or(RangeOutcome::Whole, |range| RangeOutcome::Range(*range.start(), range.end() + 1))
        }
        Err(_) => RangeOutcome::Unsatisfiable,
    }
}

fn send(snapshot: Snapshot, from: u64, to: u64) -> Body {
    let chunks = stream::try_unfold((snapshot, from), move |(snapshot, at)| async move {
        if at >= to {
            return Ok::<_, std::io::Error>(None);
        }
        let chunk = next_chunk(&snapshot, at, to).await?;
        let next = at + chunk.len() as u64;
        Ok(Some((Bytes::from(chunk), (snapshot, next))))
    });
    Body::from_stream(chunks)
}

fn send_guarded(snapshot: Snapshot) -> Body {
    let len = snapshot.bytes();
    let chunks = stream::try_unfold((snapshot, 0, CellGuard::default()), move |(snapshot, at, mut guard)| async move {
        if at >= len {
            return Ok::<_, std::io::Error>(None);
        }
        let chunk = next_chunk(&snapshot, at, len).await?;
        let mut guarded = Vec::with_capacity(chunk.len() + chunk.len() / 16);
        let text = match chunk.strip_prefix(BOM).filter(|_| at == 0) {
            Some(text) => {
                guarded.extend_from_slice(BOM);
                text
            }
            None => &chunk,
        };
        guard.feed(text, &mut guarded);
        let next = at + chunk.len() as u64;
        if next >= len {
            guard.finish(&mut guarded);
        }
        Ok(Some((Bytes::from(guarded), (snapshot, next, guard))))
    });
    Body::from_stream(chunks)
}

async fn next_chunk(snapshot: &Snapshot, from: u64, to: u64) -> std::io::Result<Vec<u8>> {
    let chunk = read_part(snapshot, from, CHUNK_BYTES.min(to - from)).await?;
    if chunk.is_empty() { Err(std::io::Error::other("the file was truncated while it was sent")) } else { Ok(chunk) }
}
