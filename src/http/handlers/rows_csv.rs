//! `GET /rows.csv`: the file itself, up to its last committed row, in whole or in part.

use axum::{
    body::{Body, Bytes},
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;

use crate::http::{
    app::App,
    contract::document::{FileRefused, IfNoneMatch},
    error::ApiError,
    query::Parameters,
    static_content::{is_known, tags},
};
use crate::{
    commit::reading::{Snapshot, read_part},
    csv::{formula_guard::CellGuard, schema::InvalidField},
};

const TYPE: &str = "text/csv; charset=utf-8; header=present";
const TYPE_HEADERLESS: &str = "text/csv; charset=utf-8; header=absent";
/// Read and sent at once.
const PART_BYTES: u64 = 256 << 10;
/// Belongs to no cell.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// What a request gets of the file.
#[derive(Debug, PartialEq)]
enum Part {
    Whole,
    /// From the first to the byte before the second.
    Range(u64, u64),
    Unchanged,
    Unsatisfiable,
}

/// The file itself
///
/// Up to its last committed row, even while rows are being written. gzip if it is asked for. With `formula_guard=on` it can be
/// opened in a spreadsheet: each cell that one would run as a formula has an apostrophe in front. These are other bytes, with
/// an `ETag` of their own; ranges of them are not told, and `Content-Length` neither.
#[utoipa::path(
    get,
    path = "/rows.csv",
    tag = "rows",
    operation_id = "rowsCsv",
    params(
        ("formula_guard" = Option<String>, Query, nullable = false, pattern = "^(on|off)$", description = "`on` or `off`, which it is unless set."),
        ("Range" = Option<String>, Header, nullable = false, description = "One range of bytes; several are answered by the whole."),
        ("If-Range" = Option<String>, Header, nullable = false, description = "An `ETag`: if it is not the file's, the whole is sent."),
        IfNoneMatch,
    ),
    responses(
        (status = OK, description = "All of it.", content_type = "text/csv", body = String, headers(
            ("ETag" = String, description = "Changes with every row."),
            ("Accept-Ranges" = String, description = "`bytes`; `none` with `formula_guard=on`."),
        )),
        (status = PARTIAL_CONTENT, description = "The range.", content_type = "text/csv", body = String, headers(
            ("ETag" = String, description = "Changes with every row."),
            ("Accept-Ranges" = String, description = "`bytes`"),
            ("Content-Range" = String, description = "Which part of how much."),
        )),
        (status = NOT_MODIFIED, description = "It is what the tag names.", headers(("ETag" = String, description = "Changes with every row."))),
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

/// All of it, each cell guarded. How long that is, and where in it something stands, is known only once it is sent.
fn guarded(snapshot: Snapshot, headers: &HeaderMap) -> Response {
    let etag = format!("\"{}-guarded\"", snapshot.tag());
    if is_known(headers, &etag) {
        return (StatusCode::NOT_MODIFIED, tags(&etag)).into_response();
    }
    let ranges = [(header::ACCEPT_RANGES, HeaderValue::from_static("none"))];
    (tags(&etag), ranges, send_guarded(snapshot)).into_response()
}

fn plain(snapshot: Snapshot, headers: &HeaderMap) -> Result<Response, ApiError> {
    let (len, etag) = (snapshot.bytes(), format!("\"{}\"", snapshot.tag()));
    let (status, from, to) = match part(headers, len, &etag) {
        Part::Whole => (StatusCode::OK, 0, len),
        Part::Range(from, to) => (StatusCode::PARTIAL_CONTENT, from, to),
        Part::Unchanged => return Ok((StatusCode::NOT_MODIFIED, tags(&etag)).into_response()),
        Part::Unsatisfiable => {
            let all = HeaderValue::try_from(format!("bytes */{len}")).expect("digits");
            return Ok(([(header::CONTENT_RANGE, all)], ApiError::RangeNotSatisfiable(len)).into_response());
        }
    };
    let mut response = (status, tags(&etag), send(snapshot, from, to)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(to - from));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {from}-{}/{len}", to - 1);
        headers.insert(header::CONTENT_RANGE, HeaderValue::try_from(range).expect("digits"));
    }
    Ok(response)
}

fn part(headers: &HeaderMap, len: u64, etag: &str) -> Part {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    if is_known(headers, etag) {
        return Part::Unchanged;
    }
    // Another file than the one that the range was meant for is sent whole.
    let is_meant = text(header::IF_RANGE).is_none_or(|tag| tag.trim() == etag);
    let Some(range) = text(header::RANGE).filter(|range| is_meant && range.starts_with("bytes=")) else {
        return Part::Whole;
    };
    let Ok(parsed) = http_range_header::parse_range_header(range) else { return Part::Unsatisfiable };
    match parsed.validate(len) {
        // Several at once are rare, and may be answered by the whole.
        Ok(ranges) if ranges.len() > 1 => Part::Whole,
        Ok(ranges) => ranges.first().map_or(Part::Whole, |range| Part::Range(*range.start(), range.end() + 1)),
        Err(_) => Part::Unsatisfiable,
    }
}

fn send(snapshot: Snapshot, from: u64, to: u64) -> Body {
    let parts = stream::try_unfold((snapshot, from), move |(snapshot, at)| async move {
        if at >= to {
            return Ok::<_, std::io::Error>(None);
        }
        let part = next_part(&snapshot, at, to).await?;
        let next = at + part.len() as u64;
        Ok(Some((Bytes::from(part), (snapshot, next))))
    });
    Body::from_stream(parts)
}

fn send_guarded(snapshot: Snapshot) -> Body {
    let len = snapshot.bytes();
    let parts = stream::try_unfold((snapshot, 0, CellGuard::default()), move |(snapshot, at, mut guard)| async move {
        if at >= len {
            return Ok::<_, std::io::Error>(None);
        }
        let part = next_part(&snapshot, at, len).await?;
        let mut guarded = Vec::with_capacity(part.len() + part.len() / 16);
        let text = match part.strip_prefix(BYTE_ORDER_MARK).filter(|_| at == 0) {
            Some(text) => {
                guarded.extend_from_slice(BYTE_ORDER_MARK);
                text
            }
            None => &part,
        };
        guard.feed(text, &mut guarded);
        let next = at + part.len() as u64;
        if next >= len {
            guard.finish(&mut guarded);
        }
        Ok(Some((Bytes::from(guarded), (snapshot, next, guard))))
    });
    Body::from_stream(parts)
}

async fn next_part(snapshot: &Snapshot, from: u64, to: u64) -> std::io::Result<Vec<u8>> {
    let part = read_part(snapshot, from, PART_BYTES.min(to - from)).await?;
    if part.is_empty() { Err(std::io::Error::other("the file was cut short meanwhile")) } else { Ok(part) }
}
