//! The header `Idempotency-Key`: a string of RFC 8941 with its escapes, or the bare text.

use axum::http::{HeaderMap, HeaderName};

use crate::{csv::idempotency_key::KEY_BYTES_MAX, http::error::ApiError};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The key of a request; `None` without the header.
///
/// # Errors
/// `BadKey`, if the header comes twice or its value is not accepted.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ApiError::BadKey);
    }
    let text = value.to_str().map_err(|_| ApiError::BadKey)?.trim();
    let key = match text.strip_prefix('"') {
        Some(quoted) => unescape(quoted.strip_suffix('"').ok_or(ApiError::BadKey)?).ok_or(ApiError::BadKey)?,
        None => text.to_owned(),
    };
    if (1..=KEY_BYTES_MAX).contains(&key.len()) { Ok(Some(key)) } else { Err(ApiError::BadKey) }
}

fn unescape(quoted: &str) -> Option<String> {
    let (mut text, mut chars) = (String::with_capacity(quoted.len()), quoted.chars());
    while let Some(char) = chars.next() {
        match char {
            '\\' => text.push(chars.next().filter(|next| matches!(next, '"' | '\\'))?),
            '"' => return None,
            other => text.push(other),
        }
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn key(values: &[&str]) -> Option<Option<String>> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(IDEMPOTENCY_KEY, HeaderValue::from_str(value).expect("a header"));
        }
        idempotency_key(&headers).ok()
    }

    #[test]
    fn key_is_the_same_quoted_or_bare() {
        let some = |text: &str| Some(Some(text.to_owned()));
        assert_eq!(key(&[]), Some(None));
        assert_eq!(key(&["k-1"]), some("k-1"));
        assert_eq!(key(&["\"k-1\""]), some("k-1"));
        assert_eq!(key(&[r#""a \"b\" \\""#]), some(r#"a "b" \"#));
        let longest = "x".repeat(KEY_BYTES_MAX);
        assert_eq!(key(&[&longest]), some(&longest));
    }

    #[test]
    fn malformed_key_is_refused() {
        let too_long = "x".repeat(KEY_BYTES_MAX + 1);
        for wrong in [&[""][..], &["\"\""], &["\"open"], &[r#""a"b""#], &[r#""\x""#], &["a", "b"], &[&too_long]] {
            assert_eq!(key(wrong), None, "{wrong:?}");
        }
    }
}
