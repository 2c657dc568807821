//! Reading rows and the file from any replica: whole rows only.

use std::{fs, io::BufRead, process::Command};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Bench, On, Replica, answer, header, python_tool};

const SETTINGS: [(&str, &str); 1] = [("ROWLOCK_CSV_HEADER", "token,data,more")];

async fn rows(replica: &Replica, query: &str) -> (u16, Value) {
    answer(replica.request(Method::GET, &format!("/rows{query}"))).await
}

/// Appends rows of various lengths with quotes and line breaks, and returns their texts and offsets in order.
async fn filled(bench: &Bench, replica: &Replica, count: usize) -> Vec<(String, u64)> {
    let mut all = Vec::new();
    for n in 0..count {
        let text = format!("{n}: \"quoted\",\r\nand\nbroken{}", "x".repeat(n * 37 % 5000));
        let ack = replica.append_text(&text).await;
        all.push((text, ack["offset"].as_u64().expect("an offset")));
    }
    assert_eq!(bench.rows().len(), count);
    all
}

fn texts_and_offsets(page: &Value) -> Vec<(String, u64)> {
    let row = |row: &Value| {
        let fields = row["fields"].as_object().expect("fields");
        assert_eq!(fields.keys().collect::<Vec<_>>().len(), 3);
        (fields["data"].as_str().expect("text").to_owned(), row["offset"].as_u64().expect("an offset"))
    };
    page["rows"].as_array().expect("rows").iter().map(row).collect()
}

#[tokio::test]
async fn rows_are_read_by_page_and_by_last() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&SETTINGS);
    assert_eq!(rows(&replica, "").await, (200, json!({"rows": [], "next": null})));
    let all = filled(&bench, &replica, 120).await;
    for limit in [1, 7, 119, 120, 1000] {
        let (mut read, mut next) = (Vec::new(), Some(0));
        while let Some(from) = next {
            let (status, page) = rows(&replica, &format!("?from={from}&limit={limit}")).await;
            assert_eq!(status, 200, "{page}");
            let more = texts_and_offsets(&page);
            assert!((1..=limit).contains(&more.len()));
            read.extend(more);
            next = page["next"].as_u64();
        }
        assert_eq!(read, all, "limit {limit}");
    }
    for last in [1, 3, 50, 119, 120, 121, 10_000] {
        let (_, page) = rows(&replica, &format!("?last={last}")).await;
        assert_eq!(texts_and_offsets(&page), all[all.len().saturating_sub(last)..], "last {last}");
        assert_eq!(page["next"], Value::Null);
    }
    assert_eq!(texts_and_offsets(&rows(&replica, "").await.1), all[70..]);
    let end = bench.content().len();
    assert_eq!(rows(&replica, &format!("?from={end}")).await, (200, json!({"rows": [], "next": null})));
}

#[tokio::test]
async fn only_offsets_of_rows_are_accepted() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&SETTINGS);
    let all = filled(&bench, &replica, 12).await;
    let end = bench.content().len() as u64;
    for offset in (1..end + 3).step_by(3).chain(all.iter().map(|(_, offset)| *offset)) {
        let (status, page) = rows(&replica, &format!("?from={offset}&limit=1")).await;
        let is_start = offset == end || all.iter().any(|(_, start)| *start == offset);
        assert_eq!(status, if is_start { 200 } else { 422 }, "{offset}: {page}");
        assert!(is_start || page["code"] == "not_a_row_start" && page["field"] == "from", "{page}");
    }
}

#[tokio::test]
async fn row_is_found_at_its_location_by_any_replica() {
    let bench = Bench::new(On::Redis);
    let replicas = [(); 3].map(|()| bench.replica(&SETTINGS));
    for n in 0..60 {
        let text = format!("row {n}");
        let response = replicas[n % 3].post(&json!({"data": [text, "x"]})).send().await.expect("an answer");
        let location = header(&response, "location").to_owned();
        let (status, page) = answer(replicas[(n + 1) % 3].request(Method::GET, &location)).await;
        assert_eq!(status, 200, "{location}: {page}");
        assert_eq!(page["rows"][0]["fields"], json!({"token": (n + 1).to_string(), "data": text, "more": "x"}));
    }
}

