//! The header is the schema: new files, existing files, files with an open last line, unusable files.

use std::{fs, process::Command};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Bench, On, Replica, answer, until_free};

/// The content of the file after a replica was started on `content` and appended these rows.
async fn after(content: &[u8], header: &str, rows: &[&str]) -> String {
    let bench = Bench::with_file(On::Embedded, content);
    let replica = bench.replica(&[("ROWLOCK_CSV_HEADER", header), ("ROWLOCK_REPLICA", "r1")]);
    for row in rows {
        replica.append_text(row).await;
    }
    bench.content()
}

#[tokio::test]
async fn new_or_empty_file_gets_configured_header() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[("ROWLOCK_CSV_HEADER", "data,\"a, b\",token")]);
    assert_eq!(bench.content(), "data,\"a, b\",token\n");
    replica.append_text("x").await;
    assert_eq!(bench.content(), "data,\"a, b\",token\nx,,1\n");
    assert_eq!(after(b"", "token,data", &["x"]).await, "token,data\n1,x\n");
    assert_eq!(after(b"\xef\xbb\xbf", "token,data", &["x"]).await, "\u{feff}token,data\n1,x\n");
    assert_eq!(after(b"", "\u{feff}token,data", &["x"]).await, "token,data\n1,x\n", "the BOM of a copied header");
}

#[tokio::test]
async fn leading_bom_of_a_cell_is_text_in_file_and_rows() {
    // A BOM begins the file; the cells with U+FEFF were appended by other programs.
    let old = "\u{feff}data,more\n\u{feff}\"a,\u{feff}\n\u{feff},\"b\nc\"\n";
    let bench = Bench::with_file(On::Embedded, old.as_bytes());
    let replica = bench.replica(&[]);
    let mut expected = vec![json!(["\u{feff}\"a", "\u{feff}"]), json!(["\u{feff}", "b\nc"])];
    let mut content = old.to_owned();
    for cell in ["\u{feff}", "\u{feff}x", "\u{feff}\"y\n\""] {
        let data = json!([cell, cell]);
        let quoted = format!("\"{}\"", cell.replace('"', "\"\""));
        let line = format!("{data}\n");
        // The BOM in front of the last body is no part of its first cell.
        for (path, content_type, body) in [
            ("/append", "application/json", json!({"data": data}).to_string()),
            ("/append/batch", "application/x-ndjson", line),
            ("/append/batch", "text/csv", format!("data,more\n{quoted},{quoted}\n")),
            ("/append/batch", "text/csv; header=absent", format!("\u{feff}{quoted},{quoted}\n")),
        ] {
            let request = replica.request(Method::POST, path).header("content-type", content_type).body(body);
            assert_eq!(answer(request).await.0, 201, "{content_type}");
            expected.push(data.clone());
            content += &format!("{quoted},{quoted}\n");
        }
    }
    assert_eq!(bench.content(), content);
    let (_, page) = answer(replica.request(Method::GET, "/rows?from=0")).await;
    let cells = |row: &Value| json!([row["fields"]["data"], row["fields"]["more"]]);
    assert_eq!(page["rows"].as_array().expect("rows").iter().map(cells).collect::<Vec<_>>(), expected);
    let report = bench.run(&["check"], &[]);
    assert!(report.status.success(), "{report:?}");
}

#[tokio::test]
async fn first_cell_of_headerless_file_is_not_a_bom() {
    let bench = Bench::with_file(On::Embedded, b"");
    for n in 1..=2 {
        // The second replica reads the file anew.
        let replica = bench.replica(&[("ROWLOCK_CSV_HEADER", "none")]);
        replica.append_text("\u{feff}x").await;
        assert_eq!(bench.content(), "\"\u{feff}x\"\n".repeat(n));
        let (_, page) = answer(replica.request(Method::GET, "/rows?from=0")).await;
        assert_eq!(page["rows"][0]["fields"], json!(["\u{feff}x"]), "{page}");
        assert_eq!(page["rows"][0]["offset"], 0);
    }
}

#[tokio::test]
async fn replicas_started_at_once_write_one_header() {
    let bench = Bench::new(On::Embedded);
    let children: Vec<_> =
        (0..8).map(|n| bench.command(&[]).args(["append", "--data", &n.to_string()]).spawn().expect("runs")).collect();
    for mut child in children {
        assert!(child.wait().expect("ends").success());
    }
    let mut data: Vec<_> = bench.rows().iter().map(|row| row["data"].clone()).collect();
    data.sort();
    assert_eq!(data, ["0", "1", "2", "3", "4", "5", "6", "7"]);
}

#[tokio::test]
async fn existing_header_decides_columns_and_order() {
    assert_eq!(after(b"data,replica\nold,r0\n", "timestamp,data", &["new"]).await, "data,replica\nold,r0\nnew,r1\n");
    assert_eq!(after(b"b,a\n", "timestamp,data", &["new"]).await, "b,a\nnew,\n");
    assert_eq!(after(b"\xef\xbb\xbfdata,token\n", "x", &["new"]).await, "\u{feff}data,token\nnew,1\n");
    assert_eq!(after(b"token,data\r\n0,old\r\n", "x", &["new"]).await, "token,data\r\n0,old\r\n1,new\r\n");
    assert_eq!(after(b"token,data,key\n", "x", &["new"]).await, "token,data,key\n1,new,\n");
}

