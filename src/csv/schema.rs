//! The header is the schema: which columns the service fills, which hold data, and how a row is laid out.

use std::{borrow::Cow, collections::HashSet, ops::Range};

use crate::{
    csv::{
        bom::record_reader,
        encode::encode_cells,
        header_error::HeaderError,
        row_splitter::without_line_end,
        rows::{Row, Rows},
    },
    fencing::FencingToken,
};

/// The columns of one CSV, in the file's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schema {
    /// Names of all columns; `None` for a headerless file, whose rows hold only data.
    names: Option<Vec<String>>,
    /// The parts of a row, in order.
    segments: Vec<Segment>,
    /// Names of the data columns, in order.
    data_names: Vec<String>,
    /// Whether data cells that a spreadsheet would run as formulas are guarded.
    guards_formulas: bool,
}

/// A part of a row: one column that the service fills, or a run of neighbouring data columns.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Timestamp,
    Replica,
    Token,
    Key,
    Action,
    Data(Range<usize>),
}

impl Segment {
    /// The service columns, under Rowlock's own names and under those of files that its Python predecessor wrote.
    fn of_service(name: &str) -> Option<Self> {
        match name {
            "timestamp" | "Timestamp" => Some(Self::Timestamp),
            "replica" | "ClientID" => Some(Self::Replica),
            "token" | "LockToken" => Some(Self::Token),
            "key" => Some(Self::Key),
            "ActionType" => Some(Self::Action),
            _ => None,
        }
    }
}

/// The cell of an `ActionType` column.
const ACTION: &[u8] = b"append";

/// `data` of a request. `None` is a null, which becomes an empty cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data<'a> {
    /// The first data column.
    Text(Cow<'a, str>),
    /// The data columns from the left.
    List(Vec<Option<Cow<'a, str>>>),
    /// The data columns by name.
    Object(Vec<(Cow<'a, str>, Option<Cow<'a, str>>)>),
}

impl Data<'_> {
    /// Bytes of the cells' text.
    pub(crate) fn bytes(&self) -> usize {
        let bytes = |cell: &Option<Cow<'_, str>>| cell.as_deref().map_or(0, str::len);
        match self {
            Self::Text(text) => text.len(),
            Self::List(cells) => cells.iter().map(bytes).sum(),
            Self::Object(cells) => cells.iter().map(|(_, cell)| bytes(cell)).sum(),
        }
    }
}

/// For each data column the index of its cell in an input line; `None` leaves the column empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Columns(Vec<Option<usize>>);

/// A field of a request that is well-formed but not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {detail}")]
pub struct InvalidField {
    /// The field's name, as the client wrote it.
    pub field: String,
    /// What is wrong and what is accepted. Contains no secrets.
    pub detail: String,
}

impl InvalidField {
    /// `field` is the name as the client wrote it, `detail` says what is accepted.
    pub fn new(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { field: field.into(), detail: detail.into() }
    }
}

/// The cells that the service fills.
#[derive(Debug, Clone)]
pub struct ServiceCells<'a> {
    /// RFC 3339, UTC, milliseconds.
    pub timestamp: &'a str,
    /// The replica's name, quoted by `quote`.
    pub replica: &'a [u8],
    /// The lease's token.
    pub token: FencingToken,
    /// The request's idempotency key, quoted by `quote`; empty where there is none.
    pub key: &'a [u8],
}

/// What a row has besides its cells.
#[derive(Debug, Clone, Copy)]
pub struct RowLayout<'a> {
    /// Cells in each row of a headerless file; unused for a file with a header.
    pub headerless_width: usize,
    /// Ends each row.
    pub line_end: &'a [u8],
}

impl Schema {
    /// A file without a header: its first row decides the width.
    pub fn headerless() -> Self {
        Self { names: None, segments: Vec::new(), data_names: Vec::new(), guards_formulas: false }
    }

    /// The same columns, with formulas in data cells guarded or not.
    pub fn guarding_formulas(&self, guards_formulas: bool) -> Self {
        Self { guards_formulas, ..self.clone() }
    }

