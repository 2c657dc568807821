//! `traceparent` of W3C trace context: <https://www.w3.org/TR/trace-context-2/#traceparent-header>.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use uuid::Uuid;

use crate::http::header_value::header_value;

pub(crate) const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
/// `00-<32 hex>-<16 hex>-<2 hex>`.
const BYTES: usize = 55;

/// The caller's `traceparent` in the form of version 00. Of a later version, its first four fields count. `None` without one, with
/// several, or with one that is not valid.
pub(crate) fn of_caller(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut values = headers.get_all(TRACE_PARENT).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let text = value.to_str().ok()?;
    let (fields, rest) = text.split_at_checked(BYTES)?;
    if !is_valid(fields) {
        return None;
    }
    match &fields[..2] {
        "00" if rest.is_empty() => Some(value.clone()),
        "00" | "ff" => None,
        // Only the sampled flag is known to mean the same in later versions.
        _ if rest.is_empty() || rest.starts_with('-') => {
            let is_sampled = u8::from_str_radix(&fields[53..], 16).ok()? & 1;
            Some(header_value(format!("00-{}-{is_sampled:02x}", &fields[3..52])))
        }
        _ => None,
    }
}

/// A new trace.
pub(crate) fn new() -> String {
    let (mut trace, mut span) = ([0; 32], [0; 32]);
    let [trace, span] = [&mut trace, &mut span].map(|hex| &*Uuid::new_v4().simple().encode_lower(hex));
    ["00-", trace, "-", &span[16..], "-01"].concat()
}

fn is_valid(fields: &str) -> bool {
    let parts: Vec<&str> = fields.split('-').collect();
    let is_hex = |part: &&str| part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    parts.iter().map(|part| part.len()).eq([2, 32, 16, 2])
        && parts.iter().all(is_hex)
        && parts[1..3].iter().all(|id| id.bytes().any(|byte| byte != b'0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: &str = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";

    fn read(values: &[&str]) -> Option<String> {
        let headers = values.iter().map(|value| (TRACE_PARENT, value.parse().expect("a header"))).collect();
        of_caller(&headers).map(|value| value.to_str().expect("text").to_owned())
    }

    #[test]
    fn only_well_formed_trace_parents_are_accepted() {
        for (sent, expected) in [
            (format!("00-{IDS}-01"), Some("01")),
            (format!("00-{IDS}-00"), Some("00")),
            (format!("00-{IDS}-02"), Some("02")),
            (format!("01-{IDS}-01"), Some("01")),
            (format!("01-{IDS}-01-extra"), Some("01")),
            (format!("01-{IDS}-01-"), Some("01")),
            (format!("cc-{IDS}-fe-more-of-it"), Some("00")),
            (format!("fe-{IDS}-ff"), Some("01")),
            (format!("00-{IDS}-01-extra"), None),
            (format!("00-{IDS}-01-"), None),
            (format!("01-{IDS}-01extra"), None),
            (format!("01-{IDS}-1"), None),
            (format!("ff-{IDS}-01"), None),
            (format!("0g-{IDS}-01"), None),
            (format!("00-{IDS}-0x"), None),
            (format!("00-{}-01", IDS.to_uppercase()), None),
            (format!("00_{IDS}-01"), None),
            (format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)), None),
            (format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", "0".repeat(16)), None),
            (format!("01-{}-00f067aa0ba902b7-01-x", "0".repeat(32)), None),
            ("00-1-2-3".to_owned(), None),
            (String::new(), None),
        ] {
            let expected = expected.map(|flags| format!("00-{IDS}-{flags}"));
            assert_eq!(read(&[&sent]), expected, "{sent}");
        }
        assert!(read(&[]).is_none() && read(&[&new()]).is_some());
        let valid = format!("00-{IDS}-01");
        assert_eq!(read(&[&valid, &valid]), None, "the order of two headers means nothing");
    }
}
