//! Whether the rows of a refused append may be in the file.

use serde::Serialize;
use utoipa::ToSchema;

/// Whether the rows of a refused append may be in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The rows are certainly not in the file.
    NotWritten,
    /// It cannot be known.
    Unknown,
}

impl Outcome {
    /// The value in JSON, without quotes.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotWritten => "not_written",
            Self::Unknown => "unknown",
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
