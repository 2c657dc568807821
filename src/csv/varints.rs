//! Small numbers in as few bytes as they need (LEB128), since a batch of short rows has as many numbers as bytes of text.

use crate::csv::large_buffer::grow;

/// The most bytes of one number.
const BYTES_MAX: usize = 10;

/// Numbers in order; one below 128 takes one byte.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Varints(Vec<u8>);

impl Varints {
    pub(super) fn push(&mut self, mut number: usize) {
        grow(&mut self.0, BYTES_MAX);
        while number >= 0x80 {
            // The low 7 bits, and a mark that more follow.
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> Iter<'_> {
        Iter(&self.0)
    }
}

/// The numbers from one position on.
#[derive(Debug, Clone)]
pub(super) struct Iter<'a>(&'a [u8]);

impl Iterator for Iter<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let (mut number, mut shift) = (0, 0);
        loop {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
            shift += 7;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_returned_as_pushed() {
        let numbers = [0, 1, 127, 128, 16_383, 16_384, u32::MAX as usize, usize::MAX];
        let mut varints = Varints::default();
        numbers.iter().for_each(|&number| varints.push(number));
        assert_eq!(varints.iter().collect::<Vec<_>>(), numbers);
        assert_eq!(varints.bytes(), 3 + 2 + 2 + 3 + 5 + 10);
    }
}
