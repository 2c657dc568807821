//! A CSV that somebody else edits, truncates, replaces, renames or deletes: refused and told, never merged with our rows in silence.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use reqwest::Method;
use serde_json::{Value, json};

use crate::journal::{SETTINGS, killed_after, side_path};
use crate::support::{Bench, On, Replica, answer, until, until_checkpointed};

const CONTENT: &str = "token,data\n1,one\n2,two\n3,three\n";

/// What somebody does to a CSV of three rows.
type Change = fn(&Path);

/// As `sed -i` does: another file in the place of the first one.
fn replace(csv: &Path, content: &str) {
    let new = csv.with_extension("new");
    fs::write(&new, content).expect("written");
    fs::rename(new, csv).expect("renamed");
}

/// As an editor, `cp` or a shell's `>` does: the same file with other content.
fn rewrite(csv: &Path, content: &str) {
    fs::write(csv, content).expect("written");
}

/// Another name of the original file, to put it back.
fn kept(csv: &Path) -> PathBuf {
    csv.with_extension("kept")
}

/// Makes the change, and keeps the original file if it loses its name.
fn change_and_keep(csv: &Path, change: Change) {
    fs::hard_link(csv, kept(csv)).expect("another name");
    change(csv);
    let inode = |path: &Path| fs::metadata(path).ok().map(|found| found.ino());
    if inode(csv) == inode(&kept(csv)) {
        // A second name would be a change of its own.
        fs::remove_file(kept(csv)).expect("removed");
    }
}

fn put_back(csv: &Path) {
    let _ = fs::remove_file(csv.with_extension("1"));
    if !kept(csv).exists() {
        return rewrite(csv, CONTENT);
    }
    rewrite(&kept(csv), CONTENT);
    fs::rename(kept(csv), csv).expect("renamed");
}

const CHANGES: [(&str, Change); 9] = [
    ("sed -i", |csv| replace(csv, &CONTENT.replace("one", "ONE"))),
    ("a copy in its place", |csv| replace(csv, CONTENT)),
    ("deleted and created", |csv| {
        fs::remove_file(csv).expect("removed");
        fs::write(csv, "token,data\n").expect("created");
    }),
    ("logrotate with create", |csv| {
        fs::rename(csv, csv.with_extension("1")).expect("renamed");
        fs::write(csv, "").expect("created");
    }),
    ("renamed", |csv| fs::rename(csv, csv.with_extension("1")).expect("renamed")),
    ("logrotate with copytruncate", |csv| rewrite(csv, "")),
    ("a row made shorter", |csv| rewrite(csv, &CONTENT.replace("one", "1"))),
    ("a row made longer", |csv| rewrite(csv, &CONTENT.replace("one", "one and a half"))),
    ("rows removed and added", |csv| rewrite(csv, "token,data\n,a foreign row\n,and a longer one\n")),
];

async fn with_three_rows(bench: &Bench) -> Replica {
    let replica = bench.replica(&SETTINGS);
    for row in ["one", "two", "three"] {
        replica.append_text(row).await;
    }
    assert_eq!(bench.content(), CONTENT);
    replica
}

async fn is_ready(replica: &Replica) -> bool {
    answer(replica.request(Method::GET, "/readyz")).await.0 == 200
}

#[tokio::test]
async fn change_under_a_replica_is_refused_until_put_back() {
    for (what, change) in CHANGES {
        for checkpointed in [false, true] {
            let bench = Bench::new(On::Embedded);
            let replica = with_three_rows(&bench).await;
            if checkpointed {
                until_checkpointed(&bench).await;
            }
            assert_eq!(answer(replica.request(Method::GET, "/rows")).await.0, 200, "read before the change");
            change_and_keep(&bench.csv, change);
            let changed = fs::read(&bench.csv).ok();
            let (status, problem) = replica.append(json!({"data": "lost?"})).await;
            assert_eq!((status, &problem["code"]), (503, &json!("file_replaced")), "{what}: {problem}");
            assert_eq!(problem["outcome"], "not_written", "{what}");
            until("it is not ready", async || !is_ready(&replica).await).await;
            let checks = replica.request(Method::GET, "/readyz?verbose").send().await.expect("an answer");
            let checks = checks.text().await.expect("text");
            assert!(checks.contains("[-] file: replaced, renamed, truncated or edited"), "{what}: {checks}");
            let health = bench.run(&["health", &replica.url], &[]);
            assert!(String::from_utf8_lossy(&health.stdout).contains("answered 503"), "{what}: {health:?}");
            assert_eq!(health.status.code(), Some(1), "{what}: {health:?}");
            assert!(replica.log().contains("until an operator has repaired the CSV"), "{what}: {}", replica.log());
            let (status, problem) = answer(replica.request(Method::GET, "/rows")).await;
            assert_eq!((status, &problem["code"]), (503, &json!("file_replaced")), "{what}: {problem}");
            assert_eq!(fs::read(&bench.csv).ok(), changed, "{what}: the file is left as it is");

            put_back(&bench.csv);
            until("it is ready again", async || is_ready(&replica).await).await;
            replica.append_text("four").await;
            assert!(bench.content().starts_with(CONTENT) && bench.rows().len() == 4, "{what}: {}", bench.content());
            assert!(!Path::new(&side_path(&bench, ".torn")).exists(), "{what}: nothing was moved");
        }
    }
}