#[tokio::test]
async fn rows_are_read_while_a_stopped_process_has_the_os_lock() {
    let bench = Bench::new(On::Redis);
    let (writer, other) = (bench.replica(&SETTINGS), bench.replica(&SETTINGS));
    writer.append_text("one").await;
    assert_eq!(rows(&other, "?last=1").await.0, 200);
    writer.append_text("two").await;
    let offset = &writer.append_text("three").await["offset"];
    let journal = fs::File::open(format!("{}.journal", bench.csv.display())).expect("a journal");
    journal.lock().expect("locked, as by a stopped process");
    for (replica, query) in [(&other, format!("?from={offset}")), (&writer, "?last=1".to_owned())] {
        let (status, page) = rows(replica, &query).await;
        assert_eq!((status, texts_and_offsets(&page)[0].0.as_str()), (200, "three"), "{page}");
    }
}

#[tokio::test]
async fn wrong_parameter_is_refused_by_its_name() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&SETTINGS);
    replica.append_text("x").await;
    for (query, field) in [
        ("?last=0", "last"),
        ("?last=-1", "last"),
        ("?last=10001", "last"),
        ("?last=1.5", "last"),
        ("?last=x", "last"),
        ("?last=", "last"),
        ("?last=1&last=2", "last"),
        ("?last=1&from=0", "last"),
        ("?last=99999999999999999999", "last"),
        ("?limit=1", "limit"),
        ("?from=0&limit=0", "limit"),
        ("?from=0&limit=10001", "limit"),
        ("?from=0&limit=1e3", "limit"),
        ("?from=", "from"),
        ("?from=-1", "from"),
        ("?from=+16", "from"),
        ("?from=0x10", "from"),
        ("?from=18446744073709551616", "from"),
        ("?from=18446744073709551615", "from"),
        ("?from=1", "from"),
        ("?first=1", "first"),
        ("?LAST=1", "LAST"),
    ] {
        let (status, problem) = rows(&replica, query).await;
        assert_eq!(
            (status, &problem["field"], &problem["outcome"]),
            (422, &json!(field), &json!("not_written")),
            "{query}: {problem}"
        );
    }
    for method in [Method::POST, Method::PUT, Method::DELETE] {
        for path in ["/rows", "/rows.csv"] {
            let response = replica.request(method.clone(), path).send().await.expect("an answer");
            assert_eq!((response.status(), header(&response, "allow")), (StatusCode::METHOD_NOT_ALLOWED, "GET,HEAD"));
        }
    }
}

#[tokio::test]
async fn headerless_file_is_read_as_arrays() {
    let bench = Bench::with_file(On::Embedded, b"1,2\n\"a\nb\",\n\n\xff,x,y\n");
    let replica = bench.replica(&[("ROWLOCK_CSV_HEADER", "none")]);
    let (_, page) = rows(&replica, "?from=0").await;
    let row = |offset, fields: Value| json!({"offset": offset, "fields": fields});
    let expected = [row(0, json!(["1", "2"])), row(4, json!(["a\nb", ""])), row(12, json!(["\u{fffd}", "x", "y"]))];
    assert_eq!(page, json!({"rows": expected, "next": null}));
    assert_eq!(header(&replica.get("/rows.csv", &[]).await, "content-type"), "text/csv; charset=utf-8; header=absent");
}

#[tokio::test]
async fn page_is_bounded_by_bytes_as_well_as_rows() {
    const ROW_BYTES: usize = 900_001;
    let row = format!("{}\n", "x".repeat(ROW_BYTES - 1));
    // Blank lines are no rows.
    let bench = Bench::with_file(On::Embedded, format!("data\n{}\n\n{}", row.repeat(12), row.repeat(12)).as_bytes());
    let replica = bench.replica(&[]);
    let offsets = |page: &Value| -> Vec<u64> {
        let rows = page["rows"].as_array().expect("rows").iter();
        rows.map(|row| row["offset"].as_u64().expect("an offset")).collect()
    };
    let all: Vec<u64> = (0..24_u64).map(|n| 5 + n * ROW_BYTES as u64 + if n < 12 { 0 } else { 2 }).collect();
    for limit in [1, 5, 10_000] {
        let (mut read, mut next) = (Vec::new(), Some(0));
        while let Some(from) = next {
            let (_, page) = rows(&replica, &format!("?from={from}&limit={limit}")).await;
            // 8 MiB and the row that exceeds them.
            assert!((1..=10.min(limit)).contains(&offsets(&page).len()), "{limit}");
            read.extend(offsets(&page));
            next = page["next"].as_u64();
        }
        assert_eq!(read, all, "limit {limit}");
    }
    for (last, expected) in [(1, 1), (9, 9), (10, 9), (10_000, 9)] {
        let (_, page) = rows(&replica, &format!("?last={last}")).await;
        assert_eq!((offsets(&page), &page["next"]), (all[24 - expected..].to_vec(), &Value::Null), "last {last}");
    }
    let bench = Bench::with_file(On::Embedded, format!("data\na\n\"{}\"\n", row.repeat(12)).as_bytes());
    let (_, page) = rows(&bench.replica(&[]), "?last=5").await;
    assert_eq!(offsets(&page), [7], "one row, however large");
    assert_eq!(page["rows"][0]["fields"]["data"].as_str().map(str::len), Some(12 * ROW_BYTES));
}

