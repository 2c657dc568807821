//! `GET /rows`: rows by place, as JSON.

use axum::{
    Json,
    extract::{RawQuery, State},
    response::{IntoResponse, Response},
};
use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::json;
use utoipa::{
    ToSchema,
    openapi::{RefOr, Schema as JsonSchema},
};

use crate::http::{
    app::App,
    contract::document::{RowsRefused, read},
    error::ApiError,
    query::{Parameters, digits},
};
use crate::{
    commit::reading::{Page, Row},
    csv::schema::{InvalidField, Schema},
};

const LAST: usize = 50;
const LIMIT: usize = 1000;
/// The most rows of one page.
pub(crate) const ROWS_MAX: usize = 10_000;

/// What is asked for.
#[derive(Debug, PartialEq)]
enum Which {
    Last(usize),
    From { offset: u64, limit: usize },
}

/// Rows by place
///
/// Either the `last` rows, or those `from` an offset on; never half a row, and all that any replica has acknowledged. A page
/// ends at `limit` rows or 8 MiB, but holds one row at least; `next` is where to go on.
#[utoipa::path(
    get,
    path = "/rows",
    tag = "rows",
    operation_id = "rows",
    params(
        ("last" = Option<u64>, Query, minimum = 1, maximum = 10_000, description = "How many; 50 unless `from` is given."),
        ("from" = Option<u64>, Query, description = "The byte offset where a row begins, as answers and pages tell it; 0 is the \
            first row, the end of the file is allowed."),
        ("limit" = Option<u64>, Query, minimum = 1, maximum = 10_000, description = "With `from`; 1000 unless set."),
    ),
    responses((status = OK, description = "In the file's order.", body = PageBody), RowsRefused),
)]
pub(crate) async fn rows(State(app): State<App>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    let page = match parse(query.as_deref())? {
        Which::Last(rows) => app.reading.last(rows).await?,
        Which::From { offset, limit } => app.reading.from(offset, limit).await?,
    };
    Ok(Json(PageBody::new(&page, app.appender.schema())).into_response())
}

fn parse(query: Option<&str>) -> Result<Which, ApiError> {
    let mut parameters = Parameters::parse(query, &["last", "from", "limit"])?;
    let from = parameters.take("from");
    let (last, limit) = (parameters.count("last", 1..=ROWS_MAX)?, parameters.count("limit", 1..=ROWS_MAX)?);
    match (last, from, limit) {
        (last, None, None) => Ok(Which::Last(last.unwrap_or(LAST))),
        (Some(_), ..) => Err(InvalidField::new("last", "accepted: without from and limit").into()),
        (None, None, Some(_)) => Err(InvalidField::new("limit", "accepted: with from").into()),
        (None, Some(from), limit) => {
            let accepted = || InvalidField::new("from", "accepted: the byte offset where a row begins, or 0");
            let offset = digits(&from).ok_or_else(accepted)?;
            Ok(Which::From { offset, limit: limit.unwrap_or(LIMIT) })
        }
    }
}

/// Rows in the file's order.
#[derive(Serialize, ToSchema)]
#[schema(as = Page, example = json!({
    "rows": [{"offset": 29, "fields": {"replica": "one", "token": "1", "data": "hello"}}],
    "next": null,
}))]
struct PageBody<'a> {
    rows: Vec<RowBody<'a>>,
    /// Where the next row begins, if there is one by now.
    #[schema(required)]
    next: Option<u64>,
}

/// One row, and where it stands.
#[derive(Serialize, ToSchema)]
#[schema(as = Row)]
pub(crate) struct RowBody<'a> {
    /// Byte offset where the row begins.
    offset: u64,
    #[schema(schema_with = fields)]
    fields: Fields<'a>,
}

fn fields() -> RefOr<JsonSchema> {
    read(json!({
        "description": "By column name, in the file's order; without a header, the cells alone.",
        "oneOf": [
            {"type": "object", "additionalProperties": {"type": "string"}},
            {"type": "array", "items": {"type": "string"}},
        ],
    }))
}

/// By name, in the file's order; without a header, the cells alone.
struct Fields<'a> {
    names: Option<&'a [String]>,
    cells: &'a [String],
}

impl<'a> PageBody<'a> {
    fn new(page: &'a Page, schema: &'a Schema) -> Self {
        Self { rows: row_bodies(&page.rows, schema), next: page.next }
    }
}

/// Rows by column name.
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
    fn what_is_asked_for_is_read_to_the_last_parameter() {
        let parsed = |query| parse(Some(query)).ok();
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
