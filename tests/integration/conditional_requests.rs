//! Ranges, conditions and revalidation of `/rows.csv`, after RFC 9110, sections 13 and 14, as raw requests.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use crate::support::{Bench, On, PATIENCE, Replica};

/// The status, the headers in lower case, and the body.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// Sends the lines as they are. The answer must be whole: as long as its `Content-Length`, or complete chunks.
fn send(replica: &Replica, method: &str, path: &str, lines: &[String]) -> Answer {
    let mut stream = TcpStream::connect(replica.url.trim_start_matches("http://")).expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("settable");
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{lines}\r\n");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut all = Vec::new();
    stream.read_to_end(&mut all).expect("an answer, without a reset");
    let split = all.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8(all[..split].to_vec()).expect("ASCII").to_lowercase();
    let (status, body) = (head[9..12].parse().expect("a status"), all[split + 4..].to_vec());
    let answer = Answer { status, head, body };
    if let (Some(length), true) = (answer.header("content-length"), method != "HEAD" && status != 304) {
        assert_eq!(length, answer.body.len().to_string(), "{}", answer.head);
    }
    assert!(answer.header("transfer-encoding").is_none() || answer.body.ends_with(b"0\r\n\r\n"));
    answer
}

const CONTENT: &[u8] = b"data\none\ntwo\n";

/// A file of 13 bytes and its `ETag`.
fn served(content: &[u8], settings: &[(&str, &str)]) -> (Bench, Replica, String) {
    let bench = Bench::with_file(On::Embedded, content);
    let replica = bench.replica(settings);
    let etag = send(&replica, "GET", "/rows.csv", &[]).header("etag").expect("an ETag").to_owned();
    (bench, replica, etag)
}

#[test]
fn each_range_is_sent_refused_or_ignored() {
    let (_bench, replica, _) = served(CONTENT, &[]);
    let whole = || (200, None, CONTENT.to_vec());
    let part = |from: usize, to: usize| (206, Some(format!("bytes {from}-{}/13", to - 1)), CONTENT[from..to].to_vec());
    let none = || (416, Some("bytes */13".to_owned()), Vec::new());
    for (range, expected) in [
        ("bytes=0-0", part(0, 1)),
        ("bytes=0-12", part(0, 13)),
        ("bytes=5-", part(5, 13)),
        ("bytes=5-999", part(5, 13)),
        ("bytes=5-18446744073709551615", part(5, 13)),
        ("bytes=012-012", part(12, 13)),
        ("BYTES=1-2", part(1, 3)),
        ("bytes= 1-2 ", part(1, 3)),
        ("bytes=-3", part(10, 13)),
        ("bytes=-13", part(0, 13)),
        ("bytes=-14", part(0, 13)),
        ("bytes=-18446744073709551615", part(0, 13)),
        ("bytes=13-", none()),
        ("bytes=13-20", none()),
        ("bytes=-0", none()),
        // An end past 2^64, several ranges, and what is not well-formed.
        ("bytes=0-18446744073709551616", whole()),
        ("bytes=0-99999999999999999999999", whole()),
        ("bytes=-18446744073709551616", whole()),
        ("bytes=0-1,3-4", whole()),
        ("bytes=0-1,", whole()),
        ("bytes=99-,0-1", whole()),
        ("bytes=9-3", whole()),
        ("bytes=x", whole()),
        ("bytes=-", whole()),
        ("bytes=", whole()),
        ("bytes", whole()),
        ("bytes=+1-2", whole()),
        ("bytes=1--2", whole()),
        ("bytes=1-2-3", whole()),
        ("bytes=0x1-2", whole()),
        ("rows=0-1", whole()),
        ("", whole()),
    ] {
        let answer = send(&replica, "GET", "/rows.csv", &[format!("Range: {range}")]);
        let range_sent = answer.header("content-range").map(str::to_owned);
        let body = if answer.status == 416 { Vec::new() } else { answer.body.clone() };
        assert_eq!((answer.status, range_sent, body), expected, "{range}: {}", answer.head);
        let head = send(&replica, "HEAD", "/rows.csv", &[format!("Range: {range}")]);
        assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("13"), 0), "HEAD {range}");
    }
    let twice = ["Range: bytes=0-1".to_owned(), "Range: bytes=0-1".to_owned()];
    assert_eq!(send(&replica, "GET", "/rows.csv", &twice).status, 200);
}

#[test]
fn ranges_of_an_empty_file_leave_the_transfer_whole() {
    let (_bench, replica, _) = served(b"", &[("ROWLOCK_CSV_HEADER", "none")]);
    for (range, status, range_sent) in [
        ("bytes=0-", 416, Some("bytes */0")),
        ("bytes=0-0", 416, Some("bytes */0")),
        ("bytes=-0", 416, Some("bytes */0")),
        ("bytes=-5", 200, None),
        ("bytes=1-0", 200, None),
    ] {
        let answer = send(&replica, "GET", "/rows.csv", &[format!("Range: {range}")]);
        assert_eq!((answer.status, answer.header("content-range")), (status, range_sent), "{range}");
        assert!(status == 416 || answer.body.is_empty());
    }
}

