//! `rowlock check`: what it finds, what it does not change, and what `--repair` repairs.

use std::{collections::BTreeMap, fs, process::Output};

use serde_json::{Value, json};

use crate::{
    journal::{BOTH_HEADERS, SETTINGS, damage_journal, header_of_format_2, killed_after, side_path},
    support::{Bench, On, until_checkpointed, until_held},
};

/// Runs `check --json`. Returns its exit code and report.
fn check(bench: &Bench, args: &[&str]) -> (Option<i32>, Value) {
    let output = bench.run(&[&["check", "--json"], args].concat(), &SETTINGS);
    let report = serde_json::from_slice(&output.stdout);
    (output.status.code(), report.unwrap_or_else(|_| panic!("no report: {output:?}")))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// All files in the bench's folder.
fn files(bench: &Bench) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(bench.folder()).expect("a folder").map(|entry| entry.expect("an entry"));
    let content = |path| fs::read(path).expect("readable");
    entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), content(entry.path()))).collect()
}

#[tokio::test]
async fn whole_file_is_reported_whole_and_not_changed() {
    let bench = Bench::new(On::Embedded);
    let mut replica = bench.replica(&SETTINGS);
    for row in ["one", "two, \"quoted\"\r\nand long", ""] {
        replica.append_text(row).await;
    }
    replica.signal("TERM");
    replica.end();
    let before = files(&bench);
    let (code, report) = check(&bench, &[]);
    assert_eq!(
        (code, &report["whole"], &report["rows"], &report["newest_token"]),
        (Some(0), &json!(true), &json!(3), &json!(3))
    );
    assert_eq!((&report["findings"], &report["journal"]["state"]), (&json!([]), &json!("sound")));
    let output = bench.run(&["check"], &SETTINGS);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("rows.csv: whole, and true to its journal\n  3 rows"), "{text}");
    assert_eq!(stderr(&bench.run(&["check", "--repair"], &SETTINGS)), "rowlock: nothing to repair\n");
    assert_eq!(files(&bench), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn check_runs_while_replicas_write() {
    let bench = Bench::new(On::Redis);
    let replica = bench.replica(&SETTINGS);
    let writer = async {
        for n in 0..200 {
            replica.append_text(&format!("row {n}")).await;
        }
    };
    let checks = async {
        for _ in 0..5 {
            let report = tokio::task::block_in_place(|| check(&bench, &[]));
            assert_eq!((report.0, &report.1["whole"]), (Some(0), &json!(true)), "{report:?}");
        }
    };
    tokio::join!(writer, checks);
    assert_eq!(bench.rows().len(), 200);
}

#[test]
fn each_fault_is_found_and_counted() {
    let head = "token,key,data\n1,a,x\n";
    for (rows, fault, offset, count) in [
        ("2,b\n2,c\n", "torn_line", 21, 2),
        ("2,b,y2,c,z\n", "merged_line", 21, 1),
        ("2,b,\"y\"z\n", "broken_quote", 21, 1),
        ("2,b,\0\0\n", "nul", 25, 1),
        ("2,b,\"y\n3,c,z\n", "open_quote", 21, 1),
        ("3,b,y\n2,c,z\n", "token_back", 27, 1),
        ("2,b,y\n3,a,x\n", "repeated_key", 27, 1),
    ] {
        let bench = Bench::with_file(On::Embedded, format!("{head}{rows}").as_bytes());
        let (code, report) = check(&bench, &[]);
        assert_eq!((code, &report["whole"]), (Some(1), &json!(false)), "{rows:?}");
        let finding = &report["findings"][0];
        let found = (&finding["fault"], &finding["samples"][0]["offset"], &finding["count"]);
        assert_eq!(found, (&json!(fault), &json!(offset), &json!(count)), "{rows:?}: {report}");
        assert_eq!(report["findings"].as_array().map(Vec::len), Some(1), "{rows:?}: {report}");
        let text = String::from_utf8_lossy(&bench.run(&["check"], &SETTINGS).stdout).into_owned();
        assert!(text.contains("rows.csv: NOT WHOLE\n") && text.contains(&format!("at byte {offset}: ")), "{text}");
    }
}

#[tokio::test]
async fn rows_missing_after_kill_are_reported_and_repaired() {
    let bench = Bench::new(On::Embedded);
    killed_after(&bench, &["one", "two", "three"]).await;
    let whole = bench.content();
    fs::write(&bench.csv, &whole.as_bytes()[..whole.len() - 2]).expect("writable");
    let (code, report) = check(&bench, &[]);
    let journal = &report["journal"];
    assert_eq!((code, &journal["state"]), (Some(1), &json!("owes_rows")), "{report}");
    assert_eq!((&journal["rows_to_recover"], &journal["bytes_to_recover"]), (&json!(1), &json!(2)), "{report}");
    let output = bench.run(&["check", "--repair"], &SETTINGS);
    assert!(stderr(&output).starts_with("rowlock: will write 1 rows (2 bytes) from the journal to "), "{output:?}");
    assert_eq!((output.status.code(), bench.content()), (Some(0), whole));
    assert_eq!(check(&bench, &[]).0, Some(0));
}

#[tokio::test]
async fn edited_rows_are_reported_and_repaired() {
    let bench = Bench::new(On::Embedded);
    killed_after(&bench, &["one", "two", "three"]).await;
    let whole = bench.content();
    fs::write(&bench.csv, whole.replace("2,two", "2,2wo")).expect("writable");
    let (code, report) = check(&bench, &[]);
    let finding = &report["findings"][0];
    assert_eq!(
        (code, &finding["fault"], &finding["count"]),
        (Some(1), &json!("not_as_journaled"), &json!(1)),
        "{report}"
    );
    assert_eq!(check(&bench, &["--repair"]).0, Some(0));
    assert_eq!(bench.content(), whole);
    assert!(fs::read_to_string(side_path(&bench, ".torn")).expect("a side file").contains("2,2wo"));
}

#[tokio::test]
async fn repair_quarantines_incomplete_last_line() {
    let bench = Bench::new(On::Embedded);
    let mut replica = bench.replica(&SETTINGS);
    replica.append_text("one").await;
    replica.signal("TERM");
    replica.end();
    let whole = bench.content();
    fs::write(&bench.csv, format!("{whole}9,\"tor")).expect("writable");
    let (code, report) = check(&bench, &["--repair"]);
    assert_eq!((code, &report["whole"], &report["set_aside_bytes"]), (Some(0), &json!(true), &json!(7)), "{report}");
    assert_eq!(bench.content(), whole);
    assert_eq!(fs::read_to_string(side_path(&bench, ".torn")).expect("a side file"), "9,\"tor\n");
}

#[tokio::test]
async fn repair_of_damaged_journal_keeps_token_keys_and_rows() {
    let bench = Bench::new(On::Embedded);
    let keyed = ["append", "--data", "paid", "--idempotency-key", "k"];
    assert!(bench.run(&keyed, &SETTINGS).status.success());
    killed_after(&bench, &["two", "three"]).await;
    let whole = bench.content();
    fs::write(&bench.csv, whole.replace("3,three\n", "")).expect("writable");
    damage_journal(&bench, &BOTH_HEADERS);
    let damaged = fs::read(side_path(&bench, ".journal")).expect("a journal");
    let (code, report) = check(&bench, &[]);
    assert_eq!((code, &report["journal"]["state"]), (Some(1), &json!("damaged")), "{report}");
    assert!(stderr(&bench.run(&["serve"], &SETTINGS)).contains("rows.csv --repair`"));

    let output = bench.run(&["check", "--repair"], &SETTINGS);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(stderr(&output).starts_with("rowlock: will copy rows of the damaged "), "{output:?}");
    assert_eq!(fs::read(side_path(&bench, ".journal.old")).expect("kept"), damaged);
    assert_eq!(fs::read_to_string(side_path(&bench, ".torn")).expect("quarantined"), "3,three\n");
    let replica = bench.replica(&SETTINGS);
    assert!(replica.append_text("four").await["token"].as_u64() > Some(2));
    let again = bench.run(&keyed, &SETTINGS);
    assert!(String::from_utf8_lossy(&again.stdout).contains("written before, under this key"), "{again:?}");
    assert!(bench.tokens().is_sorted() && bench.rows().len() == 3, "{}", bench.content());
}

#[tokio::test]
async fn repair_quarantines_rows_of_foreign_journal() {
    let bench = Bench::new(On::Embedded);
    killed_after(&bench, &["one", "two"]).await;
    fs::write(&bench.csv, "token,other\n,file\n").expect("writable");
    let (code, report) = check(&bench, &[]);
    assert_eq!(
        (code, &report["journal"]["state"], &report["journal"]["records"]),
        (Some(1), &json!("foreign"), &json!(2))
    );
    let (code, report) = check(&bench, &["--repair"]);
    assert_eq!((code, &report["whole"]), (Some(0), &json!(true)), "{report}");
    assert_eq!(fs::read_to_string(side_path(&bench, ".torn")).expect("quarantined"), "1,one\n2,two\n");
    assert_eq!(bench.replica(&SETTINGS).append_text("next").await["token"].as_u64().expect("a token"), 4);
    assert_eq!(bench.content(), "token,other\n,file\n4,next\n");
}

#[tokio::test]
async fn journal_of_newer_version_is_not_changed() {
    let bench = Bench::new(On::Embedded);
    killed_after(&bench, &["one"]).await;
    damage_journal(&bench, &[(0, &header_of_format_2())]);
    let before = files(&bench);
    let output = bench.run(&["check", "--repair"], &SETTINGS);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("written by a newer version: upgrade this one; nothing is changed"), "{output:?}");
    assert_eq!(files(&bench), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn repair_fails_while_replica_holds_lock() {
    for on in [On::Redis, On::Embedded] {
        let bench = Bench::new(on);
        let replica = bench.replica(&SETTINGS);
        replica.append_text("one").await;
        until_checkpointed(&bench).await;
        let torn = format!("{}9", bench.content());
        fs::write(&bench.csv, &torn).expect("writable");
        let sleeps = replica.post(&json!({"data": "two", "sleep": 3})).send();
        let repair = async {
            until_held(&bench).await;
            let args = ["check", "--repair", "--wait-timeout", "300ms"];
            let output = tokio::task::block_in_place(|| bench.run(&args, &SETTINGS));
            assert_eq!(output.status.code(), Some(75), "{output:?}");
            assert!(stderr(&output).contains("shows its holder"), "{output:?}");
        };
        let (slept, ()) = tokio::join!(sleeps, repair);
        assert_eq!(slept.expect("an answer").status(), 201);
        assert_eq!(bench.content(), "token,data\n1,one\n2,two\n");
    }
}

#[test]
fn unreadable_file_fails_check_with_one_line() {
    let bench = Bench::new(On::Embedded);
    let output = bench.run(&["check", "nowhere.csv"], &[]);
    assert_eq!((output.status.code(), stderr(&output).lines().count()), (Some(1), 1), "{output:?}");
    assert!(stderr(&output).contains("nowhere.csv"), "{output:?}");
    let output = bench.run(&["check", "."], &[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}
