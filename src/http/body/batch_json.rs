//! Parses JSON as it arrives, line by line or element by element.

use serde_json::value::RawValue;

use crate::csv::{
    rows::Rows,
    schema::{InvalidField, Schema},
};
use crate::http::{
    body::{
        append::{json_data, parse_json},
        text::{line_ends, not_utf8},
    },
    error::ApiError,
};

/// The part of a line or element that arrived in earlier pieces.
#[derive(Default)]
struct Carry(Vec<u8>);

impl Carry {
    fn push(&mut self, piece: &[u8]) {
        self.0.extend_from_slice(piece);
    }

    /// Passes the whole line or element, which ends with `end`, to `act`.
    fn end<T>(&mut self, end: &[u8], act: impl FnOnce(&[u8]) -> T) -> T {
        if self.0.is_empty() {
            return act(end);
        }
        self.push(end);
        act(&std::mem::take(&mut self.0))
    }
}

/// Parses one JSON value per line; blank lines are ignored.
#[derive(Default)]
pub(super) struct LineParser {
    carry: Carry,
    /// How many lines have ended.
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

/// Parses one array, whose elements are the rows.
#[derive(Default)]
pub(super) struct ArrayParser {
    state: ArrayState,
    carry: Carry,
    /// The nesting depth of arrays and objects within the current element.
    depth: usize,
    in_string: bool,
    /// The previous byte was a backslash within a string.
    escaped: bool,
    /// How many lines end before the current element.
    line_ends: u64,
    /// How many elements have ended.
    elements: u64,
}

#[derive(Default)]
enum ArrayState {
    #[default]
    Before,
    Inside,
    After,
    /// The body is not an array. It is kept to its end, to tell broken JSON from JSON of another shape.
    NoArray,
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

impl ArrayParser {
    pub(crate) fn push(&mut self, mut piece: &[u8], schema: &Schema, rows: &mut Rows) -> Result<(), ApiError> {
        while !piece.is_empty() {
            match self.state {
                ArrayState::Before | ArrayState::After => {
                    let space = piece.iter().take_while(|&&byte| is_space(byte)).count();
                    self.line_ends += line_ends(&piece[..space]);
                    piece = &piece[space..];
                    match (&self.state, piece.first()) {
                        (_, None) => {}
                        (ArrayState::Before, Some(b'[')) => (self.state, piece) = (ArrayState::Inside, &piece[1..]),
                        (ArrayState::Before, Some(_)) => self.state = ArrayState::NoArray,
                        _ => return Err(ApiError::BrokenBody("not JSON: text after the array".to_owned())),
                    }
                }
                ArrayState::Inside => {
                    let Some(end) = self.end_of_element(piece) else {
                        self.carry.push(piece);
                        return Ok(());
                    };
                    self.end_element(&piece[..end], piece[end] == b']', schema, rows)?;
                    piece = &piece[end + 1..];
                }
                ArrayState::NoArray => {
                    self.carry.push(piece);
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<(), ApiError> {
        match self.state {
            ArrayState::After => Ok(()),
            ArrayState::Inside => Err(ApiError::BrokenBody("not JSON: the array is not closed".to_owned())),
            ArrayState::Before | ArrayState::NoArray => self.carry.end(b"", |text| {
                let text = text_of(text, self.line_ends + 1)?;
                parse_json::<Vec<&RawValue>>(text, "body", "an array of values that data accepts").map(|_| ())
            }),
        }
    }

    /// The index of the comma or bracket after the element, which is not checked here to be valid JSON.
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
            self.state = ArrayState::After;
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

/// Parses one row, a value that `data` accepts.
fn push_row(text: &str, schema: &Schema, rows: &mut Rows) -> Result<(), ApiError> {
    let raw: &RawValue = parse_json(text, "body", "a string, an array or an object")?;
    Ok(schema.push(&json_data(raw)?, rows)?)
}

/// Prefixes the detail of an error with its place.
fn placed(place: std::fmt::Arguments<'_>, e: ApiError) -> ApiError {
    match e {
        ApiError::InvalidField(e) => InvalidField::new(e.field, format!("{place}: {}", e.detail)).into(),
        ApiError::BrokenBody(detail) => ApiError::BrokenBody(format!("{place}: {detail}")),
        other => other,
    }
}
