//! `GET /rows`: rows by place, as JSON.

use axum::{
    Json,
    extract::{RawQuery, State},
    http::header,
    response::{IntoResponse, Response},
};
use percent_encoding::percent_decode_str;
use serde::{Serialize, Serializer, ser::SerializeMap};

use super::{App, error::ApiError};
use crate::{
    commit::reading::{Page, Row},
    schema::{InvalidField, Schema},
};

const LAST: usize = 50;
const LIMIT: usize = 1000;
/// The most rows of one page.
pub(super) const ROWS_MAX: usize = 10_000;

/// What is asked for.
#[derive(Debug, PartialEq)]
enum Which {
    Last(usize),
    From { offset: u64, limit: usize },
}

/// The last rows, or those from an offset on.
pub(super) async fn rows(State(app): State<App>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    let page = match parse(query.as_deref().unwrap_or_default())? {
        Which::Last(rows) => app.reading.last(rows).await?,
        Which::From { offset, limit } => app.reading.from(offset, limit).await?,
    };
    let body = Json(PageBody::new(&page, app.appender.schema())).into_response();
    Ok(([(header::CACHE_CONTROL, "no-store")], body).into_response())
}

fn parse(query: &str) -> Result<Which, ApiError> {
    let (mut last, mut from, mut limit) = (None, None, None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = percent_decode_str(name).decode_utf8_lossy();
        let value = percent_decode_str(value).decode_utf8_lossy();
        let slot = match &*name {
            "last" => &mut last,
            "from" => &mut from,
            "limit" => &mut limit,
            _ => return Err(InvalidField::new(name, "no such parameter; accepted: last, or from and limit").into()),
        };
        if slot.is_some() {
            return Err(InvalidField::new(name, "named twice").into());
        }
        *slot = Some(value.into_owned());
    }
    match (last, from, limit) {
        (last, None, None) => Ok(Which::Last(last.map(|value| count("last", &value)).transpose()?.unwrap_or(LAST))),
        (Some(_), ..) => Err(InvalidField::new("last", "accepted: without from and limit").into()),
        (None, None, Some(_)) => Err(InvalidField::new("limit", "accepted: with from").into()),
        (None, Some(from), limit) => {
            let accepted = || InvalidField::new("from", "accepted: the byte offset where a row begins, or 0");
            let offset = digits(&from).ok_or_else(accepted)?;
            let limit = limit.map(|value| count("limit", &value)).transpose()?.unwrap_or(LIMIT);
            Ok(Which::From { offset, limit })
        }
    }
}

/// `+1`, which Rust would read as well, is no number here.
fn digits(text: &str) -> Option<u64> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

fn count(name: &str, text: &str) -> Result<usize, InvalidField> {
    let rows = digits(text).and_then(|rows| usize::try_from(rows).ok()).filter(|rows| (1..=ROWS_MAX).contains(rows));
    rows.ok_or_else(|| InvalidField::new(name, format!("accepted: a whole number from 1 to {ROWS_MAX}")))
}

#[derive(Serialize)]
struct PageBody<'a> {
    rows: Vec<RowBody<'a>>,
    next: Option<u64>,
}

#[derive(Serialize)]
struct RowBody<'a> {
    offset: u64,
    fields: Fields<'a>,
}

/// By name, in the file's order; without a header, the cells alone.
struct Fields<'a> {
    names: Option<&'a [String]>,
    cells: &'a [String],
}

impl<'a> PageBody<'a> {
    fn new(page: &'a Page, schema: &'a Schema) -> Self {
        let names = schema.names();
        let row = |Row { offset, cells }: &'a Row| RowBody { offset: *offset, fields: Fields { names, cells } };
        Self { rows: page.rows.iter().map(row).collect(), next: page.next }
    }
}

impl Serialize for Fields<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some(names) = self.names else { return self.cells.serialize(serializer) };
        let mut map = serializer.serialize_map(None)?;
        for (name, cell) in names.iter().zip(self.cells) {
            map.serialize_entry(name, cell)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_read_to_the_last_parameter() {
        let parsed = |query| parse(query).ok();
        assert_eq!(parsed(""), Some(Which::Last(50)));
        assert_eq!(parsed("last=7"), Some(Which::Last(7)));
        assert_eq!(parsed("from=0"), Some(Which::From { offset: 0, limit: 1000 }));
        assert_eq!(parsed("limit=2&from=%31%32"), Some(Which::From { offset: 12, limit: 2 }));
        for wrong in [
            "last=0",
            "last=-1",
            "last=+1",
            "last=10001",
            "last=x",
            "last=",
            "last=1&last=1",
            "limit=1",
            "from=",
            "from=-1",
            "from=18446744073709551616",
            "from=1&limit=0",
            "last=1&from=1",
            "first=1",
            "From=1",
        ] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }
}
