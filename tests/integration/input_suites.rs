//! Bodies in the classes of two public test suites, JSONTestSuite and csv-spectrum, with texts of our own.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Bench, On, Replica, answer};

async fn post(replica: &Replica, path: &str, content_type: &str, body: &[u8]) -> (u16, Value) {
    answer(replica.request(Method::POST, path).header("content-type", content_type).body(body.to_vec())).await
}

/// Well-formed texts (RFC 8259): accepted, or refused for what they say.
const WELL_FORMED: [&str; 30] = [
    r#"{"data":"a"}"#,
    " \t\r\n{ \"data\" : \"a\" } \n",
    r#"{"data":""}"#,
    r#"{"data":["a","b"]}"#,
    r#"{"data":[1,-0,0.5,1e5,1E+2,1e-2,-1.25e3]}"#,
    r#"{"data":[123456789012345678901234567890]}"#,
    r#"{"data":[1e400]}"#,
    r#"{"data":[true,false,null]}"#,
    r#"{"data":"\"\\\/\b\f\n\r\t"}"#,
    r#"{"data":"\u00e9\u20AC\uD834\uDD1E"}"#,
    "{\"data\":\"\u{e9}\u{20ac}\u{1d11e}\u{7f}\u{2028}\u{feff}\"}",
    r#"{"data":"\u0000"}"#,
    r#"{"data":"\ud834\udd1e\uffff"}"#,
    r#"{"data":{"x":1}}"#,
    r#"{"data":[[]]}"#,
    r#"{"data":{}}"#,
    r#"{"":0}"#,
    r#"{"data":"a","":""}"#,
    r#"{"d\u0061ta":"a"}"#,
    r#"{"a":{"b":{"c":[{}]}}}"#,
    "{}",
    "[]",
    "[[],[[]]]",
    "[1,2]",
    "\"text\"",
    "42",
    "-0.1",
    "null",
    "true",
    "\u{feff}{\"data\":\"a\"}",
];

/// Texts that no JSON parser may accept.
const BROKEN: [&[u8]; 46] = [
    b"",
    b" ",
    b"{",
    b"}",
    b"[",
    b"]",
    b"{\"data\":\"a\"",
    b"{\"data\":\"a}",
    b"{\"data\":}",
    b"{\"data\"}",
    b"{\"data\" \"a\"}",
    b"{\"data\":\"a\",}",
    b"{,\"data\":\"a\"}",
    b"{\"data\":\"a\" \"sleep\":0}",
    b"{data:\"a\"}",
    b"{'data':'a'}",
    b"{\"data\":\"a\"}}",
    b"{\"data\":\"a\"} x",
    b"{\"data\":\"a\"}{}",
    b"{\"data\":[1,]}",
    b"{\"data\":[,1]}",
    b"{\"data\":[1 2]}",
    b"{\"data\":[1,,2]}",
    b"{\"data\":[01]}",
    b"{\"data\":[+1]}",
    b"{\"data\":[.5]}",
    b"{\"data\":[1.]}",
    b"{\"data\":[1e]}",
    b"{\"data\":[1e+]}",
    b"{\"data\":[0x1]}",
    b"{\"data\":[-]}",
    b"{\"data\":[NaN]}",
    b"{\"data\":[Infinity]}",
    b"{\"data\":[tru]}",
    b"{\"data\":[True]}",
    b"{\"data\":[nul]}",
    b"{\"data\":\"\\x41\"}",
    b"{\"data\":\"\\u12\"}",
    b"{\"data\":\"\\uD834\"}",
    b"{\"data\":\"a\tb\"}",
    b"{\"data\":\"a\nb\"}",
    b"{\"data\":\"\xff\"}",
    b"{\"data\":\"\xc3\x28\"}",
    b"{\"data\":\"\xed\xa0\x80\"}",
    b"/*a*/{\"data\":\"a\"}",
    b"{\"data\":\"a\"}//",
];