    /// Parses a header record, given without line ending and BOM.
    pub fn from_header(record: &[u8]) -> Result<Self, HeaderError> {
        let mut reader = record_reader(record);
        let mut records = reader.byte_records().map_while(Result::ok);
        let (Some(header), None) = (records.next(), records.next()) else { return Err(HeaderError::NotOneRecord) };
        let header = csv::StringRecord::from_byte_record(header).map_err(|_| HeaderError::NotUtf8)?;
        let (mut names, mut known) = (Vec::with_capacity(header.len()), HashSet::new());
        for (at, name) in header.iter().enumerate() {
            if name.is_empty() {
                return Err(HeaderError::Empty(at + 1));
            }
            if !known.insert(name) {
                return Err(HeaderError::Duplicate(name.to_owned()));
            }
            names.push(name.to_owned());
        }
        Ok(Self::from_names(names))
    }

    fn from_names(names: Vec<String>) -> Self {
        let (mut segments, mut data_names) = (Vec::new(), Vec::new());
        for name in &names {
            if let Some(service) = Segment::of_service(name) {
                segments.push(service);
                continue;
            }
            let at = data_names.len();
            data_names.push(name.clone());
            match segments.last_mut() {
                Some(Segment::Data(run)) => run.end = at + 1,
                _ => segments.push(Segment::Data(at..at + 1)),
            }
        }
        Self { names: Some(names), segments, data_names, guards_formulas: false }
    }

    /// The columns' names; `None` without a header.
    pub fn names(&self) -> Option<&[String]> {
        self.names.as_deref()
    }

    /// How many columns a row has; `None` where the first row decides.
    pub fn width(&self) -> Option<usize> {
        self.names.as_ref().map(Vec::len)
    }

    /// The header as one CSV record, without a line ending.
    pub fn header(&self) -> Option<Vec<u8>> {
        self.names.as_ref().map(|names| {
            let mut header = Vec::new();
            encode_cells(names.iter().map(String::as_str), false, &mut header, None);
            header
        })
    }

    /// An empty list of rows for these columns.
    pub fn rows(&self) -> Rows {
        let runs = self.segments.iter().filter(|segment| matches!(segment, Segment::Data(_))).count();
        match self.names {
            Some(_) => Rows::new(runs, Some(self.data_names.len()), self.guards_formulas),
            None => Rows::new(1, None, self.guards_formulas),
        }
    }

    /// Assigns `data` to the data columns, quotes it, and adds it to `rows`.
    ///
    /// # Errors
    /// The first field that doesn't fit the columns; nothing is added then.
    pub fn push(&self, data: &Data<'_>, rows: &mut Rows) -> Result<(), InvalidField> {
        let cells = self.lay_out(data)?;
        self.push_cells(cells.len(), |at| cells[at], rows);
        Ok(())
    }

