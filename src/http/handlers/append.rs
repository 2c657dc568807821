//! `POST /append`: one row.

use std::fmt::Write;

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts},
    response::Response,
};
use serde::Serialize;

use crate::http::{
    app::App,
    body::{
        append::AppendRequest,
        read::{self, MediaType},
    },
    contract::document::{AppendRefused, IdempotencyKey},
    error::ApiError,
    handlers::rows::ROWS_MAX,
};
use crate::{
    api::acknowledgement::Ack,
    csv::idempotency_key::{KEY_BYTES_MAX, Key},
};

/// Append one row
///
/// Waits for its turn at the one lock, appends, and answers once the row is durable. A form has the same fields, with `data`
/// as a string.
#[utoipa::path(
    post,
    path = "/append",
    tag = "rows",
    operation_id = "append",
    params(IdempotencyKey),
    request_body(
        description = "At most ROWLOCK_BODY_LIMIT bytes (1 MiB unless set), UTF-8, within 30 s.",
        content(
            (ref("#/components/schemas/AppendRequest") = "application/json", examples(
                ("text" = (value = json!({"data": "hello"}))),
                ("array" = (value = json!({"data": ["Oslo", 709_037, true]}))),
                ("object" = (value = json!({"data": {"city": "Oslo", "people": 709_037}}))),
                ("slow" = (value = json!({"data": "slow", "sleep": 2.5}))),
                ("crash" = (value = json!({"data": "crash", "skip_release": true}))),
            )),
            (ref("#/components/schemas/AppendForm") = "application/x-www-form-urlencoded"),
        ),
    ),
    responses(
        (status = CREATED, description = "The row is durable.", body = Ack, headers(
            ("Location" = String, description = "Where the row can be read, `/rows?from=OFFSET&limit=1`."),
            ("Idempotent-Replayed" = bool, description = "`true`: the key was known; this is the answer that it got before, and nothing was written now."),
        )),
        AppendRefused,
    ),
)]
pub(crate) async fn append(State(app): State<App>, request: Request) -> Result<Response, ApiError> {
    let (Parts { headers, .. }, body) = request.into_parts();
    let (media_type, key) = match check_headers(&headers) {
        Ok(checked) => checked,
        Err(e) => return Err(read::refuse(&headers, body, e).await),
    };
    let body = read::read(&headers, body, app.limits.body_bytes_max, &app.room).await?;
    let request = AppendRequest::parse(media_type, &body, app.limits.sleep_max)?;
    if request.simulation.wants_own_turn() && !app.limits.simulation {
        return Err(ApiError::SimulationOff);
    }
    let (schema, simulation) = (app.appender.schema(), request.simulation);
    let mut rows = schema.rows();
    schema.push(&request.data, &mut rows)?;
    let key = key.map(|text| Key::new(&text, &rows).ok_or(ApiError::BadKey)).transpose()?;
    drop((headers, body));
    let ack = app.appender.append(rows, simulation, key).await?;
    Ok(written(&ack, &ack))
}

// Room for what a 201 holds on its way out, so that nothing has to grow: these are made for every row.
const BODY_BYTES: usize = 256;
const HEADER_BYTES: usize = 96;
const HEADERS: usize = 12;

/// The 201 with this body, and what every one says beside it.
pub(crate) fn written(body: &impl Serialize, ack: &Ack) -> Response {
    let mut json = Vec::with_capacity(BODY_BYTES);
    serde_json::to_writer(&mut json, body).expect("an answer is plain data");
    let mut headers = HeaderMap::with_capacity(HEADERS);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::LOCATION, location(ack));
    // A repeated answer's times are those of another request.
    if ack.replayed {
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
    } else {
        headers.insert(SERVER_TIMING, server_timing(ack));
    }
    let mut response = Response::new(Body::from(json));
    (*response.status_mut(), *response.headers_mut()) = (StatusCode::CREATED, headers);
    response.extensions_mut().insert(ack.clone());
    response
}

fn location(ack: &Ack) -> HeaderValue {
    header_value(format_args!("/rows?from={}&limit={}", ack.offset, ack.rows.min(ROWS_MAX)))
}

/// Milliseconds, as <https://www.w3.org/TR/server-timing/> has it: the wait for the lock, the hold up to the answer, and the sync
/// in it.
fn server_timing(ack: &Ack) -> HeaderValue {
    let (waited_ms, held_ms, sync_us) = (ack.waited_ms, ack.held_ms, ack.sync.as_micros());
    let (sync_ms, thousandths) = (sync_us / 1000, sync_us % 1000);
    header_value(format_args!("wait;dur={waited_ms}, hold;dur={held_ms}, sync;dur={sync_ms}.{thousandths:03}"))
}

fn header_value(text: std::fmt::Arguments<'_>) -> HeaderValue {
    let mut value = String::with_capacity(HEADER_BYTES);
    value.write_fmt(text).expect("a string takes all");
    HeaderValue::try_from(value).expect("printable ASCII")
}

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const KEY: HeaderName = HeaderName::from_static("idempotency-key");
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

fn check_headers(headers: &HeaderMap) -> Result<(MediaType, Option<String>), ApiError> {
    let key = idempotency_key(headers)?;
    Ok((read::media_type(headers)?, key))
}

/// Quoted, as a string of RFC 8941 with its escapes, or bare.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ApiError::BadKey);
    }
    let text = value.to_str().map_err(|_| ApiError::BadKey)?.trim();
    let key = match text.strip_prefix('"') {
        Some(quoted) => unescape(quoted.strip_suffix('"').ok_or(ApiError::BadKey)?).ok_or(ApiError::BadKey)?,
        None => text.to_owned(),
    };
    if (1..=KEY_BYTES_MAX).contains(&key.len()) { Ok(Some(key)) } else { Err(ApiError::BadKey) }
}

fn unescape(quoted: &str) -> Option<String> {
    let (mut text, mut chars) = (String::with_capacity(quoted.len()), quoted.chars());
    while let Some(char) = chars.next() {
        match char {
            '\\' => text.push(chars.next().filter(|next| matches!(next, '"' | '\\'))?),
            '"' => return None,
            other => text.push(other),
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(values: &[&str]) -> Option<Option<String>> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(KEY, HeaderValue::from_str(value).expect("a header"));
        }
        idempotency_key(&headers).ok()
    }

    #[test]
    fn a_key_is_the_same_quoted_or_bare_and_what_is_no_key_is_refused() {
        let some = |text: &str| Some(Some(text.to_owned()));
        assert_eq!(key(&[]), Some(None));
        assert_eq!(key(&["k-1"]), some("k-1"));
        assert_eq!(key(&["\"k-1\""]), some("k-1"));
        assert_eq!(key(&[r#""a \"b\" \\""#]), some(r#"a "b" \"#));
        let longest = "x".repeat(KEY_BYTES_MAX);
        assert_eq!(key(&[&longest]), some(&longest));
        let too_long = format!("{longest}x");
        for wrong in [&[""][..], &["\"\""], &["\"open"], &[r#""a"b""#], &[r#""\x""#], &["a", "b"], &[&too_long]] {
            assert_eq!(key(wrong), None, "{wrong:?}");
        }
    }
}