#[tokio::test]
async fn file_is_sent_whole_by_range_or_not_modified() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&SETTINGS);
    filled(&bench, &replica, 200).await;
    let content = bench.content();
    let whole = replica.get("/rows.csv", &[]).await;
    assert_eq!(header(&whole, "content-type"), "text/csv; charset=utf-8; header=present");
    assert_eq!(header(&whole, "content-length"), content.len().to_string());
    assert_eq!((header(&whole, "accept-ranges"), header(&whole, "cache-control")), ("bytes", "no-cache"));
    let etag = header(&whole, "etag").to_owned();
    assert_eq!(whole.text().await.expect("text"), content);

    let len = content.len();
    for (range, from, to) in [
        ("bytes=0-9".to_owned(), 0, 10),
        ("bytes=10-10".to_owned(), 10, 11),
        (format!("bytes={}-", len - 5), len - 5, len),
        ("bytes=-7".to_owned(), len - 7, len),
        (format!("bytes=5-{}", len * 2), 5, len),
    ] {
        for condition in [None, Some(("if-range", &*etag))] {
            let headers: Vec<_> = [("range", &*range)].into_iter().chain(condition).collect();
            let part = replica.get("/rows.csv", &headers).await;
            assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT, "{range}");
            assert_eq!(header(&part, "content-range"), format!("bytes {from}-{}/{len}", to - 1));
            assert_eq!(part.text().await.expect("text"), content[from..to], "{range}");
        }
    }
    let refused = replica.get("/rows.csv", &[("range", &format!("bytes={len}-"))]).await;
    assert_eq!(refused.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(header(&refused, "content-range"), format!("bytes */{len}"));
    assert_eq!(refused.json::<Value>().await.expect("JSON")["code"], "range_not_satisfiable");
    for headers in [
        [("range", "bytes=0-1,5-6"), ("x", "")],
        [("range", "bytes=0-1"), ("if-range", "\"other\"")],
        [("range", "rows=0-1"), ("x", "")],
    ] {
        let whole = replica.get("/rows.csv", &headers).await;
        assert_eq!(
            (whole.status(), header(&whole, "content-length")),
            (StatusCode::OK, &*len.to_string()),
            "{headers:?}"
        );
    }
    for tag in [etag.clone(), format!("\"a\", W/{etag}"), "*".to_owned()] {
        let unchanged = replica.get("/rows.csv", &[("if-none-match", &tag)]).await;
        assert_eq!((unchanged.status(), header(&unchanged, "etag")), (StatusCode::NOT_MODIFIED, &*etag));
    }
    let head = replica.request(Method::HEAD, "/rows.csv").send().await.expect("an answer");
    assert_eq!((header(&head, "content-length"), header(&head, "etag")), (&*len.to_string(), &*etag));
    replica.append_text("one more").await;
    let grown =
        replica.get("/rows.csv", &[("if-none-match", &etag), ("if-range", &etag), ("range", "bytes=0-1")]).await;
    assert_eq!((grown.status(), grown.text().await.expect("text")), (StatusCode::OK, bench.content()));
}

