//! Refuses heads that hyper accepts and HTTP does not, after RFC 9112, sections 3.2, 6.1 and 6.3.

use std::net::Ipv6Addr;

use axum::{
    extract::Request,
    http::{HeaderMap, Version, header},
};

use crate::http::error::ApiError;

/// Checks `Host` and the framing of the body.
///
/// # Errors
/// `BadRequest`.
pub(crate) fn check_head(request: &Request) -> Result<(), ApiError> {
    check_host(request)?;
    check_transfer_encoding(request.headers())
}

fn check_host(request: &Request) -> Result<(), ApiError> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if request.version() == Version::HTTP_11 => Err(bad_request("Host is missing")),
        (_, Some(_)) => Err(bad_request("Host: accepted: one")),
        (Some(host), None) if !is_host(host.as_bytes()) => {
            Err(bad_request("Host: accepted: a name or an address, and a port"))
        }
        _ => Ok(()),
    }
}

/// `chunked` is the only coding that is decoded. A length beside it shows that somebody on the way frames the body in another way.
fn check_transfer_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else { return Ok(()) };
    if codings.next().is_some() || !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
        return Err(bad_request("Transfer-Encoding: accepted: chunked, once"));
    }
    if headers.contains_key(header::CONTENT_LENGTH) {
        return Err(bad_request("Content-Length and Transfer-Encoding: accepted: one of them"));
    }
    Ok(())
}

fn bad_request(detail: &str) -> ApiError {
    ApiError::BadRequest(detail.to_owned())
}

/// Whether this is `uri-host [ ":" port ]` of RFC 3986, section 3.2.2. The empty name is one.
fn is_host(value: &[u8]) -> bool {
    let Ok(value) = str::from_utf8(value) else { return false };
    let (host, port) = match value.rfind(':').filter(|&at| !value[at..].contains(']')) {
        Some(at) => (&value[..at], &value[at + 1..]),
        None => (value, ""),
    };
    let is_address =
        |host: &str| host.strip_prefix('[').and_then(|host| host.strip_suffix(']')?.parse::<Ipv6Addr>().ok()).is_some();
    (is_name(host) || is_address(host)) && (port.is_empty() || is_port(port))
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

/// Whether this is a `reg-name`.
fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let is_valid = match byte {
            b'%' => [bytes.next(), bytes.next()].iter().all(|byte| byte.is_some_and(|byte| byte.is_ascii_hexdigit())),
            _ => byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte),
        };
        if !is_valid {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_is_a_name_or_an_address_and_a_port() {
        for host in
            ["", "a", "a.example:80", "a:", "127.0.0.1:8080", "[::1]", "[2001:db8::1]:443", "a_b-c", "%C3%A9", ":80"]
        {
            assert!(is_host(host.as_bytes()), "{host:?}");
        }
        let broken = [
            "a b", "a/b", "user@a", "a:b", "a:1:2", "a:99999", "a:+1", "::1", "[::1", "::1]", "[::1]x", "[a]", "%4",
            "é", "a,b c", "a?", "a#",
        ];
        for host in broken {
            assert!(!is_host(host.as_bytes()), "{host:?}");
        }
        assert!(!is_host(b"\xff"));
    }
}
