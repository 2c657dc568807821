//! JSON as it arrives, a line or an element of the array at a time.

use serde_json::value::RawValue;

use crate::csv::{
    rows::Rows,
    schema::{InvalidField, Schema},
};
use crate::http::{
    body::{
        append::{json_data, parse_json},
        batch::{line_ends, not_utf8},
    },
    error::ApiError,
};

/// What of a line or element has come in earlier pieces.
#[derive(Default)]
struct Carry(Vec<u8>);

impl Carry {
    fn push(&mut self, piece: &[u8]) {
        self.0.extend_from_slice(piece);
    }

    /// Does something with all of it, now that its end has come.
    fn end<T>(&mut self, end: &[u8], act: impl FnOnce(&[u8]) -> T) -> T {
        if self.0.is_empty() {
            return act(end);
        }
        self.push(end);
        act(&std::mem::take(&mut self.0))
    }
}

/// A JSON value in each line that is not blank.
#[derive(Default)]
pub(crate) struct LineParser {
    carry: Carry,
    /// Lines that have ended.
    lines: u64,
}

impl LineParser {
    pub(crate) fn push(&mut self, mut piece: &[u8], schema: &Schema, rows: &mut Rows) -> Result<(), ApiError> {
        while let Some(end) = memchr::memchr(b'\n', piece) {
            self.end_line(&piece[..end], schema, rows)?;
            piece = &piece[end + 1..];
        }
        self.carry.push(piece);
        Ok(())
    }

    pub(crate) fn finish(&mut self, schema: &Schema, rows: &mut Rows) -> Result<(), ApiError> {
        self.end_line(b"", schema, rows)
    }

    fn end_line(&mut self, end: &[u8], schema: &Schema, rows: &mut Rows) -> Result<(), ApiError> {
        self.lines += 1;
        let number = self.lines;
        self.carry.end(end, |line| {
            let line = text_of(line, number)?;
            if line.trim().is_empty() {
                return Ok(());
            }
            push_row(line, schema, rows).map_err(|e| placed(format_args!("line {number}"), e))
        })
    }
}

/// One array, whose elements are the rows.
#[derive(Default)]
pub(crate) struct ArrayParser {
    at: At,
    carry: Carry,
    /// Of the element that is being read: how deep in its arrays and objects, and whether in a string, behind a backslash.
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// Line ends before that element.
    line_ends: u64,
    /// Elements that have ended.
    elements: u64,
}

#[derive(Default)]
enum At {
    #[default]
    Start,
    Inside,
    Behind,
    /// Something else: read to its end, which tells broken JSON from JSON of another shape.
    NoArray,
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

impl ArrayParser {
    pub(crate) fn push(&mut self, mut piece: &[u8], schema: &Schema, rows: &mut Rows) -> Result<(), ApiError> {
        while !piece.is_empty() {
            match self.at {
                At::Start | At::Behind => {
                    let space = piece.iter().take_while(|&&byte| is_space(byte)).count();
                    self.line_ends += line_ends(&piece[..space]);
                    piece = &piece[space..];
                    match (&self.at, piece.first()) {
                        (_, None) => {}
                        (At::Start, Some(b'[')) => (self.at, piece) = (At::Inside, &piece[1..]),
                        (At::Start, Some(_)) => self.at = At::NoArray,
                        _ => return Err(ApiError::BrokenBody("not JSON: text behind the array".to_owned())),
                    }
                }
                At::Inside => {
                    let Some(end) = self.end_of_element(piece) else {
                        self.carry.push(piece);
                        return Ok(());
                    };
                    self.end_element(&piece[..end], piece[end] == b']', schema, rows)?;
                    piece = &piece[end + 1..];
                }
                At::NoArray => {
                    self.carry.push(piece);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<(), ApiError> {
        match self.at {
            At::Behind => Ok(()),
            At::Inside => Err(ApiError::BrokenBody("not JSON: the array is not closed".to_owned())),
            At::Start | At::NoArray => self.carry.end(b"", |text| {
                let text = text_of(text, self.line_ends + 1)?;
                parse_json::<Vec<&RawValue>>(text, "body", "an array of what data may be").map(|_| ())
            }),
        }
    }

    /// Where the comma or bracket behind the element stands. That the element is sound JSON is not known by that.
    fn end_of_element(&mut self, piece: &[u8]) -> Option<usize> {
        let mut at = 0;
        while at < piece.len() {
            if self.escaped {
                self.escaped = false;
            } else if self.in_string {
                at += memchr::memchr2(b'"', b'\\', &piece[at..])?;
                self.in_string = piece[at] == b'\\';
                self.escaped = self.in_string;
            } else {
                match piece[at] {
                    b'"' => self.in_string = true,
                    b',' | b']' if self.depth == 0 => return Some(at),
                    b'[' | b'{' => self.depth += 1,
                    b']' | b'}' => self.depth = self.depth.saturating_sub(1),
                    _ => {}
                }
            }
            at += 1;
        }
        None
    }

    fn end_element(&mut self, end: &[u8], is_last: bool, schema: &Schema, rows: &mut Rows) -> Result<(), ApiError> {
        if is_last {
            self.at = At::Behind;
        }
        self.elements += 1;
        let (number, ends) = (self.elements, self.line_ends);
        self.carry.end(end, |element| {
            self.line_ends += line_ends(element);
            let is_empty_array = is_last && number == 1 && element.iter().all(|&byte| is_space(byte));
            if is_empty_array {
                return Ok(());
            }
            push_row(text_of(element, ends + 1)?, schema, rows).map_err(|e| placed(format_args!("row {number}"), e))
        })
    }
}

fn text_of(bytes: &[u8], line: u64) -> Result<&str, ApiError> {
    std::str::from_utf8(bytes).map_err(|e| not_utf8(line + line_ends(&bytes[..e.valid_up_to()])))
}

/// A row as `data` gives it.
fn push_row(text: &str, schema: &Schema, rows: &mut Rows) -> Result<(), ApiError> {
    let raw: &RawValue = parse_json(text, "body", "a string, an array or an object")?;
    Ok(schema.push(&json_data(raw)?, rows)?)
}

/// An error told by its place.
fn placed(place: std::fmt::Arguments<'_>, e: ApiError) -> ApiError {
    match e {
        ApiError::InvalidField(e) => InvalidField::new(e.field, format!("{place}: {}", e.detail)).into(),
        ApiError::BrokenBody(detail) => ApiError::BrokenBody(format!("{place}: {detail}")),
        other => other,
    }
}
