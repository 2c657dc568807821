//! The idempotency key of a request, with a fingerprint of its rows.

use sha2::{Digest, Sha256};

use crate::csv::{formula_guard::is_formula, rows::Rows};

/// The longest idempotency key, in bytes.
pub const KEY_BYTES_MAX: usize = 255;

/// A client's name for one request, by which a repeat of it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// As it stands in a column named `key`, before quoting. Where formulas are guarded, a key that would be one has an
    /// apostrophe in front, and so has one that has one already: two keys are never written alike.
    pub text: Box<str>,
    /// The first half of its SHA-256: nobody finds a second key with the same one.
    pub hash: u128,
    /// Of the data cells that it came with.
    pub fingerprint: u64,
}

impl Key {
    /// A key that comes with these rows. `None` unless it is 1 to `KEY_BYTES_MAX` printable ASCII characters.
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
        let mut rows = Rows::new(runs_per_row, false);
        for (runs, cells) in all {
            runs.iter().for_each(|run| rows.push_run(|text, _| text.extend_from_slice(run.as_bytes())));
            rows.end_row(*cells);
        }
        rows
    }

    #[test]
    fn rows_come_back_as_they_were_added() {
        let rows = rows(2, &[(&["a", "b,c"], 3), (&["", "\"\","], 3)]);
        assert_eq!((rows.len(), rows.cell_bytes()), (2, 7));
        let back: Vec<_> = rows.iter().map(|row| (row.runs().collect::<Vec<_>>(), row.cells)).collect();
        assert_eq!(back, [(vec![&b"a"[..], b"b,c"], 3), (vec![b"", b"\"\","], 3)]);
    }

    #[test]
    fn a_fingerprint_is_what_it_was_in_the_versions_that_remembered_it() {
        let fingerprint = |rows: &Rows| Key::new("k-1", rows).expect("a key").fingerprint;
        let named = [(&["Oslo", "\"709,037\",x"][..], 3), (&["", "\"\",å"], 3)];
        assert_eq!(fingerprint(&rows(2, &named)), 0xec5f_538a_175d_5f31);
        assert_eq!(fingerprint(&rows(2, &named[..1])), 0x3a68_fcd3_7fbc_2397);
        assert_eq!(fingerprint(&rows(1, &[(&["a,b"], 2), (&["\"\""], 1)])), 0x5be5_7daf_b905_63a5);
    }
}
