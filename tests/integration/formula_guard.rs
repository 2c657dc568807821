//! Cells that a spreadsheet would run as formulas are guarded when they are appended, or when they are downloaded.

use std::{fs, io::Write, process::Command, process::Stdio};

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Bench, On, Replica, answer, header};

const GUARDED: [(&str, &str); 2] =
    [("ROWLOCK_FORMULA_GUARD", "on"), ("ROWLOCK_CSV_HEADER", "timestamp,replica,token,key,data,more")];

/// Cells that a spreadsheet would run.
const FORMULAS: [&str; 23] = [
    "=1+1",
    "=HYPERLINK(\"http://x\",\"y\")",
    "=cmd|' /C calc'!A0",
    "=",
    "+1+1",
    "-1+1",
    "-A1",
    "-1E",
    "-1,5",
    "+49 30 1",
    "@SUM(A1)",
    "\t=1",
    "\t",
    "\r=1",
    "\n=1",
    "\r\n",
    "  =1+1",
    " -x\n=1",
    "\u{ff1d}1+1",
    "\u{ff0b}1",
    "=\"\"\"\n,\"",
    "\u{feff}=1+1",
    " \u{feff}@x",
];
/// Cells that it would not run.
const HARMLESS: [&str; 21] = [
    "",
    " ",
    "x",
    "1-1",
    "a=b",
    "'=1",
    "\"=1",
    "a\n=1",
    "a,=1",
    "a\t=1",
    "-",
    "-1",
    "+1",
    "-12.5",
    "-.5e-10",
    " -7",
    "\u{ff0f}",
    "2026-11-24T10:51:10.423Z",
    "\u{feff}",
    "\u{feff}x",
    "\u{feff}-1",
];

fn all() -> impl Iterator<Item = &'static str> + Clone {
    FORMULAS.into_iter().chain(HARMLESS)
}

fn guarded(cell: &str) -> String {
    let guard = if FORMULAS.contains(&cell) { "'" } else { "" };
    format!("{guard}{cell}")
}

/// The data cells of all rows, as Python reads them.
fn cells(bench: &Bench) -> Vec<[String; 2]> {
    bench.rows().iter().map(|row| ["data", "more"].map(|name| row[name].clone())).collect()
}

async fn post(replica: &Replica, path: &str, content_type: &str, body: impl Into<reqwest::Body>) {
    let request = replica.request(Method::POST, path).header("content-type", content_type);
    let (status, body) = answer(request.body(body)).await;
    assert_eq!(status, 201, "{body}");
}

fn table(header: &[&str], rows: impl Iterator<Item = [String; 2]>) -> Vec<u8> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(header).expect("written");
    rows.for_each(|row| writer.write_record(row).expect("written"));
    writer.into_inner().expect("written")
}

#[tokio::test]
async fn formulas_are_guarded_in_every_kind_of_body() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&GUARDED);
    let mut expected = Vec::new();
    for cell in all() {
        let form = form_of(cell);
        post(&replica, "/append", "application/x-www-form-urlencoded", form).await;
        expected.push([guarded(cell), String::new()]);
        for data in [json!(cell), json!([cell, "x"]), json!({"more": cell}), json!([cell, cell])] {
            post(&replica, "/append", "application/json", json!({"data": data}).to_string()).await;
            expected.push(match &data {
                Value::String(_) => [guarded(cell), String::new()],
                Value::Object(_) => [String::new(), guarded(cell)],
                _ if data[1] == "x" => [guarded(cell), "x".to_owned()],
                _ => [guarded(cell), guarded(cell)],
            });
        }
    }
    let rows = || all().zip(all().skip(1)).map(|(a, b)| [a.to_owned(), b.to_owned()]);
    let lines: Vec<_> = rows().map(|row| json!(row).to_string() + "\n").collect();
    for (content_type, body) in [
        ("text/csv", table(&["data", "more"], rows())),
        ("text/csv; header=absent", table(&["x", "y"], rows())),
        ("application/x-ndjson", lines.concat().into_bytes()),
        ("application/json", json!(rows().collect::<Vec<_>>()).to_string().into_bytes()),
    ] {
        post(&replica, "/append/batch", content_type, body).await;
        if content_type.ends_with("absent") {
            expected.push(["x", "y"].map(str::to_owned));
        }
        expected.extend(rows().map(|row| row.map(|cell| guarded(&cell))));
    }
    assert_eq!(cells(&bench), expected);
}