#[tokio::test]
async fn truncation_within_the_journal_is_restored() {
    let bench = Bench::new(On::Embedded);
    let replica = with_three_rows(&bench).await;
    fs::write(&bench.csv, "token,data\n1,one\n").expect("truncated");
    replica.append_text("four").await;
    assert_eq!(bench.content(), format!("{CONTENT}4,four\n"));
}

#[tokio::test]
async fn restart_after_a_stop_accepts_an_edited_file() {
    let bench = Bench::new(On::Embedded);
    let mut replica = with_three_rows(&bench).await;
    replica.signal("TERM");
    assert!(replica.end().success());
    replace(&bench.csv, &CONTENT.replace("three", "THREE"));
    let replica = bench.replica(&SETTINGS);
    assert!(replica.log().contains("not the file that the journal describes"), "{}", replica.log());
    replica.append_text("four").await;
    assert_eq!(bench.content(), format!("{}4,four\n", CONTENT.replace("three", "THREE")));
}

/// Edits after a kill, while the journal still has all three rows.
const EDITS: [(&str, Change, &str); 6] = [
    ("in place", |csv| rewrite(csv, &CONTENT.replace("one", "ONE")), "1,one\n"),
    ("sed -i of the first row", |csv| replace(csv, &CONTENT.replace("one", "ONE")), "1,one\n"),
    ("sed -i of the last row", |csv| replace(csv, &CONTENT.replace("three", "THREE")), "3,three\n"),
    ("a row removed", |csv| rewrite(csv, &CONTENT.replace("1,one\n", "")), "1,one\n"),
    ("a row made longer", |csv| rewrite(csv, &CONTENT.replace("two", "two and more")), "2,two\n"),
    ("a row inserted", |csv| rewrite(csv, &CONTENT.replace("2,two", ",new\n2,two")), ""),
];

#[tokio::test]
async fn file_edited_after_a_kill_is_not_merged_in_silence() {
    for (what, edit, missing) in EDITS {
        for repair in ["--repair=keep-file", "--repair=restore"] {
            let bench = Bench::new(On::Embedded);
            killed_after(&bench, &["one", "two", "three"]).await;
            edit(&bench.csv);
            let edited = bench.content();
            let output = bench.run(&["serve"], &SETTINGS);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{what}: {stderr}");
            assert!(stderr.lines().last().expect("a line").contains("was edited or truncated"), "{what}: {stderr}");
            let report = bench.run(&["check", "--json"], &SETTINGS);
            let report: Value = serde_json::from_slice(&report.stdout).expect("JSON");
            assert_eq!(report["journal"]["state"], "edited", "{what}: {report}");
            assert_eq!(bench.content(), edited, "{what}: nothing was changed");

            let output = bench.run(&["check", repair], &SETTINGS);
            assert_eq!(output.status.code(), Some(0), "{what}: {output:?}");
            let torn = fs::read_to_string(side_path(&bench, ".torn")).unwrap_or_default();
            if repair == "--repair=keep-file" {
                assert_eq!((bench.content(), &*torn), (edited, missing), "{what}");
            } else {
                assert!(CONTENT.lines().all(|row| bench.content().contains(row)), "{what}: {}", bench.content());
            }
            let token = bench.replica(&SETTINGS).append_text("four").await["token"].as_u64();
            assert!(token > Some(3), "{what}: tokens continue");
        }
    }
}

#[tokio::test]
async fn foreign_journal_is_quarantined_or_restored() {
    let other = "token,other\n,a row\n,and a longer one";
    for (repair, csv, torn) in [
        ("--repair", "", "1,one\n2,two\n3,three\n"),
        ("--repair=keep-file", "", "1,one\n2,two\n3,three\n"),
        ("--repair=restore", "\n1,one\n2,two\n3,three\n", ""),
    ] {
        let bench = Bench::new(On::Embedded);
        killed_after(&bench, &["one", "two", "three"]).await;
        rewrite(&bench.csv, other);
        let output = bench.run(&["check", repair], &SETTINGS);
        let quarantined = fs::read_to_string(side_path(&bench, ".torn")).unwrap_or_default();
        assert_eq!((bench.content(), &*quarantined), (format!("{other}{csv}"), torn), "{repair}: {output:?}");
    }
}