#[tokio::test]
async fn file_of_python_predecessor_is_continued() {
    let old =
        "Timestamp,ClientID,LockToken,ActionType,Data\n2024-05-01 10:00:00,client-1,3f2a,append,\"hello, world\"\n";
    let bench = Bench::with_file(On::Redis, old.as_bytes());
    let replica = bench.replica(&[("ROWLOCK_REPLICA", "r1")]);
    replica.append_text("and, on").await;
    assert!(bench.content().starts_with(old));
    let rows = bench.rows();
    let new = &rows[1];
    let cells = ["ClientID", "LockToken", "ActionType", "Data"].map(|name| new[name].as_str());
    assert_eq!(cells, ["r1", "1", "append", "and, on"]);
    assert!(new["Timestamp"].ends_with('Z') && new["Timestamp"].len() == "2026-01-01T00:00:00.000Z".len(), "{new:?}");
}

#[tokio::test]
async fn headerless_file_is_as_wide_as_its_first_row() {
    assert_eq!(after(b"a,b,c\n", "none", &["x"]).await, "a,b,c\nx,,\n");
    let bench = Bench::new(On::Redis);
    let settings = [("ROWLOCK_CSV_HEADER", "none"), ("ROWLOCK_LOCK_TTL", "60s")];
    let replicas = [(); 2].map(|()| bench.replica(&settings));
    let append = async |replica: &Replica, data| replica.append(json!({ "data": data })).await;
    assert_eq!(append(&replicas[0], json!(["1", ""])).await.0, 201);
    assert_eq!(append(&replicas[1], json!([""])).await.0, 201);
    for replica in &replicas {
        let (status, problem) = append(replica, json!(["1", "2", "3"])).await;
        assert_eq!((status, &problem["code"], &problem["field"]), (422, &json!("invalid_field"), &json!("data")));
        assert_eq!(append(replica, json!({"a": 1})).await.0, 422);
    }
    // A refused row releases the lock, even with `skip_release`.
    assert_eq!(replicas[0].append(json!({"data": ["1", "2", "3"], "skip_release": true})).await.0, 422);
    until_free(&bench).await;
    assert_eq!(bench.content(), "1,\n\"\",\n");
}

#[tokio::test]
async fn file_without_data_column_refuses_rows() {
    let bench = Bench::with_file(On::Embedded, b"token,timestamp\n");
    let replica = bench.replica(&[]);
    for data in [json!("x"), json!([]), json!({})] {
        assert_eq!(replica.append(json!({ "data": data })).await.0, 422);
    }
    assert_eq!(bench.content(), "token,timestamp\n");
}

#[tokio::test]
async fn open_last_line_is_closed_if_it_is_a_whole_row() {
    assert_eq!(after(b"token,data\n0,old", "x", &["new"]).await, "token,data\n0,old\n1,new\n");
    assert_eq!(after(b"token,data", "x", &["new"]).await, "token,data\n1,new\n");
    assert_eq!(after(b"token,data\r\n0,old\r", "x", &["new"]).await, "token,data\r\n0,old\r\n1,new\r\n");
    assert_eq!(after(b"token,data\n0,\"two\nlines\"", "x", &["new"]).await, "token,data\n0,\"two\nlines\"\n1,new\n");
}

#[tokio::test]
async fn incomplete_last_line_is_quarantined() {
    for (incomplete, why) in [("0", "too few cells"), ("0,\"tw", "an open quote")] {
        let bench = Bench::with_file(On::Embedded, format!("token,data\n9,whole\n{incomplete}").as_bytes());
        bench.replica(&[]).append_text("new").await;
        assert_eq!(bench.content(), "token,data\n9,whole\n10,new\n", "{why}");
        let quarantined = fs::read_to_string(format!("{}.torn", bench.csv.display())).expect("a side file");
        assert_eq!(quarantined, format!("{incomplete}\n"), "{why}");
    }
}

#[tokio::test]
async fn file_without_journal_continues_above_its_highest_token() {
    for on in [On::Redis, On::Embedded] {
        let bench =
            Bench::with_file(on, b"token,data\n7,old\n99999999999999999999,foreign\n18446744073709551615,foreign\n");
        let replica = bench.replica(&[]);
        assert_eq!(replica.append_text("new").await["token"], 8);
        assert_eq!(replica.append_text("newer").await["token"], 9);
    }
}

#[tokio::test]
async fn line_left_open_by_foreign_writer_is_closed() {
    use std::io::Write;
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[("ROWLOCK_CSV_HEADER", "token,data")]);
    replica.append_text("one").await;
    let mut foreign = fs::OpenOptions::new().append(true).open(&bench.csv).expect("opens");
    foreign.write_all(b"f,whole\nf,open").expect("writes");
    replica.append_text("two").await;
    assert_eq!(bench.content(), "token,data\n1,one\nf,whole\nf,open\n2,two\n");
}