/// The cell as a form body.
fn form_of(cell: &str) -> String {
    let encoded: String = cell.bytes().map(|byte| format!("%{byte:02X}")).collect();
    format!("data={encoded}")
}

#[test]
fn append_command_guards_formulas() {
    let bench = Bench::new(On::Embedded);
    for args in [&["append", "--data", "=1+1"][..], &["append", "--data", "-1.5", "--formula-guard", "off"]] {
        assert!(bench.run(args, &GUARDED).status.success());
    }
    let mut lines = bench.command(&GUARDED[1..]);
    let mut child = lines
        .args(["append", "--formula-guard", "on", "--data", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("runs");
    child.stdin.take().expect("piped").write_all(b"@x\n-1\n=2\n").expect("written");
    assert!(child.wait().expect("ends").success());
    let data: Vec<_> = cells(&bench).into_iter().map(|[data, _]| data).collect();
    assert_eq!(data, ["'=1+1", "-1.5", "'@x", "-1", "'=2"]);
}

#[tokio::test]
async fn service_columns_are_not_guarded_except_client_key() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[&GUARDED[..], &[("ROWLOCK_REPLICA", "-r1")]].concat());
    for key in ["=k", "'=k", "-1", "k"] {
        let response = replica.post(&json!({"data": "x"})).header("idempotency-key", key).send().await;
        assert_eq!(response.expect("an answer").status(), StatusCode::CREATED);
    }
    let rows = bench.rows();
    let column = |name: &str| rows.iter().map(|row| row[name].clone()).collect::<Vec<_>>();
    assert_eq!(
        (column("replica"), column("token")),
        (vec!["-r1".to_owned(); 4], ["1", "2", "3", "4"].map(String::from).to_vec())
    );
    assert_eq!(column("key"), ["'=k", "''=k", "-1", "k"], "two keys are never written alike");
    assert!(column("timestamp").iter().all(|timestamp| timestamp.starts_with("20")));
    let checked = bench.run(&["check"], &GUARDED);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

#[tokio::test]
async fn key_is_replayed_whether_guard_is_on_or_off() {
    let bench = Bench::new(On::Embedded);
    let header = GUARDED[1];
    let replicas = [&GUARDED[..], &[header]].map(|settings| bench.replica(settings));
    let append = async |replica: &Replica, key: &str, data: Value| {
        let response = replica.post(&json!({ "data": data })).header("idempotency-key", key).send().await;
        let response = response.expect("an answer");
        (response.status().as_u16(), response.headers().contains_key("idempotent-replayed"))
    };
    for (key, first) in [("a", 0), ("b", 1)] {
        let data = json!(["=1", "\"\n-x"]);
        assert_eq!(append(&replicas[first], key, data.clone()).await, (201, false));
        assert_eq!(append(&replicas[first], key, data.clone()).await, (201, true));
        assert_eq!(append(&replicas[1 - first], key, data).await, (201, true));
        // Data that is merely equal to the guarded cell is other data.
        assert_eq!(append(&replicas[first], key, json!(["'=1", "\"\n-x"])).await.0, 422);
    }
    let both = ["'=1", "=1"].map(|data| [data.to_owned(), "\"\n-x".to_owned()]);
    assert_eq!(cells(&bench), both);
}

#[tokio::test]
async fn cells_are_unchanged_without_guard() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&GUARDED[1..]);
    for cell in all() {
        replica.append_text(cell).await;
    }
    let data: Vec<_> = cells(&bench).into_iter().map(|[data, _]| data).collect();
    assert_eq!(data, all().collect::<Vec<_>>());
}