#[tokio::test]
async fn file_is_compressed_on_request() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&SETTINGS);
    filled(&bench, &replica, 50).await;
    let plain = replica.get("/rows.csv", &[]).await;
    let small = replica.get("/rows.csv", &[("accept-encoding", "gzip")]).await;
    assert_eq!((header(&small, "content-encoding"), header(&small, "vary")), ("gzip", "accept-encoding"));
    assert_eq!(
        header(&small, "etag"),
        format!("W/{}", header(&plain, "etag")),
        "the compressed bytes have another tag"
    );
    let packed = small.bytes().await.expect("bytes");
    assert!(packed.len() < bench.content().len() / 2);
    let path = bench.folder().join("rows.csv.gz");
    fs::write(&path, packed).expect("writable");
    let output = Command::new("python3")
        .args(["-c", "import gzip,sys; sys.stdout.buffer.write(gzip.open(sys.argv[1]).read())"])
        .arg(&path)
        .output();
    assert_eq!(output.expect("python3 runs").stdout, bench.content().as_bytes());
    let part = replica.get("/rows.csv", &[("accept-encoding", "gzip"), ("range", "bytes=0-999")]).await;
    assert_eq!((header(&part, "content-encoding"), header(&part, "content-length")), ("", "1000"));
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_during_writes_end_with_a_whole_row() {
    let bench = Bench::new(On::Redis);
    let replicas = [(); 2].map(|()| bench.replica(&SETTINGS));
    let writer = async {
        for n in 0..300 {
            replicas[n % 2].append_text(&format!("\"{n}\n\"")).await;
        }
    };
    let reader = async {
        let mut before = Vec::new();
        for _ in 0..60 {
            let now = replicas[0].get("/rows.csv", &[]).await.bytes().await.expect("bytes").to_vec();
            assert!(now.starts_with(&before), "each answer begins with the earlier one");
            let mut reader = csv::ReaderBuilder::new().from_reader(&now[..]);
            assert!(now.ends_with(b"\n") && reader.records().all(|row| row.is_ok_and(|row| row.len() == 3)));
            before = now;
            let (status, page) = rows(&replicas[1], "?last=5").await;
            assert_eq!(status, 200, "{page}");
        }
    };
    tokio::join!(writer, reader);
    assert_eq!(texts_and_offsets(&rows(&replicas[0], "?last=10000").await.1).len(), 300);
}

#[tokio::test]
async fn rows_are_found_after_a_rebuild() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&SETTINGS);
    filled(&bench, &replica, 20).await;
    rows(&replica, "?last=1").await;
    // A foreign writer dies within a line; the incomplete line is truncated before the next row.
    let whole = bench.content();
    let torn = format!("{whole}9,\"torn");
    fs::write(&bench.csv, &torn).expect("writable");
    assert_eq!(texts_and_offsets(&rows(&replica, "?last=100").await.1).len(), 20, "an incomplete row is not a row");
    assert_eq!(
        replica.get("/rows.csv", &[]).await.text().await.expect("text"),
        whole,
        "an incomplete row is not part of the file"
    );
    let ack = replica.append_text("after").await;
    let (_, page) = rows(&replica, &format!("?from={}", ack["offset"])).await;
    assert_eq!(texts_and_offsets(&page)[0].0, "after");
    assert_eq!(texts_and_offsets(&rows(&replica, "?last=100").await.1).len(), 21);
}

#[tokio::test(flavor = "multi_thread")]
async fn pandas_reads_the_file_by_url() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&SETTINGS);
    let cells = ["plain", "say \"hi\", twice", "two\nlines", "\"\"", " Tromsø 🚣 , ", "1.10", "=1+1", "x\"\n\",\"y"];
    for cell in cells {
        assert_eq!(replica.append(json!({"data": [cell, "more"]})).await.0, 201);
    }
    let script = "import json, pandas, sys
for headers in ({}, {'Accept-Encoding': 'gzip'}):
    table = pandas.read_csv(sys.argv[1], storage_options=headers, dtype={'data': str})
    print(json.dumps([list(table.columns), table['token'].tolist(), table['data'].tolist(), table['more'].tolist()]))";
    let output =
        python_tool("python").args(["-c", script, &format!("{}/rows.csv", replica.url)]).output().expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tokens: Vec<_> = (1..=cells.len()).collect();
    let expected = json!([["token", "data", "more"], tokens, cells, vec!["more"; cells.len()]]);
    let tables: Vec<Value> =
        output.stdout.lines().map(|line| serde_json::from_str(&line.expect("UTF-8")).expect("JSON")).collect();
    assert_eq!(tables, [expected.clone(), expected]);
}