    fn push_cells<'a>(&self, cells: usize, cell: impl Fn(usize) -> &'a str, rows: &mut Rows) {
        rows.reserve((0..cells).map(|at| cell(at).len() + 3).sum());
        let alone = self.width().unwrap_or(cells) == 1;
        let mut push_run =
            |run: Range<usize>| rows.push_run(|text, guards| encode_cells(run.map(&cell), alone, text, guards));
        if self.names.is_none() {
            push_run(0..cells);
        }
        for segment in &self.segments {
            match segment {
                Segment::Data(run) => push_run(run.clone()),
                Segment::Timestamp | Segment::Replica | Segment::Token | Segment::Key | Segment::Action => {}
            }
        }
        rows.end_row(cells);
    }

    /// Assigns input columns of these names to the data columns.
    ///
    /// # Errors
    /// The first name that is not a data column, or that is repeated.
    pub fn columns(&self, names: &[String]) -> Result<Columns, InvalidField> {
        self.refuse_without_data_columns()?;
        self.refuse_names_without_header()?;
        let mut columns = vec![None; self.data_names.len()];
        for (at, name) in names.iter().enumerate() {
            *self.column(name, &mut columns)? = Some(at);
        }
        Ok(Columns(columns))
    }

    /// Assigns this many input columns to the data columns from the left.
    ///
    /// # Errors
    /// If the file has fewer data columns.
    pub fn columns_from_left(&self, cells: usize) -> Result<Columns, InvalidField> {
        self.refuse_without_data_columns()?;
        self.refuse_too_many(cells)?;
        let columns = if self.names.is_some() { self.data_names.len() } else { cells };
        Ok(Columns((0..columns).map(|at| (at < cells).then_some(at)).collect()))
    }

    /// Adds a row. The caller has checked that its cells contain no NUL byte.
    pub(crate) fn push_columns<'a>(&self, columns: &Columns, cell: impl Fn(usize) -> &'a str, rows: &mut Rows) {
        let Columns(columns) = columns;
        self.push_cells(columns.len(), |at| columns[at].map_or("", &cell), rows);
    }

    /// One cell for each data column, in order; for a headerless file, the given cells.
    fn lay_out<'a>(&self, data: &'a Data<'_>) -> Result<Vec<&'a str>, InvalidField> {
        self.refuse_without_data_columns()?;
        let mut cells = match data {
            Data::Text(text) => vec![checked("data", text)?],
            Data::List(list) => {
                self.refuse_too_many(list.len())?;
                let cell = |(at, cell): (usize, &'a Option<Cow<'_, str>>)| {
                    checked(format_args!("data[{at}]"), cell.as_deref().unwrap_or_default())
                };
                list.iter().enumerate().map(cell).collect::<Result<_, _>>()?
            }
            Data::Object(object) => self.lay_out_object(object)?,
        };
        // A row without any cells is one empty cell.
        cells.resize(cells.len().max(self.data_names.len()).max(1), "");
        Ok(cells)
    }

    fn lay_out_object<'a>(
        &self,
        object: &'a [(Cow<'_, str>, Option<Cow<'_, str>>)],
    ) -> Result<Vec<&'a str>, InvalidField> {
        self.refuse_names_without_header()?;
        let mut cells = vec![None; self.data_names.len()];
        for (name, value) in object {
            let cell = self.column(name, &mut cells)?;
            *cell = Some(checked(format_args!("data.{name}"), value.as_deref().unwrap_or_default())?);
        }
        Ok(cells.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// The entry of the data column of this name, which must be empty.
    fn column<'a, T>(&self, name: &str, columns: &'a mut [Option<T>]) -> Result<&'a mut Option<T>, InvalidField> {
        let refused = |detail: String| InvalidField::new(format!("data.{name}"), detail);
        let Some(at) = self.data_names.iter().position(|known| known == name) else {
            let is_service = self.names.iter().flatten().any(|known| known == name);
            let service = || "the service fills this column itself".to_owned();
            return Err(refused(if is_service { service() } else { self.unknown_column() }));
        };
        if columns[at].is_some() { Err(refused("named twice".to_owned())) } else { Ok(&mut columns[at]) }
    }

    /// How many cells a row may have; `None` where the first row decides.
    pub(crate) fn data_columns(&self) -> Option<usize> {
        self.names.as_ref().map(|_| self.data_names.len())
    }

    fn refuse_without_data_columns(&self) -> Result<(), InvalidField> {
        let has_none = self.names.is_some() && self.data_names.is_empty();
        if has_none { Err(InvalidField::new("data", "the file's header has no data column")) } else { Ok(()) }
    }

    fn refuse_names_without_header(&self) -> Result<(), InvalidField> {
        let detail = "an object needs a header, and this file has none: send a string or an array";
        if self.names.is_none() { Err(InvalidField::new("data", detail)) } else { Ok(()) }
    }

    /// # Errors
    /// If the file has fewer data columns.
    pub(crate) fn refuse_too_many(&self, cells: usize) -> Result<(), InvalidField> {
        let most = self.data_names.len();
        if self.names.is_none() || cells <= most {
            return Ok(());
        }
        Err(InvalidField::new("data", format!("{cells} cells, but the file has {most} data columns")))
    }

    fn unknown_column(&self) -> String {
        format!("no such column; the data columns are {}", self.data_names.join(", "))
    }

    /// Which column holds the fencing token.
    pub fn token_column(&self) -> Option<usize> {
        self.column_of(|segment| matches!(segment, Segment::Token))
    }

    /// Which column holds the idempotency key.
    pub fn key_column(&self) -> Option<usize> {
        self.column_of(|segment| matches!(segment, Segment::Key))
    }

    fn column_of(&self, is_it: impl Fn(&Segment) -> bool) -> Option<usize> {
        self.names.as_ref()?.iter().position(|name| Segment::of_service(name).is_some_and(|segment| is_it(&segment)))
    }

    /// The token in a line's token column, if there is one.
    pub fn token_of(&self, line: &[u8]) -> Option<FencingToken> {
        let at = self.token_column()?;
        let number = |cell: &[u8]| std::str::from_utf8(cell).ok()?.parse().ok();
        if memchr::memchr(b'"', line).is_none() {
            // A parser takes longer than this.
            return without_line_end(line).split(|&byte| byte == b',').nth(at).and_then(number);
        }
        number(record_reader(line).byte_records().next()?.ok()?.get(at)?)
    }

    /// Bytes that a row has in the file besides its data runs and its line end. A headerless row may have more commas.
    pub(crate) fn service_bytes(&self, service: &ServiceCells<'_>) -> usize {
        let cell = |segment: &Segment| match segment {
            Segment::Timestamp => service.timestamp.len(),
            Segment::Replica => service.replica.len(),
            Segment::Token => service.token.to_string().len(),
            Segment::Key => service.key.len(),
            Segment::Action => ACTION.len(),
            Segment::Data(_) => 0,
        };
        self.segments.iter().map(cell).sum::<usize>() + self.segments.len().saturating_sub(1)
    }

    /// Appends one line for each row. A headerless row is filled up to the layout's width. Returns the bytes of the longest line.
    pub fn write_rows(
        &self,
        out: &mut Vec<u8>,
        rows: &Rows,
        service: &ServiceCells<'_>,
        layout: RowLayout<'_>,
    ) -> usize {
        let RowLayout { headerless_width, line_end } = layout;
        let token = service.token.to_string();
        let mut longest = 0;
        for row in rows.iter() {
            let start = out.len();
            match self.names {
                Some(_) => self.write_segments(out, &row, service, &token),
                None => {
                    debug_assert!(row.cells <= headerless_width, "storage refuses rows that are too wide");
                    row.runs().for_each(|run| out.extend_from_slice(run));
                    out.extend(std::iter::repeat_n(b',', headerless_width.saturating_sub(row.cells)));
                }
            }
            out.extend_from_slice(line_end);
            longest = longest.max(out.len() - start);
        }
        longest
    }

    fn write_segments(&self, out: &mut Vec<u8>, row: &Row<'_>, service: &ServiceCells<'_>, token: &str) {
        let mut runs = row.runs();
        for (at, segment) in self.segments.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            out.extend_from_slice(match segment {
                Segment::Timestamp => service.timestamp.as_bytes(),
                Segment::Replica => service.replica,
                Segment::Token => token.as_bytes(),
                Segment::Key => service.key,
                Segment::Action => ACTION,
                Segment::Data(_) => runs.next().expect("a row has a run for each data segment"),
            });
        }
    }
}

