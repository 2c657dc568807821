//! `GET /rows`: rows by their position in the file, as JSON.

use axum::{
    extract::{RawQuery, State},
    response::Response,
};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::json;
use utoipa::{
    ToSchema,
    openapi::{RefOr, Schema as JsonSchema},
};

use crate::http::{
    app::App,
    contract::{from_json, refusals::RowsRefused},
    error::ApiError,
    handlers::rows_page::page_answer,
    query::{Parameters, digits},
};
use crate::{
    commit::reading::Row,
    csv::schema::{InvalidField, Schema},
};

const LAST_DEFAULT: usize = 50;
const LIMIT_DEFAULT: usize = 1000;
/// The most rows of one page.
pub(crate) const PAGE_ROWS_MAX: usize = 10_000;

/// The selected rows.
#[derive(Debug, PartialEq)]
enum Selection {
    Last(usize),
    From { offset: u64, limit: usize },
}

/// Read rows
///
/// Returns the `last` rows, or the rows `from` an offset; whole rows only, and all that any replica has acknowledged. `last` returns as
/// many of the newest rows as fit in 8 MiB of the file, and at least one. `from` ends a page after `limit` rows, or with the row that
/// exceeds 8 MiB; `next` is the offset of the next page.
#[utoipa::path(
    get,
    path = "/rows",
    tag = "rows",
    operation_id = "rows",
    params(
        ("last" = Option<u64>, Query, minimum = 1, maximum = 10_000, description = "How many of the newest rows; 50 unless this or `from` is given."),
        ("from" = Option<u64>, Query, description = "The byte offset where a row starts, from an answer or a page; 0 is the \
            first row, and the end of the file is accepted."),
        ("limit" = Option<u64>, Query, minimum = 1, maximum = 10_000, description = "With `from`: the most rows of the page; 1000 unless given."),
    ),
    responses((status = OK, description = "Rows in the order of the file.", body = PageBody), RowsRefused),
)]
pub(crate) async fn rows(State(app): State<App>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    let (page, file) = match parse(query.as_deref())? {
        Selection::Last(rows) => app.reading.last(rows).await?,
        Selection::From { offset, limit } => app.reading.from(offset, limit).await?,
    };
    page_answer(app, page, file).await
}

fn parse(query: Option<&str>) -> Result<Selection, ApiError> {
    let mut parameters = Parameters::parse(query, &["last", "from", "limit"])?;
    let from = parameters.take("from");
    let (last, limit) = (parameters.count("last", 1..=PAGE_ROWS_MAX)?, parameters.count("limit", 1..=PAGE_ROWS_MAX)?);
    match (last, from, limit) {
        (last, None, None) => Ok(Selection::Last(last.unwrap_or(LAST_DEFAULT))),
        (Some(_), ..) => Err(InvalidField::new("last", "accepted: without from and limit").into()),
        (None, None, Some(_)) => Err(InvalidField::new("limit", "accepted: with from").into()),
        (None, Some(from), limit) => {
            let accepted = || InvalidField::new("from", "accepted: the byte offset where a row starts, or 0");
            let offset = digits(&from).ok_or_else(accepted)?;
            Ok(Selection::From { offset, limit: limit.unwrap_or(LIMIT_DEFAULT) })
        }
    }
}

// `page_answer` writes it.
/// Rows in the order of the file.
#[derive(ToSchema)]
#[allow(dead_code, reason = "describes the answer")]
#[schema(as = Page, example = json!({
    "rows": [{"offset": 29, "fields": {"replica": "one", "token": "1", "data": "hello"}}],
    "next": null,
}))]
struct PageBody<'a> {
    rows: Vec<RowBody<'a>>,
    /// The offset of the next row; null if there is none yet.
    #[schema(required)]
    next: Option<u64>,
}

/// One row and its offset.
#[derive(Serialize, ToSchema)]
#[schema(as = Row)]
pub(crate) struct RowBody<'a> {
    /// Byte offset where the row starts.
    offset: u64,
    #[schema(schema_with = fields)]
    fields: Fields<'a>,
}

fn fields() -> RefOr<JsonSchema> {
    from_json(json!({
        "description": "The cells by column name, in the order of the file; an array of cells if the file has no header.",
        "oneOf": [
            {"type": "object", "additionalProperties": {"type": "string"}},
            {"type": "array", "items": {"type": "string"}},
        ],
    }))
}

/// The cells by column name, in the order of the file; an array of cells if the file has no header.
struct Fields<'a> {
    names: Option<&'a [String]>,
    cells: &'a [String],
}

/// Pairs the cells with their column names.
pub(crate) fn row_bodies<'a>(rows: &'a [Row], schema: &'a Schema) -> Vec<RowBody<'a>> {
    let names = schema.names();
    let row = |Row { offset, cells }: &'a Row| RowBody { offset: *offset, fields: Fields { names, cells } };
    rows.iter().map(row).collect()
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
    fn query_is_parsed_strictly() {
        let parsed = |query| parse(Some(query)).ok();
        assert_eq!(parsed(""), Some(Selection::Last(50)));
        assert_eq!(parsed("last=7"), Some(Selection::Last(7)));
        assert_eq!(parsed("from=0"), Some(Selection::From { offset: 0, limit: 1000 }));
        assert_eq!(parsed("limit=2&from=%31%32"), Some(Selection::From { offset: 12, limit: 2 }));
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
