//! Checks what must hold for any body that a client sends. The targets in `fuzz/` run the checks on generated inputs, `cargo test` on
//! the inputs in `fuzz/corpus`.
//!
//! The first byte of an input selects the columns of the file, the second the size of the pieces that the body arrives in; the body
//! follows.

use std::{borrow::Cow, time::Duration};

use serde_json::value::RawValue;

use crate::commit::FileRoom;
use crate::csv::{
    formula_guard::CellGuard,
    idempotency_key::Key,
    rows::Rows,
    schema::{Data, RowLayout, Schema, ServiceCells},
};
use crate::http::{
    body::{
        append::{AppendRequest, json_data},
        batch::BatchParser,
        batch_rows::BatchLimits,
        media_type::{BatchType, MediaType},
    },
    testing::csv_grammar,
};

const HEADERS: [&str; 5] = ["timestamp,replica,token,data", "a", "a,token,b", "key,a,replica,b,ActionType,c", "none"];
const OF_SERVICE: [&str; 5] = ["timestamp", "replica", "token", "key", "ActionType"];
const SERVICE: ServiceCells<'_> =
    ServiceCells { timestamp: "2026-11-24T10:51:10.423Z", replica: b"\"r,1\"", token: 7, key: b"" };
/// The number of columns of a file without a header.
const WIDTH: usize = 64;

struct Input<'a> {
    schema: Schema,
    line_end: &'static [u8],
    piece_bytes: usize,
    body: &'a [u8],
}

impl<'a> Input<'a> {
    fn new(data: &'a [u8]) -> Option<Self> {
        let [choice, pieces, body @ ..] = data else { return None };
        let choice = usize::from(*choice);
        let schema = match HEADERS[choice % HEADERS.len()] {
            "none" => Schema::headerless(),
            header => Schema::from_header(header.as_bytes()).expect("a header"),
        };
        let line_end = [&b"\n"[..], b"\r\n"][choice / HEADERS.len() % 2];
        Some(Self { schema, line_end, piece_bytes: 1 + usize::from(*pieces) % 32, body })
    }

    fn lines(&self, rows: &Rows) -> Vec<u8> {
        let mut lines = Vec::new();
        let layout = RowLayout { headerless_width: WIDTH, line_end: self.line_end };
        self.schema.write_rows(&mut lines, rows, &SERVICE, layout);
        lines
    }

    /// Compares rows with the expected cells, read by an independent CSV reader, and with the same rows after the formula guard.
    fn check(&self, rows: &Rows, guarded: &Rows, expected: &[Vec<String>]) {
        if self.schema.width().is_none() && expected.iter().any(|cells| cells.len() > WIDTH) {
            return;
        }
        let lines = self.lines(rows);
        let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(&*lines);
        let read: Vec<_> = reader.records().map(|record| record.expect("each row has all columns")).collect();
        assert_eq!((rows.len(), read.len()), (expected.len(), expected.len()));
        for (record, expected) in read.iter().zip(expected) {
            let cells: Vec<_> = match self.schema.names() {
                Some(names) => {
                    record.iter().zip(names).filter(|(_, name)| !is_of_service(name)).map(|it| it.0).collect()
                }
                None => record.iter().collect(),
            };
            assert_eq!(cells.len().max(expected.len()), self.schema.width().map_or(WIDTH, |_| cells.len()));
            let expected = expected.iter().map(String::as_str).chain(std::iter::repeat("")).take(cells.len());
            assert_eq!(cells, expected.collect::<Vec<_>>());
        }
        let (mut guard, mut guarded_on_reading) = (CellGuard::default(), Vec::new());
        guard.feed(&lines, &mut guarded_on_reading);
        guard.finish(&mut guarded_on_reading);
        assert_eq!(guarded_on_reading, self.lines(guarded), "the guard does the same on reading and on writing");
        let print = |rows| Key::new("k", rows).map(|key| key.fingerprint);
        assert_eq!(print(rows), print(guarded), "the same data");
    }
}

fn is_of_service(name: &str) -> bool {
    OF_SERVICE.contains(&name)
}

/// The cells of the data columns by the words of the contract, independent of the schema's code.
fn expected(schema: &Schema, data: &Data<'_>) -> Vec<String> {
    let text = |cell: &Option<Cow<'_, str>>| cell.as_deref().unwrap_or_default().to_owned();
    match data {
        Data::Text(text) => vec![text.to_string()],
        Data::List(cells) => cells.iter().map(text).collect(),
        Data::Object(cells) => {
            let names = schema.names().unwrap_or_default().iter().filter(|name| !is_of_service(name));
            let cell =
                |name: &String| cells.iter().find(|(known, _)| known == name).map_or("".into(), |(_, it)| text(it));
            names.map(cell).collect()
        }
    }
}