#[tokio::test]
async fn rotated_file_begins_anew_without_an_error_in_the_log() {
    let bench = Bench::new(On::Embedded);
    let mut replica = bench.replica(&[]);
    assert_eq!(replica.append_text("one").await["token"], 1);
    replica.signal("TERM");
    assert!(replica.end().success());
    fs::rename(&bench.csv, bench.folder().join("rotated.csv")).expect("renamed");
    let replica = bench.replica(&[]);
    assert_eq!(replica.append_text("two").await["token"], 2, "tokens continue");
    assert_eq!(bench.content().lines().count(), 2, "a header and a row");
    let log = replica.log();
    assert!(log.contains("it begins anew") && !log.contains("ERROR"), "{log}");
}

#[test]
fn unusable_file_fails_start_with_one_line() {
    let refused = |content: Option<&[u8]>, csv: &str, settings: &[(&str, &str)], says: &str| {
        let bench = Bench::new(On::Embedded);
        if let Some(content) = content {
            fs::write(&bench.csv, content).expect("writable");
        }
        let output = bench.run(&["serve", "--csv", csv], settings);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(matches!(output.status.code(), Some(1 | 2)), "{csv}: {output:?}");
        assert_eq!(stderr.lines().count(), 1, "one line: {stderr}");
        assert!(stderr.starts_with("rowlock: ") && stderr.contains(says), "{stderr} does not say {says:?}");
    };
    refused(None, ".", &[], "is not a regular file");
    refused(None, "/dev/null", &[], "is not a regular file");
    refused(None, "/nowhere/rows.csv", &[], "/nowhere");
    refused(None, "/proc/rows.csv", &[], "/proc/rows.csv");
    refused(Some(b"a,b,a\n"), "rows.csv", &[], "\"a\" twice");
    refused(Some(b"a,,b\n"), "rows.csv", &[], "column 2 of the header has no name");
    refused(Some(b"\xff\xfe\n"), "rows.csv", &[], "not UTF-8");
    refused(None, "rows.csv", &[("ROWLOCK_CSV_HEADER", "a,a")], "ROWLOCK_CSV_HEADER");
}

#[test]
fn hard_links_are_refused_and_symlinks_resolved() {
    let bench = Bench::with_file(On::Embedded, b"token,data\n");
    let linked = bench.folder().join("linked.csv");
    std::os::unix::fs::symlink(&bench.csv, &linked).expect("linked");
    let output = bench.run(&["append", "--data", "x", "--csv", "linked.csv"], &[]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(bench.content(), "token,data\n1,x\n");
    assert!(bench.folder().join("rows.csv.lock").exists(), "both names share one lock");
    fs::hard_link(&bench.csv, bench.folder().join("twin.csv")).expect("linked");
    let output = bench.run(&["append", "--data", "x"], &[]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("several hard links"), "{output:?}");
}

/// Runs the script in a mount namespace, whose mounts end with the process. Needs root, or user namespaces.
fn in_a_mount(bench: &Bench, script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-ec", script, env!("CARGO_BIN_EXE_rowlock")]);
    command.current_dir(bench.folder()).env("ROWLOCK_LISTEN", "127.0.0.1:0");
    command
}

#[test]
fn read_only_volume_fails_start_with_one_line() {
    let bench = Bench::new(On::Embedded);
    let script = r#"mkdir volume; mount -t tmpfs -o ro tmpfs volume; exec "$0" serve --csv volume/rows.csv"#;
    let output = in_a_mount(&bench, script).output().expect("unshare runs");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.starts_with("rowlock: cannot create ") && stderr.contains("Read-only file system"), "{stderr}");
}

#[tokio::test]
async fn full_disk_refuses_rows_until_there_is_space() {
    let bench = Bench::new(On::Embedded);
    let script = r#"mkdir volume; mount -t tmpfs -o size=1400k tmpfs volume; head -c 150000 /dev/zero > volume/filler; exec "$0" serve --csv volume/rows.csv --csv-header data --journal-bytes 1MiB"#;
    let replica = Replica::start(in_a_mount(&bench, script));
    let row = "x".repeat(30_000);
    let mut written = 0;
    let problem = loop {
        let (status, body) = replica.append(json!({ "data": row })).await;
        if status != 201 {
            break (status, body);
        }
        written += 1;
        assert!(written < 20, "the disk never fills");
    };
    assert_eq!(
        (problem.0, &problem.1["code"], &problem.1["outcome"]),
        (507, &json!("disk_full"), &json!("not_written"))
    );
    let volume = format!("/proc/{}/root{}", replica.pid(), bench.folder().join("volume").display());
    let length = fs::metadata(format!("{volume}/rows.csv")).expect("reachable").len();
    assert_eq!(length, 5 + written * 30_001, "half a row is left in the file");
    fs::remove_file(format!("{volume}/filler")).expect("removed");
    replica.append_text(&row).await;
}
