//! `GET /rows.csv`: the file up to its last committed row, whole or a range of it.

use axum::{
    body::{Body, Bytes},
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream;

use crate::http::{
    app::App,
    conditional::{check_if_match, client_has, may_send_range, validators},
    contract::{parameters::IfNoneMatch, refusals::FileRefused},
    error::ApiError,
    header_value::header_value,
    query::{Parameters, digits},
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
#[derive(Debug, Clone, Copy, PartialEq)]
enum RangeOutcome {
    Whole,
    /// Start, and end exclusive.
    Range(u64, u64),
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
        ("Range" = Option<String>, Header, nullable = false, description = "One range of bytes. For several ranges, or a range that is not well-formed, the whole file is sent."),
        ("If-Range" = Option<String>, Header, nullable = false, description = "An `ETag`. If the file has another one, the whole file is sent."),
        ("If-Match" = Option<String>, Header, nullable = false, description = "`ETag`s, or `*`. 412 if the file has none of them."),
        IfNoneMatch,
    ),
    responses(
        (status = OK, description = "The whole file.", content_type = "text/csv", body = String, headers(
            ("ETag" = String, description = "Changes with every row; weak if the answer is compressed."),
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
    method: Method,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let is_guarded = wants_guard(query.as_deref())?;
    let snapshot = app.reading.snapshot().await?;
    let etag = format!("\"{}{}\"", snapshot.tag(), if is_guarded { "-guarded" } else { "" });
    // The order of RFC 9110, section 13.2.2. The route's layer answers 304 itself, so that a 304 has the headers of the 200.
    check_if_match(&headers, &etag)?;
    let range_counts =
        method == Method::GET && !is_guarded && !client_has(&headers, &etag) && may_send_range(&headers, &etag);
    let range = if range_counts { requested_range(&headers, snapshot.bytes()) } else { RangeOutcome::Whole };
    let has_header = app.appender.schema().width().is_some();
    let content_type = HeaderValue::from_static(if has_header { TYPE } else { TYPE_HEADERLESS });
    let mut response = if is_guarded { guarded(snapshot) } else { plain(snapshot, range) };
    if response.status().is_success() {
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        response.headers_mut().extend(validators(&etag));
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
fn guarded(snapshot: Snapshot) -> Response {
    ([(header::ACCEPT_RANGES, HeaderValue::from_static("none"))], send_guarded(snapshot)).into_response()
}

fn plain(snapshot: Snapshot, range: RangeOutcome) -> Response {
    let len = snapshot.bytes();
    let (status, from, to) = match range {
        RangeOutcome::Whole => (StatusCode::OK, 0, len),
        RangeOutcome::Range(from, to) => (StatusCode::PARTIAL_CONTENT, from, to),
        RangeOutcome::Unsatisfiable => {
            let all = header_value(format!("bytes */{len}"));
            return ([(header::CONTENT_RANGE, all)], ApiError::RangeNotSatisfiable(len)).into_response();
        }
    };
    let mut response = (status, send(snapshot, from, to)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(to - from));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if status == StatusCode::PARTIAL_CONTENT {
        headers.insert(header::CONTENT_RANGE, header_value(format!("bytes {from}-{}/{len}", to - 1)));
    }
    response
}

/// RFC 9110 allows to answer several ranges with the whole file, and to ignore a `Range` that is not well-formed.
fn requested_range(headers: &HeaderMap, len: u64) -> RangeOutcome {
    let mut values = headers.get_all(header::RANGE).iter();
    let (Some(range), None) = (values.next().and_then(|value| value.to_str().ok()), values.next()) else {
        return RangeOutcome::Whole;
    };
    let Some((unit, range)) = range.split_once('=') else { return RangeOutcome::Whole };
    let Some((first, last)) = range.trim().split_once('-') else { return RangeOutcome::Whole };
    if !unit.eq_ignore_ascii_case("bytes") {
        return RangeOutcome::Whole;
    }
    match (digits(first), digits(last)) {
        (None, Some(0)) if first.is_empty() => RangeOutcome::Unsatisfiable,
        (None, Some(suffix)) if first.is_empty() && len > 0 => RangeOutcome::Range(len.saturating_sub(suffix), len),
        (Some(first), None) if last.is_empty() && first < len => RangeOutcome::Range(first, len),
        (Some(_), None) if last.is_empty() => RangeOutcome::Unsatisfiable,
        (Some(first), Some(last)) if last < first => RangeOutcome::Whole,
        (Some(first), Some(last)) if first < len => RangeOutcome::Range(first, last.min(len - 1) + 1),
        (Some(_), Some(_)) => RangeOutcome::Unsatisfiable,
        _ => RangeOutcome::Whole,
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