/// Refuses NUL bytes: CSV readers disagree about them, and a hole in a file reads as NUL bytes.
pub(crate) fn checked(field: impl ToString, cell: &str) -> Result<&str, InvalidField> {
    if cell.contains('\0') { Err(InvalidField::new(field.to_string(), "holds a NUL byte")) } else { Ok(cell) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: ServiceCells<'_> = ServiceCells { timestamp: "T", replica: b"\"r,1\"", token: 7, key: b"k" };

    fn row(header: &str, data: Data<'_>) -> Result<String, InvalidField> {
        let schema = if header == "none" {
            Schema::headerless()
        } else {
            Schema::from_header(header.as_bytes()).expect("a header")
        };
        let (mut rows, mut out) = (schema.rows(), Vec::new());
        schema.push(&data, &mut rows)?;
        schema.write_rows(&mut out, &rows, &SERVICE, RowLayout { headerless_width: 3, line_end: b"\n" });
        Ok(String::from_utf8(out).expect("UTF-8"))
    }

    fn list<'a>(cells: &[&'a str]) -> Data<'a> {
        Data::List(cells.iter().map(|&cell| Some(cell.into())).collect())
    }

    #[test]
    fn service_columns_are_filled_at_any_position() {
        assert_eq!(row("timestamp,replica,token,data", Data::Text("x".into())).as_deref(), Ok("T,\"r,1\",7,x\n"));
        assert_eq!(row("b,token,c,d,key", list(&["1", "2,", "3"])).as_deref(), Ok("1,7,\"2,\",3,k\n"));
        assert_eq!(
            row("Timestamp,ClientID,LockToken,ActionType,Data", Data::Text("x".into())).as_deref(),
            Ok("T,\"r,1\",7,append,x\n")
        );
        assert_eq!(row("Token,data", list(&["a", "b"])).as_deref(), Ok("a,b\n"), "names are matched case-sensitively");
    }

    #[test]
    fn rows_are_encoded_as_rfc_4180_text() {
        assert_eq!(
            row("a,b", list(&["say \"hi\"", "two\r\nlines"])).as_deref(),
            Ok("\"say \"\"hi\"\"\",\"two\r\nlines\"\n")
        );
        assert_eq!(row("a", Data::Text("".into())).as_deref(), Ok("\"\"\n"));
        assert_eq!(row("token,a", Data::Text("".into())).as_deref(), Ok("7,\n"));
        assert_eq!(row("none", list(&["a", "b"])).as_deref(), Ok("a,b,\n"));
        assert_eq!(row("none", list(&[])).as_deref(), Ok("\"\",,\n"));
    }

    #[test]
    fn data_that_does_not_fit_header_is_refused_by_name() {
        let object =
            |names: &[&'static str]| Data::Object(names.iter().map(|&name| (name.into(), Some("v".into()))).collect());
        let field = |header, data| row(header, data).expect_err("refused").field;
        assert_eq!(row("a,token,b", object(&["b"])).as_deref(), Ok(",7,v\n"));
        assert_eq!(field("a,token,b", object(&["c"])), "data.c");
        assert_eq!(field("a,token,b", object(&["token"])), "data.token");
        assert_eq!(field("a,token,b", object(&["a", "a"])), "data.a");
        assert_eq!(field("a", list(&["1", "2"])), "data");
        assert_eq!(field("a,b", list(&["1", "\0"])), "data[1]");
        assert_eq!(field("token,key", Data::Text("x".into())), "data");
        assert_eq!(field("none", object(&["a"])), "data");
    }

    #[test]
    fn leading_bom_of_a_name_or_cell_is_kept() {
        let schema = Schema::from_header("\u{feff}data,token".as_bytes()).expect("a header");
        assert_eq!(schema.names().map(|names| &*names[0]), Some("\u{feff}data"));
        assert_eq!(schema.header().map(String::from_utf8), Some(Ok("\"\u{feff}data\",token".to_owned())));
        assert_eq!(schema.token_of("\u{feff}\"a,7".as_bytes()), Some(7));
        assert_eq!(row("none", Data::Text("\u{feff}x".into())).as_deref(), Ok("\"\u{feff}x\",,\n"));
    }

    #[test]
    fn header_with_empty_or_repeated_name_is_refused() {
        assert_eq!(Schema::from_header(b"a,,b"), Err(HeaderError::Empty(2)));
        assert_eq!(Schema::from_header(b"a,b,a"), Err(HeaderError::Duplicate("a".into())));
        assert_eq!(Schema::from_header(b"a\nb"), Err(HeaderError::NotOneRecord));
        assert_eq!(Schema::from_header(b"\xff"), Err(HeaderError::NotUtf8));
    }
}
