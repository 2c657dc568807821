//! Writes a page of rows as JSON while it is sent, so that an answer holds a few pieces of it in memory and not the whole.

use std::io;

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, header},
    response::Response,
};
use futures_util::stream;

use crate::http::{app::App, error::ApiError};
use crate::{
    commit::reading::{FileParts, Page, ReadError},
    csv::cell_pieces::{CellPiece, CellPieces},
};

/// How much of the file is read at once.
const CHUNK_BYTES: u64 = 32 << 10;
/// The most text that is parsed before the size of the piece is checked. As JSON, text may be six times as long.
const STEP_BYTES: usize = 4096;
/// A piece of JSON is sent once it has this size.
const PIECE_BYTES: usize = 32 << 10;

/// Answers with the rows of a page. The first piece is written before the answer begins, so that its errors become refusals.
///
/// # Errors
/// If the file cannot be read.
pub(super) async fn page_answer(app: App, page: Page, file: FileParts) -> Result<Response, ApiError> {
    let (first, rest) = PageWriter::new(app, page, file).next_piece().await.map_err(ReadError::from)?;
    let body = match rest {
        None => Body::from(first),
        Some(writer) => {
            let pieces = stream::try_unfold((Some(first), Some(writer)), |(first, writer)| async {
                match (first, writer) {
                    (Some(first), writer) => Ok(Some((first, (None, writer)))),
                    (None, Some(writer)) => {
                        let (piece, writer) = writer.next_piece().await?;
                        Ok::<_, io::Error>(Some((piece, (None, writer))))
                    }
                    (None, None) => Ok(None),
                }
            });
            Body::from_stream(pieces)
        }
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// What of a page is left to write.
struct PageWriter {
    /// The column names are its schema's.
    app: App,
    file: FileParts,
    page: Page,
    /// How many rows are written.
    rows: usize,
    /// Offset of the next byte to write, within the row that is being written.
    at: u64,
    /// A part of the file that begins at `at`.
    chunk: Bytes,
    cells: CellPieces,
    /// How many cells of the row are begun.
    cell: usize,
    in_cell: bool,
}

impl PageWriter {
    fn new(app: App, page: Page, file: FileParts) -> Self {
        let (chunk, cells) = (Bytes::new(), CellPieces::new());
        Self { app, file, at: page.start, page, rows: 0, chunk, cells, cell: 0, in_cell: false }
    }

    /// Writes the next piece on a thread that may block. Returns what is left after it.
    async fn next_piece(mut self) -> io::Result<(Bytes, Option<Self>)> {
        let written = tokio::task::spawn_blocking(move || {
            let mut json = Vec::with_capacity(PIECE_BYTES + 6 * STEP_BYTES);
            let is_last = self.write(&mut json)?;
            Ok((json.into(), (!is_last).then_some(self)))
        });
        written.await.map_err(io::Error::other)?
    }

    /// Returns true after the end of the page.
    fn write(&mut self, json: &mut Vec<u8>) -> io::Result<bool> {
        if self.rows == 0 && self.at == self.page.start && self.chunk.is_empty() {
            json.extend_from_slice(b"{\"rows\":[");
        }
        while json.len() < PIECE_BYTES {
            let Some(row) = self.page.rows.get(self.rows).cloned() else {
                json.extend_from_slice(b"],\"next\":");
                to_json(json, &self.page.next);
                json.extend_from_slice(b"}\n");
                return Ok(true);
            };
            if self.at <= row.start {
                self.skip_to(row.start);
                self.begin_row(json);
            }
            self.read_chunk()?;
            let left = usize::try_from(row.end - self.at).unwrap_or(usize::MAX);
            let text = self.chunk.split_to(left.min(self.chunk.len()).min(STEP_BYTES));
            self.at += text.len() as u64;
            self.write_cells(&text, json);
            if self.at == row.end {
                self.end_row(json);
            }
        }
        Ok(false)
    }

    /// Skips blank lines.
    fn skip_to(&mut self, offset: u64) {
        let skipped = usize::try_from(offset - self.at).unwrap_or(usize::MAX);
        let _ = self.chunk.split_to(skipped.min(self.chunk.len()));
        self.at = offset;
    }

    fn read_chunk(&mut self) -> io::Result<()> {
        if self.chunk.is_empty() {
            let end = self.page.rows.last().map_or(self.at, |last| last.end);
            self.chunk = self.file.read(self.at, CHUNK_BYTES.min(end - self.at))?.into();
        }
        if self.chunk.is_empty() { Err(io::Error::other("the file was truncated while it was sent")) } else { Ok(()) }
    }

    fn begin_row(&mut self, json: &mut Vec<u8>) {
        json.extend_from_slice(if self.rows == 0 { b"{\"offset\":" } else { b",{\"offset\":" });
        to_json(json, &self.at);
        json.extend_from_slice(if self.names().is_some() { b",\"fields\":{" } else { b",\"fields\":[" });
        self.cells.reset();
        (self.cell, self.in_cell) = (0, false);
    }

    fn write_cells(&mut self, text: &[u8], json: &mut Vec<u8>) {
        let Self { app, cells, cell, in_cell, .. } = self;
        let names = app.appender.schema().names();
        cells.feed(text, &mut |piece| write_piece(piece, names, (cell, in_cell), json));
    }

    fn end_row(&mut self, json: &mut Vec<u8>) {
        let Self { app, cells, cell, in_cell, .. } = self;
        let names = app.appender.schema().names();
        cells.finish(&mut |piece| write_piece(piece, names, (cell, in_cell), json));
        json.extend_from_slice(if names.is_some() { b"}}" } else { b"]}" });
        self.rows += 1;
    }

    fn names(&self) -> Option<&[String]> {
        self.app.appender.schema().names()
    }
}

/// `cell` is the number of cells that are begun, `in_cell` whether the last of them is not complete.
fn write_piece(
    piece: CellPiece<'_>,
    names: Option<&[String]>,
    (cell, in_cell): (&mut usize, &mut bool),
    json: &mut Vec<u8>,
) {
    if !*in_cell {
        // A cell without a column is not part of the answer.
        if names.is_some_and(|names| *cell >= names.len()) {
            return;
        }
        begin_cell(json, *cell, names);
        *cell += 1;
    }
    *in_cell = piece != CellPiece::End;
    match piece {
        CellPiece::Text(text) => text_to_json(json, text),
        CellPiece::End => json.push(b'"'),
    }
}

fn begin_cell(json: &mut Vec<u8>, cell: usize, names: Option<&[String]>) {
    if cell > 0 {
        json.push(b',');
    }
    if let Some(name) = names.and_then(|names| names.get(cell)) {
        to_json(json, name);
        json.push(b':');
    }
    json.push(b'"');
}

/// Writes text as a part of a JSON string.
fn text_to_json(json: &mut Vec<u8>, text: &str) {
    let from = json.len();
    to_json(json, &text);
    json.pop();
    json.remove(from);
}

fn to_json(json: &mut Vec<u8>, value: &impl serde::Serialize) {
    serde_json::to_writer(json, value).expect("plain data");
}