fn append(media_type: MediaType, data: &[u8]) {
    let Some(input) = Input::new(data) else { return };
    let Ok(request) = AppendRequest::parse(media_type, input.body, &input.schema, Duration::from_secs(60)) else {
        return;
    };
    assert!(request.simulation.sleep <= Duration::from_secs(60));
    let push = |schema: &Schema| {
        let mut rows = schema.rows();
        schema.push(&request.data, &mut rows).map(|()| rows)
    };
    if let (Ok(rows), Ok(guarded)) = (push(&input.schema), push(&input.schema.guarding_formulas(true))) {
        input.check(&rows, &guarded, &[expected(&input.schema, &request.data)]);
    }
}

/// A body of `/append` as JSON.
pub fn json_body(data: &[u8]) {
    append(MediaType::Json, data);
}

/// A body of `/append` as a form.
pub fn form_body(data: &[u8]) {
    append(MediaType::Form, data);
}

fn parse<'a>(batch_type: BatchType, schema: &Schema, pieces: impl Iterator<Item = &'a [u8]>) -> Result<Rows, String> {
    let limits = BatchLimits::new(64 << 20, FileRoom::new(64 << 20, schema, "one", None));
    let mut parser = BatchParser::new(batch_type, schema, limits);
    let pushed = pieces.into_iter().try_for_each(|piece| parser.push(piece));
    pushed.and_then(|()| parser.finish()).map(|batch| batch.rows).map_err(|e| format!("{e:?}"))
}

/// A batch gives the same rows however it is cut. `cells` returns the expected cells, or `None` if the batch must be refused.
fn batch(batch_type: BatchType, input: &Input<'_>, cells: impl FnOnce() -> Option<Vec<Vec<String>>>) {
    let whole = parse(batch_type, &input.schema, std::iter::once(input.body));
    assert_eq!(parse(batch_type, &input.schema, input.body.chunks(input.piece_bytes)), whole);
    let guarded = parse(batch_type, &input.schema.guarding_formulas(true), std::iter::once(input.body));
    assert_eq!(whole.as_ref().err(), guarded.as_ref().err());
    match (whole, guarded) {
        (Ok(rows), Ok(guarded)) => input.check(&rows, &guarded, &cells().expect("an accepted batch is well-formed")),
        _ if matches!(batch_type, BatchType::JsonLines | BatchType::JsonArray) => {
            assert_eq!(cells(), None, "a refused batch is malformed");
        }
        _ => {}
    }
}

fn without_bom(body: &[u8]) -> &[u8] {
    body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body)
}

/// A body of `/append/batch` as CSV, with and without a header.
pub fn csv_batch(data: &[u8]) {
    let Some(input) = Input::new(data) else { return };
    let records = || csv_grammar::parse(without_bom(input.body)).ok().map(|parsed| parsed.records);
    batch(BatchType::CsvWithoutHeader, &input, records);
    batch(BatchType::CsvWithHeader, &input, || {
        let mut rows = records()?.into_iter();
        let header = rows.next()?;
        let named = |row: Vec<String>| {
            let cells = header.iter().map(|name| Cow::Borrowed(&**name)).zip(row.into_iter().map(|it| Some(it.into())));
            expected(&input.schema, &Data::Object(cells.collect()))
        };
        Some(rows.map(named).collect())
    });
}

/// The cells of rows given as JSON texts; `None` if one does not fit.
fn json_rows<'a>(schema: &Schema, texts: impl Iterator<Item = &'a str>) -> Option<Vec<Vec<String>>> {
    let row = |text| {
        let raw: &RawValue = serde_json::from_str(text).ok()?;
        let data = json_data(raw, schema).ok()?;
        schema.push(&data, &mut schema.rows()).ok()?;
        Some(expected(schema, &data))
    };
    texts.map(row).collect::<Option<Vec<_>>>().filter(|rows| !rows.is_empty())
}

/// A body of `/append/batch` as JSON, one value per line and as an array.
pub fn json_batch(data: &[u8]) {
    let Some(input) = Input::new(data) else { return };
    let text = std::str::from_utf8(without_bom(input.body)).ok();
    batch(BatchType::JsonLines, &input, || {
        json_rows(&input.schema, text?.split('\n').filter(|line| !line.trim().is_empty()))
    });
    batch(BatchType::JsonArray, &input, || {
        let rows: Vec<&RawValue> = serde_json::from_str(text?).ok()?;
        json_rows(&input.schema, rows.into_iter().map(RawValue::get))
    });
}

#[cfg(test)]
mod tests {
    use crate::fuzz_corpus::replay;

    #[test]
    fn corpus_is_parsed_correctly_or_refused() {
        replay("json_body", super::json_body);
        replay("form_body", super::form_body);
        replay("csv_batch", super::csv_batch);
        replay("json_batch", super::json_batch);
    }
}
