//! Query strings. An unknown, wrong or repeated parameter is refused by its name.

use std::ops::RangeInclusive;

use percent_encoding::percent_decode_str;

use crate::csv::schema::InvalidField;

/// The parameters of one request.
#[derive(Debug)]
pub(crate) struct Parameters(Vec<(&'static str, Option<String>)>);

impl Parameters {
    /// Accepts the listed parameters and no others.
    ///
    /// # Errors
    /// Names the first unknown or repeated parameter.
    pub(crate) fn parse(query: Option<&str>, accepted: &[&'static str]) -> Result<Self, InvalidField> {
        let mut found = Self(accepted.iter().map(|name| (*name, None)).collect());
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = percent_decode_str(name).decode_utf8_lossy();
            let value = percent_decode_str(value).decode_utf8_lossy();
            let Some((_, slot)) = found.0.iter_mut().find(|(known, _)| *known == name) else {
                return Err(InvalidField::new(name, format!("no such parameter; accepted: {}", accepted.join(", "))));
            };
            if slot.replace(value.into_owned()).is_some() {
                return Err(InvalidField::new(name, "given twice"));
            }
        }
        Ok(found)
    }

    /// The value of a parameter, if it was given.
    pub(crate) fn take(&mut self, name: &str) -> Option<String> {
        self.0.iter_mut().find(|(known, _)| *known == name)?.1.take()
    }

    /// The value of a parameter as a whole number within bounds.
    ///
    /// # Errors
    /// If the value is not such a number.
    pub(crate) fn count(
        &mut self,
        name: &'static str,
        bounds: RangeInclusive<usize>,
    ) -> Result<Option<usize>, InvalidField> {
        let Some(text) = self.take(name) else { return Ok(None) };
        let number = digits(&text).and_then(|number| usize::try_from(number).ok()).filter(|n| bounds.contains(n));
        let accepted = || format!("accepted: a whole number from {} to {}", bounds.start(), bounds.end());
        number.map(Some).ok_or_else(|| InvalidField::new(name, accepted()))
    }
}

/// A number written in digits only. Rust's parser also accepts `+1`.
pub(crate) fn digits(text: &str) -> Option<u64> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}
