//! The rows of a batch while it arrives, within the bounds of one batch.

use crate::csv::{
    rows::Rows,
    schema::{Columns, Data, Schema},
};
use crate::{
    commit::{AppendError, FileRoom},
    http::error::ApiError,
};

/// What the bounds below are at least, so that a small `ROWLOCK_BATCH_LIMIT` bounds the body alone.
const BYTES_MIN: usize = 1 << 20;

/// The most that one batch may take. Together they keep a batch below three times `ROWLOCK_BATCH_LIMIT`: its rows as held while they
/// wait, and their lines while they are written; or, before that, its rows and the text of the row that is being parsed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchLimits {
    /// Memory of all rows.
    pub(super) held_bytes_max: usize,
    /// The text of one row.
    pub(super) row_bytes_max: usize,
    /// The lines of all rows.
    lines_bytes_max: u64,
    /// What the file can take.
    room: FileRoom,
}

impl BatchLimits {
    /// `body_bytes_max` is `ROWLOCK_BATCH_LIMIT`.
    pub(crate) fn new(body_bytes_max: usize, room: FileRoom) -> Self {
        let held_bytes_max = body_bytes_max.max(BYTES_MIN);
        Self {
            held_bytes_max,
            row_bytes_max: (body_bytes_max / 8).max(BYTES_MIN),
            lines_bytes_max: 2 * held_bytes_max as u64,
            room,
        }
    }

    /// Refuses a row whose text is too long. `place` is its line or number.
    pub(super) fn check_row(&self, bytes: usize, place: impl FnOnce() -> String) -> Result<(), ApiError> {
        if bytes <= self.row_bytes_max {
            return Ok(());
        }
        let (place, most) = (place(), self.row_bytes_max);
        Err(ApiError::BatchTooLarge(format!(
            "{place}: one row is larger than {most} bytes (an eighth of ROWLOCK_BATCH_LIMIT)"
        )))
    }

    fn check_held(&self, bytes: usize) -> Result<(), ApiError> {
        let most = self.held_bytes_max;
        if bytes <= most {
            return Ok(());
        }
        Err(ApiError::BatchTooLarge(format!("the rows take more than {most} bytes of memory (ROWLOCK_BATCH_LIMIT)")))
    }

    fn check_lines(&self, rows: &Rows) -> Result<(), ApiError> {
        let bytes = self.room.line_bytes(rows);
        if bytes > self.room.bytes_max() {
            return Err(AppendError::BatchTooLarge(self.room.bytes_max()).into());
        }
        if bytes > self.lines_bytes_max {
            let most = self.lines_bytes_max;
            let detail = format!("the rows take more than {most} bytes in the file (twice ROWLOCK_BATCH_LIMIT)");
            return Err(ApiError::BatchTooLarge(detail));
        }
        Ok(())
    }
}

/// Collects the rows of a batch.
pub(super) struct BatchRows<'a> {
    pub(super) schema: &'a Schema,
    pub(super) limits: BatchLimits,
    rows: Rows,
}

impl<'a> BatchRows<'a> {
    pub(super) fn new(schema: &'a Schema, limits: BatchLimits) -> Self {
        Self { schema, limits, rows: schema.rows() }
    }

    /// Adds a row.
    ///
    /// # Errors
    /// `InvalidField` if it does not fit the columns, `BatchTooLarge` if it does not fit the bounds.
    pub(super) fn push(&mut self, data: &Data<'_>) -> Result<(), ApiError> {
        self.limits.check_held(self.held_bytes() + data.bytes())?;
        self.schema.push(data, &mut self.rows)?;
        self.check()
    }

    /// Adds a row whose cells have `bytes` of text, without NUL bytes.
    ///
    /// # Errors
    /// `BatchTooLarge` if it does not fit the bounds.
    pub(super) fn push_columns<'t>(
        &mut self,
        columns: &Columns,
        bytes: usize,
        cell: impl Fn(usize) -> &'t str,
    ) -> Result<(), ApiError> {
        self.limits.check_held(self.held_bytes() + bytes)?;
        self.schema.push_columns(columns, cell, &mut self.rows);
        self.check()
    }

    fn check(&self) -> Result<(), ApiError> {
        // guard: rows_bounded: a small body of many short rows takes bounded memory
        self.limits.check_held(self.held_bytes()).and_then(|()| self.limits.check_lines(&self.rows))
    }

    /// Memory of the rows.
    pub(super) fn held_bytes(&self) -> usize {
        self.rows.weight_bytes()
    }

    pub(super) fn into_rows(self) -> Rows {
        self.rows
    }
}
