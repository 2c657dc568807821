//! The embedded lock's file: its content, mode and owner, and what is not a lock file.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::PathBuf,
    process::Command,
};

use serde_json::{Value, json};

use crate::support::{Bench, On, until, until_free};

fn lock_file(bench: &Bench) -> PathBuf {
    format!("{}.lock", bench.csv.display()).into()
}

#[tokio::test]
async fn lock_file_of_any_content_grants_tokens_above_the_journals() {
    let bench = Bench::new(On::Embedded);
    bench.replica(&[]).append_text("first").await;
    let state = fs::read(lock_file(&bench)).expect("a lock file");
    let contents: [(&str, Vec<u8>); 7] = [
        ("missing", Vec::new()),
        ("zeros", vec![0; state.len()]),
        ("cut short", state[..state.len() / 8].to_vec()),
        ("half of it zeros", [&state[..30], &vec![0; state.len() - 30]].concat()),
        ("other text", b"4711\n".to_vec()),
        ("longer text", b"x".repeat(1000)),
        ("no UTF-8", vec![0xff; state.len()]),
    ];
    for (what, content) in contents {
        if what == "missing" {
            fs::remove_file(lock_file(&bench)).expect("removed");
        } else {
            fs::write(lock_file(&bench), &content).expect("written");
        }
        let replica = bench.replica(&[]);
        replica.append_text(what).await;
        until_free(&bench).await;
        // The same while a replica runs.
        fs::write(lock_file(&bench), &content).expect("written");
        replica.append_text(what).await;
        let is_logged = replica.log().contains("the lock file is not whole");
        assert_eq!(is_logged, what != "missing", "{what}: {}", replica.log());
    }
    let tokens = bench.tokens();
    assert!(tokens.len() == 15 && tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
}

#[tokio::test]
async fn lock_file_gets_the_mode_and_owner_of_the_csv() {
    let bench = Bench::with_file(On::Embedded, b"token,data\n");
    fs::set_permissions(&bench.csv, fs::Permissions::from_mode(0o664)).expect("ours");
    let is_root = fs::metadata(bench.folder()).expect("a folder").uid() == 0;
    if is_root {
        chown(&bench.csv, Some(1234), Some(1235)).expect("root may");
    }
    let facts = |path: PathBuf| {
        let metadata = fs::metadata(path).expect("a file");
        (metadata.mode(), metadata.uid(), metadata.gid(), metadata.nlink())
    };
    // A command makes it as a replica does.
    assert_eq!(bench.run(&["lock"], &[]).status.code(), Some(0));
    assert_eq!(facts(lock_file(&bench)), facts(bench.csv.clone()));
    fs::remove_file(lock_file(&bench)).expect("removed");
    bench.replica(&[]).append_text("x").await;
    assert_eq!(facts(lock_file(&bench)), facts(bench.csv.clone()));
}

#[tokio::test]
async fn lock_file_that_is_not_ours_is_refused_and_kept() {
    for (what, said) in [
        ("a directory", "is not a regular file"),
        ("a pipe", "is not a regular file"),
        ("a link", "is a symbolic link"),
        ("a dangling link", "is a symbolic link"),
        ("the CSV", "has several hard links"),
    ] {
        let bench = Bench::with_file(On::Embedded, b"token,data\n1,kept\n");
        let (path, other) = (lock_file(&bench), bench.folder().join("other"));
        match what {
            "a directory" => fs::create_dir(&path).expect("created"),
            "a pipe" => assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo runs").success()),
            "a link" => {
                fs::write(&other, "kept").expect("written");
                symlink(&other, &path).expect("linked");
            }
            "a dangling link" => symlink(&other, &path).expect("linked"),
            _ => fs::hard_link(&bench.csv, &path).expect("linked"),
        }
        for command in ["serve", "lock"] {
            let output = bench.run(&[command], &[]);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{what}: {text}");
            assert!(text.contains("rows.csv") && text.contains(said), "{what}, {command}: {text}");
        }
        assert_eq!(bench.content(), "token,data\n1,kept\n", "{what}");
        assert_eq!(fs::read_to_string(&other).ok().as_deref(), (what == "a link").then_some("kept"), "{what}");
    }
}

#[tokio::test]
async fn abandoned_lock_binds_a_process_with_a_shorter_time_to_live() {
    let bench = Bench::new(On::Embedded);
    let patient = bench.replica(&[("ROWLOCK_LOCK_TTL", "1h"), ("ROWLOCK_REPLICA", "patient")]);
    let hasty = bench.replica(&[("ROWLOCK_LOCK_TTL", "100ms"), ("ROWLOCK_WAIT_TIMEOUT", "2s")]);
    assert_eq!(patient.append(json!({"data": "crash", "skip_release": true})).await.0, 201);
    until("the lock is abandoned", async || {
        let status: Value = hasty.get("/lock", &[]).await.json().await.expect("JSON");
        status["ttl_ms"].as_u64() > Some(3_000_000) && status["holder"] == "patient"
    })
    .await;
    let (status, problem) = hasty.append(json!({"data": "early"})).await;
    assert_eq!((status, &problem["code"]), (503, &json!("wait_timeout")), "{problem}");
    assert_eq!(bench.run(&["lock", "release"], &[]).status.code(), Some(0));
    hasty.append_text("after").await;
    assert_eq!(bench.rows().len(), 2);
}
