//! Parses JSON as it arrives, line by line or element by element.

use std::marker::PhantomData;

use serde_json::value::RawValue;

use crate::csv::schema::InvalidField;
use crate::http::{
    body::{
        append::{json_data, parse_json},
        batch_rows::BatchRows,
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
        let result = act(&self.0);
        self.0.clear();
        result
    }
}

/// Parses one JSON value per line. Blank lines are skipped and counted.
#[derive(Default)]
pub(super) struct LineParser {
    carry: Carry,
    /// How many lines have ended.
    lines: u64,
    /// How many of them were blank.
    blank_lines: u64,
}

impl LineParser {
    /// Memory of the line that is arriving.
    pub(crate) fn held_bytes(&self) -> usize {
        self.carry.0.capacity()
    }

    pub(crate) fn push(&mut self, mut piece: &[u8], rows: &mut BatchRows<'_>) -> Result<(), ApiError> {
        while let Some(end) = memchr::memchr(b'\n', piece) {
            let is_blank = self.end_line(&piece[..end], rows)?;
            self.blank_lines += u64::from(is_blank);
            piece = &piece[end + 1..];
        }
        self.check_line(piece, rows)?;
        self.carry.push(piece);
        Ok(())
    }

    /// Returns the number of blank lines.
    pub(crate) fn finish(mut self, rows: &mut BatchRows<'_>) -> Result<u64, ApiError> {
        // Spaces behind the last line end are not a line.
        self.end_line(b"", rows)?;
        Ok(self.blank_lines)
    }

    fn check_line(&self, more: &[u8], rows: &BatchRows<'_>) -> Result<(), ApiError> {
        rows.limits.check_row(self.carry.0.len() + more.len(), || format!("line {}", self.lines + 1))
    }

    /// Whether the line is blank.
    fn end_line(&mut self, end: &[u8], rows: &mut BatchRows<'_>) -> Result<bool, ApiError> {
        self.check_line(end, rows)?;
        self.lines += 1;
        let number = self.lines;
        self.carry.end(end, |line| {
            let line = text_of(line, number)?;
            let is_blank = line.trim().is_empty();
            if !is_blank {
                push_row(line, rows).map_err(|e| placed(format_args!("line {number}"), e))?;
            }
            Ok(is_blank)
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
    /// Memory of the element that is arriving.
    pub(crate) fn held_bytes(&self) -> usize {
        self.carry.0.capacity()
    }

    pub(crate) fn push(&mut self, mut piece: &[u8], rows: &mut BatchRows<'_>) -> Result<(), ApiError> {
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
                    let end = self.end_of_element(piece);
                    let element = &piece[..end.unwrap_or(piece.len())];
                    self.check_element(element, rows)?;
                    let Some(end) = end else {
                        self.carry.push(piece);
                        return Ok(());
                    };
                    self.end_element(element, piece[end] == b']', rows)?;
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
                let seed = PhantomData::<Vec<&RawValue>>;
                parse_json(seed, text, "body", "an array of values that data accepts").map(|_| ())
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

    fn check_element(&self, more: &[u8], rows: &BatchRows<'_>) -> Result<(), ApiError> {
        rows.limits.check_row(self.carry.0.len() + more.len(), || format!("row {}", self.elements + 1))
    }

    fn end_element(&mut self, end: &[u8], is_last: bool, rows: &mut BatchRows<'_>) -> Result<(), ApiError> {
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
            push_row(text_of(element, ends + 1)?, rows).map_err(|e| placed(format_args!("row {number}"), e))
        })
    }
}

fn text_of(bytes: &[u8], line: u64) -> Result<&str, ApiError> {
    std::str::from_utf8(bytes).map_err(|e| not_utf8(line + line_ends(&bytes[..e.valid_up_to()])))
}

/// Parses one row, a value that `data` accepts.
fn push_row(text: &str, rows: &mut BatchRows<'_>) -> Result<(), ApiError> {
    let raw = parse_json(PhantomData::<&RawValue>, text, "body", "a string, an array or an object")?;
    rows.push(&json_data(raw, rows.schema)?)
}

/// Prefixes the detail of an error with its place.
fn placed(place: std::fmt::Arguments<'_>, e: ApiError) -> ApiError {
    match e {
        ApiError::InvalidField(e) => InvalidField::new(e.field, format!("{place}: {}", e.detail)).into(),
        ApiError::BrokenBody(detail) => ApiError::BrokenBody(format!("{place}: {detail}")),
        other => other,
    }
}