#[tokio::test]
async fn download_guards_each_cell_across_chunk_boundaries() {
    // Includes text that Rowlock would encode differently, and is larger than a chunk, so that cells cross chunk boundaries.
    let mut file =
        "\u{feff}\"=a\",token,more\r\n=1,1,\"-1\"\r\n\"-1\"\"\",1,\"-1\"x\r\n\"a\n=1\",,-\r\n\r\n".as_bytes().to_vec();
    let mut expected =
        "\u{feff}\"'=a\",token,more\r\n'=1,1,\"-1\"\r\n\"'-1\"\"\",1,\"'-1\"x\r\n\"a\n=1\",,-\r\n\r\n".to_owned();
    for cell in all().cycle().take(60_000) {
        let row = |cell: &str| {
            let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(Vec::new());
            writer.write_record([cell, "1", cell]).expect("written");
            writer.into_inner().expect("written")
        };
        file.extend(row(cell));
        expected += std::str::from_utf8(&row(&guarded(cell))).expect("UTF-8");
    }
    assert!(file.len() > 3 * (256 << 10));
    let bench = Bench::with_file(On::Embedded, &file);
    let replica = bench.replica(&[]);
    let answered = replica.get("/rows.csv?formula_guard=on", &[]).await;
    assert_eq!(header(&answered, "content-type"), "text/csv; charset=utf-8; header=present");
    assert!(answered.text().await.expect("text") == expected);
    assert_eq!(replica.get("/rows.csv", &[]).await.bytes().await.expect("bytes"), file, "off unless asked for");
    assert_eq!(replica.get("/rows.csv?formula_guard=off", &[]).await.bytes().await.expect("bytes"), file);
}

#[tokio::test]
async fn guarded_download_has_own_etag_and_no_ranges() {
    const GUARDED: &str = "/rows.csv?formula_guard=on";
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[("ROWLOCK_CSV_HEADER", "token,data")]);
    for n in 0..100 {
        replica.append_text(&format!("={n}")).await;
    }
    let content = bench.content().replace(",=", ",'=");
    let plain = header(&replica.get("/rows.csv", &[]).await, "etag").to_owned();
    let whole = replica.get(GUARDED, &[]).await;
    let etag = header(&whole, "etag").to_owned();
    assert!(etag != plain && etag.starts_with('"'), "{etag}");
    assert_eq!((header(&whole, "accept-ranges"), header(&whole, "content-length")), ("none", ""));
    assert_eq!(header(&whole, "cache-control"), "no-cache");
    assert_eq!(whole.text().await.expect("text"), content);

    assert_eq!(replica.get(GUARDED, &[("if-none-match", &etag)]).await.status(), StatusCode::NOT_MODIFIED);
    assert_eq!(replica.get(GUARDED, &[("if-none-match", &plain)]).await.status(), StatusCode::OK);
    assert_eq!(replica.get("/rows.csv", &[("if-none-match", &etag)]).await.status(), StatusCode::OK);
    for range in
        [&[("range", "bytes=0-9")][..], &[("range", "bytes=0-9"), ("if-range", &etag)], &[("range", "bytes=9999999-")]]
    {
        let ranged = replica.get(GUARDED, range).await;
        assert_eq!((ranged.status(), ranged.text().await.expect("text")), (StatusCode::OK, content.clone()));
    }
    let head = replica.request(Method::HEAD, GUARDED).send().await.expect("an answer");
    assert_eq!((head.status(), header(&head, "etag"), header(&head, "content-length")), (StatusCode::OK, &*etag, ""));

    let packed = replica.get(GUARDED, &[("accept-encoding", "gzip")]).await;
    assert_eq!((header(&packed, "content-encoding"), header(&packed, "etag")), ("gzip", &*format!("W/{etag}")));
    let path = bench.folder().join("rows.csv.gz");
    fs::write(&path, packed.bytes().await.expect("bytes")).expect("writable");
    let script = "import gzip,sys; sys.stdout.buffer.write(gzip.open(sys.argv[1]).read())";
    let unpacked = Command::new("python3").args(["-c", script]).arg(&path).output().expect("python3 runs");
    assert_eq!(unpacked.stdout, content.as_bytes());

    for (query, field) in [
        ("formula_guard=yes", "formula_guard"),
        ("formula_guard=", "formula_guard"),
        ("formula_guard", "formula_guard"),
        ("formula_guard=ON", "formula_guard"),
        ("formula_guard=on&formula_guard=on", "formula_guard"),
        ("formulas=on", "formulas"),
    ] {
        let (status, problem) = answer(replica.request(Method::GET, &format!("/rows.csv?{query}"))).await;
        assert_eq!(
            (status, &problem["code"], &problem["field"]),
            (422, &json!("invalid_field"), &json!(field)),
            "{query}"
        );
    }
}