#[tokio::test]
async fn missing_csv_is_not_begun_anew_while_its_journal_has_rows() {
    let bench = Bench::new(On::Embedded);
    killed_after(&bench, &["one", "two", "three"]).await;
    let aside = bench.folder().join("aside.csv");
    fs::rename(&bench.csv, &aside).expect("renamed");
    for command in ["serve", "check"] {
        let output = bench.run(&[command], &SETTINGS);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && stderr.contains("is missing, but"), "{command}: {stderr}");
        assert!(!bench.csv.exists(), "{command}: no file is made");
    }
    fs::rename(&aside, &bench.csv).expect("renamed");
    bench.replica(&SETTINGS).append_text("four").await;
    assert!(bench.content().starts_with(CONTENT), "{}", bench.content());

    let bench = Bench::new(On::Embedded);
    killed_after(&bench, &["one", "two", "three"]).await;
    fs::remove_file(&bench.csv).expect("removed");
    let output = bench.run(&["check", "--repair"], &SETTINGS);
    assert_eq!((output.status.code(), bench.content()), (Some(0), CONTENT.to_owned()), "{output:?}");
}

#[tokio::test]
async fn open_quote_over_line_ends_is_refused_and_named() {
    let rows: String = (3..=10_000).map(|n| format!("{n},row\n")).collect();
    for (content, says) in [
        (format!("token,data\n1,row\n2,\"row\n{rows}"), "line 3: a quote in this row"),
        (format!("token,data\n1,row\n2,\"row\n{rows}8,\"row,more"), "line 3: a quote in this row"),
        ("token,data\n9,whole\n0,\"two\nli".to_owned(), "line 3: a quote in this row"),
        (format!("token,\"data\n{rows}"), "a quote in the header is never closed"),
        (format!("token,\"data\"s\n{rows}"), "text behind a closing quote"),
        ("token,data\r1,row\r2,row\r".to_owned(), "the first line is not one CSV record"),
        ("\0\0\0\0\0\0\n1,row\n".to_owned(), "the header has NUL bytes"),
        ("\0\0\0\0\0\0,row\n2,row\n".to_owned(), "the header has NUL bytes"),
        ("\0".repeat(2 << 20), "the header has NUL bytes"),
    ] {
        let bench = Bench::with_file(On::Embedded, content.as_bytes());
        for command in ["serve", "check"] {
            let output = bench.run(&[command], &[]);
            let shown = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert_eq!(output.status.code(), Some(1), "{command}: {shown}");
            let named = says.split(':').next().expect("the line");
            assert!(shown.contains(if command == "serve" { says } else { named }), "{command}: {says}: {shown}");
        }
        assert!(bench.content() == content, "{says}: the file was changed");
        assert!(!Path::new(&side_path(&bench, ".torn")).exists(), "{says}: rows were moved");
    }
}

#[tokio::test]
async fn operator_may_quarantine_rows_behind_an_open_quote() {
    let bench = Bench::with_file(On::Embedded, b"token,data\n1,row\n2,\"row\n3,row\n");
    let output = bench.run(&["check", "--repair"], &[]);
    assert_eq!((output.status.code(), &*bench.content()), (Some(0), "token,data\n1,row\n"), "{output:?}");
    let torn = fs::read_to_string(side_path(&bench, ".torn")).expect("a side file");
    assert_eq!(torn, "2,\"row\n3,row\n");
    bench.replica(&[]).append_text("four").await;
}

#[tokio::test]
async fn foreign_open_quote_refuses_rows_until_it_is_closed() {
    let bench = Bench::new(On::Embedded);
    let replica = with_three_rows(&bench).await;
    let mut foreign = OpenOptions::new().append(true).open(&bench.csv).expect("opens");
    foreign.write_all(b"f,\"two\nlines").expect("writes");
    let (status, problem) = replica.append(json!({"data": "four"})).await;
    assert_eq!((status, &problem["code"], &problem["outcome"]), (503, &json!("file_replaced"), &json!("not_written")));
    until("it is not ready", async || !is_ready(&replica).await).await;
    foreign.write_all(b"\"\n").expect("writes");
    until("it is ready again", async || is_ready(&replica).await).await;
    let token = replica.append_text("four").await["token"].clone();
    assert_eq!(bench.content(), format!("{CONTENT}f,\"two\nlines\"\n{token},four\n"));
}