#[test]
fn conditions_are_evaluated_in_the_order_of_the_rfc() {
    let (_bench, replica, etag) = served(CONTENT, &[]);
    let old = "\"old\"";
    let date = "Sat, 29 Oct 1994 19:43:31 GMT";
    let range = || "Range: bytes=0-3".to_owned();
    for (lines, status) in [
        (vec![format!("If-Match: {etag}")], 200),
        (vec![format!("If-Match: {old}, {etag}")], 200),
        (vec![format!("If-Match: {old}"), format!("If-Match: {etag}")], 200),
        (vec!["If-Match: *".to_owned()], 200),
        (vec![format!("If-Match: {old}")], 412),
        (vec![format!("If-Match: W/{etag}")], 412),
        (vec!["If-Match: ".to_owned()], 412),
        (vec![format!("If-Match: {}", etag.trim_matches('"'))], 412),
        // If-Match first, then If-None-Match, then Range with If-Range.
        (vec![format!("If-Match: {old}"), format!("If-None-Match: {etag}")], 412),
        (vec![format!("If-Match: {old}"), range()], 412),
        (vec![format!("If-Match: {etag}"), format!("If-None-Match: {etag}")], 304),
        (vec![format!("If-Match: {etag}"), range()], 206),
        (vec![format!("If-None-Match: {etag}")], 304),
        (vec![format!("If-None-Match: W/{etag}")], 304),
        (vec![format!("If-None-Match: {old}, W/{etag}")], 304),
        (vec![format!("If-None-Match: {old}"), format!("If-None-Match: {etag}")], 304),
        (vec!["If-None-Match: *".to_owned()], 304),
        (vec![format!("If-None-Match: {old}")], 200),
        (vec![format!("If-None-Match: \"a,{}\"", etag.trim_matches('"'))], 200),
        (vec![format!("If-None-Match: {etag}"), range()], 304),
        (vec![format!("If-None-Match: {etag}"), "Range: bytes=99-".to_owned()], 304),
        (vec![format!("If-None-Match: {old}"), range()], 206),
        (vec![format!("If-Range: {etag}"), range()], 206),
        (vec![format!("If-Range: W/{etag}"), range()], 200),
        (vec![format!("If-Range: {old}"), range()], 200),
        (vec![format!("If-Range: {date}"), range()], 200),
        (vec!["If-Range: x".to_owned(), range()], 200),
        (vec![format!("If-Range: {old}"), "Range: bytes=99-".to_owned()], 200),
        (vec![format!("If-Range: {etag}")], 200),
        // The file has no Last-Modified.
        (vec![format!("If-Modified-Since: {date}")], 200),
        (vec![format!("If-Unmodified-Since: {date}")], 200),
    ] {
        let answer = send(&replica, "GET", "/rows.csv", &lines);
        assert_eq!(answer.status, status, "{lines:?}: {}", answer.head);
        let refused = String::from_utf8_lossy(&answer.body).contains("\"code\":\"precondition_failed\"");
        assert_eq!(refused, status == 412, "{lines:?}");
        let head = send(&replica, "HEAD", "/rows.csv", &lines);
        assert_eq!(head.status, if status == 206 { 200 } else { status }, "HEAD {lines:?}: {}", head.head);
    }
}

#[test]
fn parts_and_304_have_the_headers_of_the_whole() {
    let rows = format!("data\n{}", "0123456789\n".repeat(50));
    let (_bench, replica, etag) = served(rows.as_bytes(), &[]);
    for path in ["/rows.csv", "/rows.csv?formula_guard=on", "/openapi.yaml", "/docs", "/docs/index.css", "/"] {
        for encoding in ["identity", "gzip"] {
            let accept = format!("Accept-Encoding: {encoding}");
            let whole = send(&replica, "GET", path, std::slice::from_ref(&accept));
            assert_eq!(whole.status, 200);
            let tag = whole.header("etag").expect("an ETag").to_owned();
            assert_eq!(tag.starts_with("w/"), encoding == "gzip", "{path}: {tag}");
            let tag = tag.replace("w/", "W/");
            let unchanged = send(&replica, "GET", path, &[accept, format!("If-None-Match: {tag}")]);
            assert_eq!((unchanged.status, unchanged.body.len()), (304, 0), "{path}");
            for name in ["etag", "cache-control", "vary"] {
                assert!(whole.header(name).is_some(), "{path}: {name}");
                assert_eq!(unchanged.header(name), whole.header(name), "{path} {encoding}: {name}");
            }
            assert_eq!(unchanged.header("content-encoding"), None);
        }
    }
    let part = send(&replica, "GET", "/rows.csv", &["Range: bytes=0-9".to_owned()]);
    assert_eq!((part.status, part.header("etag"), part.header("vary")), (206, Some(&*etag), Some("accept-encoding")));
    let small =
        send(&replica, "GET", "/rows.csv", &["Range: bytes=0-9".to_owned(), "Accept-Encoding: gzip".to_owned()]);
    assert_eq!((small.status, small.header("content-encoding"), small.header("etag")), (206, None, Some(&*etag)));
}