#[tokio::test]
async fn json_is_accepted_exactly_if_it_is_well_formed() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[("ROWLOCK_CSV_HEADER", "data,a,b,c,d,e,f")]);
    for text in WELL_FORMED {
        let (status, problem) = post(&replica, "/append", "application/json", text.as_bytes()).await;
        assert!([201, 422].contains(&status), "{text}: {status} {problem}");
    }
    let rows = bench.rows().len();
    let deep = ["[".repeat(100_000), format!("{{\"data\":{}", "[".repeat(100_000)), "{\"a\":".repeat(100_000)];
    let broken = BROKEN.iter().map(|text| text.to_vec()).chain(deep.map(String::into_bytes));
    for text in broken {
        let shown = String::from_utf8_lossy(&text[..text.len().min(40)]).into_owned();
        let (status, problem) = post(&replica, "/append", "application/json", &text).await;
        // What does not begin as an object is refused for that.
        let begins_as_object = text.trim_ascii_start().starts_with(b"{");
        let accepted: &[u16] = if begins_as_object { &[400] } else { &[400, 422] };
        assert!(accepted.contains(&status), "{shown}: {problem}");
        let array = [b"[", &*text, b"]"].concat();
        let (status, problem) = post(&replica, "/append/batch", "application/json", &array).await;
        assert!([400, 422].contains(&status), "[{shown}]: {status} {problem}");
    }
    assert_eq!(bench.rows().len(), rows, "a broken body writes nothing");
}

#[tokio::test]
async fn csv_is_read_back_as_it_was_sent() {
    let bodies: [(&str, &[&[&str]]); 13] = [
        ("a,b\n1,2\n3,4\n", &[&["1", "2"], &["3", "4"]]),
        ("a,b\r\n1,2\r\n3,4\r\n", &[&["1", "2"], &["3", "4"]]),
        ("a,b\n1,2", &[&["1", "2"]]),
        ("a,b\n\"one, two\",3\n", &[&["one, two", "3"]]),
        ("a,b\n\"\",\n,\"\"\n", &[&["", ""], &["", ""]]),
        ("a,b\r\n\"\",\r\n", &[&["", ""]]),
        ("a,b\n1,\"ha \"\"ha\"\" ha\"\n3,\"\"\"\"\n", &[&["1", "ha \"ha\" ha"], &["3", "\""]]),
        (
            "a,b\n1,\"{\"\"type\"\": \"\"Point\"\", \"\"at\"\": [102.0, 0.5]}\"\n",
            &[&["1", "{\"type\": \"Point\", \"at\": [102.0, 0.5]}"]],
        ),
        ("a,b\n\"once\nupon\",2\n3,4\n", &[&["once\nupon", "2"], &["3", "4"]]),
        ("a,b\r\n\"once\r\nupon\",2\r\n3,4\r\n", &[&["once\r\nupon", "2"], &["3", "4"]]),
        ("a,b\n1,\"ha\n\"\"ha\"\"\nha\"\n", &[&["1", "ha\n\"ha\"\nha"]]),
        ("a,b\n\u{2764},\u{296e9} \u{1f600}\n", &[&["\u{2764}", "\u{296e9} \u{1f600}"]]),
        ("b,a\n 2 ,\t1\n", &[&["\t1", " 2 "]]),
    ];
    for (body, expected) in bodies {
        let bench = Bench::new(On::Embedded);
        let replica = bench.replica(&[("ROWLOCK_CSV_HEADER", "a,b")]);
        let (status, problem) = post(&replica, "/append/batch", "text/csv", body.as_bytes()).await;
        assert_eq!(status, 201, "{body:?}: {problem}");
        let (_, page) = answer(replica.request(Method::GET, "/rows?from=0")).await;
        let cells = |row: &Value| json!([row["fields"]["a"], row["fields"]["b"]]);
        let read: Vec<_> = page["rows"].as_array().expect("rows").iter().map(cells).collect();
        assert_eq!(json!(read), json!(expected), "{body:?}");
        assert_eq!(json!(bench.records()[1..]), json!(expected), "{body:?}");
    }
}
