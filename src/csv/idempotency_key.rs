//! The idempotency key of a request, with a fingerprint of its rows.

use sha2::{Digest, Sha256};

use crate::csv::{formula_guard::is_formula, rows::Rows};

/// The longest idempotency key, in bytes.
pub const KEY_BYTES_MAX: usize = 255;

/// A client's name for one request, which identifies repeats of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// As written in a column named `key`, before quoting. Where formulas are guarded, an apostrophe is put in front of a key
    /// that is a formula or begins with an apostrophe, so that two keys are never written alike.
    pub text: Box<str>,
    /// The first half of its SHA-256, long enough that no two keys share it.
    pub hash: u128,
    /// Fingerprint of the request's data cells.
    pub fingerprint: u64,
}

impl Key {
    /// The key of a request with these rows. `None` unless it is 1 to `KEY_BYTES_MAX` printable ASCII characters.
    pub fn new(text: &str, rows: &Rows) -> Option<Self> {
        let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if !printable || text.is_empty() || text.len() > KEY_BYTES_MAX {
            return None;
        }
        let hash = Sha256::digest(text);
        let is_guarded = rows.guards_formulas() && (text.starts_with('\'') || is_formula(text.as_bytes()));
        Some(Self {
            text: if is_guarded { format!("'{text}").into() } else { text.into() },
            hash: u128::from_le_bytes(hash[..16].try_into().expect("16 bytes")),
            fingerprint: rows.fingerprint(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(runs_per_row: usize, all: &[(&[&str], usize)]) -> Rows {
        let mut rows = Rows::new(runs_per_row, None, false);
        for (runs, cells) in all {
            runs.iter().for_each(|run| rows.push_run(|text, _| text.extend_from_slice(run.as_bytes())));
            rows.end_row(*cells);
        }
        rows
    }

    #[test]
    fn rows_are_returned_as_added() {
        let rows = rows(2, &[(&["a", "b,c"], 3), (&["", "\"\","], 3)]);
        assert_eq!((rows.len(), rows.cell_bytes()), (2, 7));
        let back: Vec<_> = rows.iter().map(|row| (row.runs().collect::<Vec<_>>(), row.cells)).collect();
        assert_eq!(back, [(vec![&b"a"[..], b"b,c"], 3), (vec![b"", b"\"\","], 3)]);
    }

    #[test]
    fn fingerprint_is_stable() {
        let fingerprint = |rows: &Rows| Key::new("k-1", rows).expect("a key").fingerprint;
        let named = [(&["Oslo", "\"709,037\",x"][..], 3), (&["", "\"\",å"], 3)];
        assert_eq!(fingerprint(&rows(2, &named)), 0xec5f_538a_175d_5f31);
        assert_eq!(fingerprint(&rows(2, &named[..1])), 0x3a68_fcd3_7fbc_2397);
        assert_eq!(fingerprint(&rows(1, &[(&["a,b"], 2), (&["\"\""], 1)])), 0x5be5_7daf_b905_63a5);
    }
}
