//! The rows of one run. A row is generated from its number alone, so that it can be generated again for verification.

use std::fmt::Write;

use crate::random::Random;

/// The shortest row: `load-`, the run's 12 digits, a number of up to 20 digits, and a dash after each.
pub const ROW_BYTES_MIN: usize = 5 + 13 + 21 + 1;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// Text that needs CSV quotes; one row in eight holds it.
const QUOTED_TEXT: &str = ", \"å\"\n";
const QUOTED_EVERY: u64 = 8;

/// Generates rows, and recognizes them.
#[derive(Debug, Clone)]
pub(super) struct Generator {
    prefix: String,
    seed: u64,
    row_bytes: usize,
}

impl Generator {
    /// `run` is unique, so that rows of an earlier run with the same seed are not taken for rows of this run.
    pub(super) fn new(run: &str, seed: u64, row_bytes: usize) -> Self {
        debug_assert!(row_bytes >= ROW_BYTES_MIN, "the command line checks it");
        Self { prefix: format!("load-{run}-"), seed, row_bytes }
    }

    /// The prefix of every row of this run.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Appends row `number` to `out`.
    pub(super) fn write(&self, number: u64, out: &mut String) {
        let end = out.len() + self.row_bytes;
        write!(out, "{}{number}-", self.prefix).expect("writing to memory cannot fail");
        let mut random = Random(self.seed ^ number.wrapping_mul(0xd134_2543_de82_ef95));
        if random.bits().is_multiple_of(QUOTED_EVERY) && end - out.len() >= QUOTED_TEXT.len() {
            out.push_str(QUOTED_TEXT);
        }
        while out.len() < end {
            // Six bits for each character.
            let mut bits = random.bits();
            for _ in 0..(end - out.len()).min(10) {
                out.push(char::from(ALPHABET[(bits & 63) as usize]));
                bits >>= 6;
            }
        }
    }

    /// The row number that a cell starts with, if it has this run's prefix. The rest of the cell is not checked.
    pub(super) fn number_of(&self, cell: &[u8]) -> Option<u64> {
        let rest = cell.strip_prefix(self.prefix.as_bytes())?;
        let digits = &rest[..rest.iter().position(|&byte| byte == b'-')?];
        std::str::from_utf8(digits).ok()?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(seed: u64, number: u64, row_bytes: usize) -> String {
        let mut row = String::new();
        Generator::new("0123456789ab", seed, row_bytes).write(number, &mut row);
        row
    }

    #[test]
    fn rows_have_their_length_and_are_unique_and_reproducible() {
        let generator = Generator::new("0123456789ab", 7, 64);
        let rows: Vec<_> = (0..1000).map(|number| row(7, number, 64)).collect();
        assert!(rows.iter().all(|row| row.len() == 64));
        assert_eq!(rows.iter().collect::<std::collections::HashSet<_>>().len(), 1000);
        assert_eq!(rows[17], row(7, 17, 64));
        assert_ne!(rows[17], row(8, 17, 64));
        let quoted = rows.iter().filter(|row| row.contains(QUOTED_TEXT)).count();
        assert!((60..250).contains(&quoted), "{quoted}");
        for (number, row) in rows.iter().enumerate() {
            assert_eq!(generator.number_of(row.as_bytes()), Some(number as u64));
        }
        assert_eq!(row(0, u64::MAX, ROW_BYTES_MIN).len(), ROW_BYTES_MIN);
        for others in ["", "load-", "load-0123456789ab-", "load-0123456789ab-x-", "load-0123456789ac-1-A"] {
            assert_eq!(generator.number_of(others.as_bytes()), None, "{others}");
        }
    }
}
