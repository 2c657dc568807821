//! Flags, variables and `.env`: precedence, wrong values, secrets.

use std::{collections::BTreeSet, ffi::OsStr, fs, os::unix::ffi::OsStrExt, process::Output};

use crate::support::{Bench, On, Redis};

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn flags_and_variables_override_the_dotenv_file() {
    let bench = Bench::new(On::Embedded);
    fs::write(bench.folder().join(".env"), "ROWLOCK_REPLICA=from-file\nROWLOCK_CSV_HEADER='replica,data'\n")
        .expect("writable");
    let replicas = || bench.rows().into_iter().map(|row| row["replica"].clone()).collect::<Vec<_>>();
    for (args, settings) in [
        (&["append", "--data", "x"][..], &[][..]),
        (&["append", "--data", "x"], &[("ROWLOCK_REPLICA", "from-variable")]),
        (&["append", "--data", "x"], &[("ROWLOCK_CSV_HEADER", "")]),
        (&["append", "--data", "x", "--replica", "from-flag"], &[("ROWLOCK_REPLICA", "from-variable")]),
    ] {
        let output = bench.run(args, settings);
        assert!(output.status.success(), "{}", stderr(&output));
    }
    assert_eq!(replicas(), ["from-file", "from-variable", "from-file", "from-flag"]);
}

#[test]
fn dotenv_file_of_a_parent_directory_is_not_read() {
    let bench = Bench::new(On::Embedded);
    fs::write(bench.folder().join(".env"), "ROWLOCK_LOCK_TTL=nonsense\n").expect("writable");
    let inner = bench.folder().join("inner");
    fs::create_dir(&inner).expect("made");
    let output = bench.command(&[]).current_dir(inner).args(["append", "--data", "x"]).output().expect("runs");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(bench.run(&["append", "--data", "x"], &[]).status.code(), Some(2));
}

#[test]
fn invalid_dotenv_line_is_named_without_its_value() {
    let bench = Bench::new(On::Embedded);
    fs::write(bench.folder().join(".env"), "REDIS_CONN_STR=redis://:hush @x y\n").expect("writable");
    let output = bench.run(&["append", "--data", "x"], &[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("REDIS_CONN_STR") && !stderr(&output).contains("hush"), "{}", stderr(&output));
}

#[test]
fn wrong_value_is_refused_with_what_is_accepted() {
    let bench = Bench::new(On::Embedded);
    for (variable, value, accepted) in [
        ("ROWLOCK_LISTEN", "localhost", "127.0.0.1:8080"),
        ("ROWLOCK_REPLICA", "two words", "printable ASCII"),
        ("ROWLOCK_LOCK_KEY", "a b", "printable ASCII"),
        ("ROWLOCK_LISTEN", "localhost:http", "localhost:8080"),
        ("ROWLOCK_LOCK_TTL", "10", "10 has no unit; write 10s or 10ms"),
        ("ROWLOCK_LOCK_TTL", "1ms", "from 100ms"),
        ("ROWLOCK_WAIT_TIMEOUT", "2h", "to 1h"),
        ("ROWLOCK_MAX_SLEEP", "-1s", "from 0s"),
        ("ROWLOCK_SIMULATION", "true", "on, off"),
        ("ROWLOCK_QUEUE_ROWS", "0", "from 1"),
        ("ROWLOCK_QUEUE_BYTES", "1", "from 64"),
        ("ROWLOCK_BODY_LIMIT", "much", "64MiB or 4096"),
        ("ROWLOCK_IDEMPOTENCY_KEYS", "0", "from 1"),
        ("ROWLOCK_JOURNAL_BYTES", "1023KiB", "from 1"),
        ("ROWLOCK_FORMULA_GUARD", "yes", "on, off"),
        ("ROWLOCK_UNLOCKED_VOLUME", "on", "refuse, accept"),
        ("ROWLOCK_GRACE", "soon", "10s or 250ms"),
        ("ROWLOCK_LOG_FORMAT", "xml", "text, json"),
    ] {
        let output = bench.run(&["serve"], &[(variable, value)]);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{variable}={value}: {text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains(variable) && text.contains(&format!("{value:?}")) && text.contains(accepted), "{text}");
    }
}

/// All variables that the help names.
fn variables(bench: &Bench) -> BTreeSet<String> {
    let texts = [&["--help"][..], &["load", "--help"]].map(|args| bench.run(args, &[]).stdout);
    let text = String::from_utf8(texts.concat()).expect("UTF-8");
    let names = text.split("[env: ").skip(1).filter_map(|rest| rest.split(']').next()).map(str::to_owned);
    let names: BTreeSet<_> = names.collect();
    assert!(names.len() > 30 && names.contains("ROWLOCK_API_TOKENS"), "{names:?}");
    names
}

#[test]
fn empty_value_of_each_variable_counts_as_unset() {
    let bench = Bench::new(On::Embedded);
    for variable in variables(&bench) {
        let output = bench.run(&["append", "--data", "x"], &[(&variable, "")]);
        assert!(output.status.success(), "{variable}: {}", stderr(&output));
    }
}

/// What Rust's `Debug` and its parsers print, and users of a command should not have to read.
const INTERNALS: [&str; 12] =
    ["Some(", "None", "Ok(", "Err(", "Error {", "Os {", "kind:", "Kind", "\\u{", "\\x", "0ns", "invalid digit"];

#[test]
fn wrong_value_of_each_variable_is_told_in_words() {
    let bench = Bench::new(On::Embedded);
    let values: [&[u8]; 9] = [
        b"10",
        b"-1",
        b"x y",
        b"99999999999999999999",
        "\u{301}\u{1f980}".as_bytes(),
        b"two\nlines",
        b"@/nowhere/at-all",
        b"NaN",
        b"not \xff UTF-8",
    ];
    for variable in variables(&bench) {
        for value in values {
            let mut command = bench.command(&[("ROWLOCK_LISTEN", "0.0.0.0:0")]);
            command.env(&variable, OsStr::from_bytes(value)).env("RUST_LOG", "off");
            // Without tokens the address is refused, so that a start with a value that is accepted ends as well.
            let output = if variable == "ROWLOCK_AUTH" || variable == "ROWLOCK_LISTEN" {
                command.args(["append", "--data", "x"]).output()
            } else {
                command.arg("serve").output()
            };
            let output = output.expect("ends");
            let text = stderr(&output);
            let context = format!("{variable}={}: {text}", String::from_utf8_lossy(value));
            assert!(text.lines().count() <= 1, "{context}");
            for internal in INTERNALS {
                assert!(!text.contains(internal), "{internal}: {context}");
            }
            if !text.contains("ROWLOCK_LISTEN (--listen): other hosts reach") && !output.status.success() {
                assert_eq!(output.status.code(), Some(2), "{context}");
                assert!(text.contains(&*variable), "{context}");
            }
        }
    }
}

#[test]
fn help_is_shown_in_spite_of_wrong_variables() {
    let bench = Bench::new(On::Embedded);
    let variables = variables(&bench);
    for args in [&["--help"][..], &["--version"], &["append", "--help"], &["help", "load"], &["load", "--help"]] {
        let mut command = bench.command(&[]);
        let broken = variables.iter().map(|name| (name, OsStr::from_bytes(b"not \xff UTF-8")));
        let output = command.args(args).envs(broken).output().expect("ends");
        assert!(output.status.success() && output.stderr.is_empty(), "{args:?}: {}", stderr(&output));
    }
}

/// The warnings about unknown variables of a command that otherwise succeeds.
fn unknown_variables(bench: &Bench, settings: &[(&str, &str)]) -> Vec<String> {
    let output = bench.run(&["append", "--data", "x"], settings);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stderr(&output);
    text.lines().filter(|line| line.contains("no setting has the name of this variable")).map(str::to_owned).collect()
}

#[test]
fn unknown_variable_is_warned_about_with_the_nearest_name() {
    let bench = Bench::new(On::Embedded);
    for (name, nearest) in [
        ("ROWLOCK_API_TOKEN", "nearest=\"ROWLOCK_API_TOKENS\""),
        ("ROWLOCK_LOAD_TOKENS", "nearest=\"ROWLOCK_LOAD_TOKEN\""),
        ("ROWLOCK_WAIT_TIME_OUT", "nearest=\"ROWLOCK_WAIT_TIMEOUT\""),
        ("REDIS_CONN_STRING", "nearest=\"REDIS_CONN_STR\""),
        ("REDIS_CSV_FILENAME", "nearest=\"REDIS_CSV_FILE_NAME\""),
        ("ROWLOCK_NONSENSE", ""),
    ] {
        let lines = unknown_variables(&bench, &[(name, "hush-hush")]);
        assert_eq!(lines.len(), 1, "{name}: {lines:?}");
        assert!(lines[0].contains("WARN") && lines[0].contains(&format!("variable=\"{name}\"")), "{lines:?}");
        assert!(lines[0].contains(nearest) && !lines[0].contains("hush"), "{lines:?}");
        assert_eq!(lines[0].contains("nearest"), !nearest.is_empty(), "{lines:?}");
    }
    fs::write(bench.folder().join(".env"), "ROWLOCK_GRAZE=1s\n").expect("writable");
    let lines = unknown_variables(&bench, &[]);
    assert!(lines.len() == 1 && lines[0].contains("nearest=\"ROWLOCK_GRACE\""), "{lines:?}");
}

#[test]
fn known_variables_are_not_warned_about() {
    let bench = Bench::new(On::Embedded);
    let names = variables(&bench);
    let known: Vec<_> = names.iter().map(|name| (&**name, "")).collect();
    let known = [&known[..], &[("REDIS_URL", "x"), ("REDIS_CSV_FILE_NAME", "rows.csv"), ("PATH", "/bin")]].concat();
    assert_eq!(unknown_variables(&bench, &known), Vec::<String>::new());
}

#[test]
fn listen_address_may_be_a_name_or_a_port_alone() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[("ROWLOCK_LISTEN", "localhost:0")]);
    assert!(replica.url.starts_with("http://127.0.0.1:"), "{}", replica.url);
    let port = replica.url.rsplit(':').next().expect("a port");
    let listen = format!("localhost:{port}");
    let health = bench.run(&["health"], &[("ROWLOCK_LISTEN", &listen)]);
    assert!(health.status.success(), "{health:?}");
    let taken = bench.run(&["serve"], &[("ROWLOCK_LISTEN", &listen)]);
    assert!(taken.status.code() == Some(1) && stderr(&taken).contains(&listen), "{taken:?}");

    let unknown = bench.run(&["serve", "--listen", "no-such-host.invalid:8080"], &[]);
    let text = stderr(&unknown);
    assert_eq!((unknown.status.code(), text.lines().count()), (Some(2), 1), "{text}");
    assert!(text.contains("ROWLOCK_LISTEN (--listen): no-such-host.invalid:8080 cannot be resolved"), "{text}");

    let all = bench.run(&["serve", "--listen", ":0"], &[]);
    assert!(
        all.status.code() == Some(2) && stderr(&all).contains("ROWLOCK_API_TOKENS"),
        "other hosts reach it: {all:?}"
    );
    let port = crate::support::free_port();
    let listen = format!(":{port}");
    let _replica = bench.replica(&[("ROWLOCK_LISTEN", &listen), ("ROWLOCK_AUTH", "off")]);
    let health = bench.run(&["health"], &[("ROWLOCK_LISTEN", &listen)]);
    assert!(health.status.success(), "{health:?}");
}

#[test]
fn suspect_header_is_warned_about_with_its_columns() {
    for (content, columns, doubt) in [
        ("a;b;c\n1;2;3\n", "columns=\"a;b;c\"", "one column named `a;b;c`"),
        ("sep=;\na;b\n", "columns=\"sep=;\"", "that line is for Excel"),
        ("1,2\n3,4\n", "columns=\"1,2\"", "ROWLOCK_CSV_HEADER=none"),
        ("a, b\n1,2\n", "columns=\"a, b\"", "the white space around it"),
        ("a,data\n1,2\n", "columns=\"a,data\"", ""),
    ] {
        let bench = Bench::with_file(On::Embedded, content.as_bytes());
        let replica = bench.replica(&[]);
        let log = replica.log();
        let line = |text: &str| log.lines().find(|line| line.contains(text)).map(str::to_owned);
        let known = line("the columns of the CSV").expect("the start logs the columns");
        assert!(known.contains("INFO") && known.contains(columns), "{known}");
        let warned = line("the header of the CSV may be a mistake");
        assert_eq!(warned.is_some(), !doubt.is_empty(), "{log}");
        assert!(warned.is_none_or(|line| line.contains("WARN") && line.contains(doubt)), "{log}");
        assert_eq!(bench.content(), content, "nothing is changed");
    }
    let latin1 = Bench::with_file(On::Embedded, b"gr\xf6\xdfe\n1\n");
    let output = latin1.run(&["serve"], &[]);
    assert!(output.status.code() == Some(1) && stderr(&output).contains("not UTF-8"), "{output:?}");
}

#[test]
fn message_of_a_start_names_no_temporary_file() {
    let bench = Bench::new(On::Embedded);
    // Nobody, not even root, can create a file there.
    for folder in ["/proc", "/sys"] {
        let csv = format!("{folder}/rows.csv");
        for args in [&["serve"][..], &["append", "--data", "x"]] {
            let settings = [("REDIS_CSV_FILE_NAME", &*csv), ("ROWLOCK_UNLOCKED_VOLUME", "accept")];
            let output = bench.run(args, &settings);
            let text = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{text}");
            assert!(text.contains(&csv) && !text.contains("/.") && !text.contains("at path"), "{text}");
        }
    }
}

#[test]
fn redis_address_is_never_shown() {
    let bench = Bench::new(On::Embedded);
    for url in ["hush", "http://:hush@x", "rediss-sentinel://:hush@x", "redis://:hush@x:port"] {
        let output = bench.run(&["serve"], &[("REDIS_CONN_STR", url)]);
        assert_eq!(output.status.code(), Some(2));
        let text = stderr(&output);
        assert!(text.contains("REDIS_CONN_STR") && text.contains("redis://") && !text.contains("hush"), "{text}");
        let help = bench.run(&["--help"], &[("REDIS_CONN_STR", url)]);
        assert!(!String::from_utf8_lossy(&help.stdout).contains("hush"));
    }
}

#[tokio::test]
async fn redis_password_is_never_logged() {
    let mut bench = Bench::new(On::Embedded);
    bench.redis = Some(Redis::with_password("hush-hush"));
    let everything = [("RUST_LOG", "trace"), ("ROWLOCK_LOG_FORMAT", "json"), ("ROWLOCK_WAIT_TIMEOUT", "500ms")];
    let replica = bench.replica(&[("RUST_LOG", "trace"), ("ROWLOCK_WAIT_TIMEOUT", "500ms")]);
    replica.append_text("x").await;
    let wrong = bench.redis().url().replace("hush-hush", "wrong-hush");
    let output = bench.run(&["append", "--data", "x"], &[&everything[..], &[("REDIS_CONN_STR", &wrong)]].concat());
    assert_eq!(output.status.code(), Some(2));
    for log in [replica.log(), stderr(&output)] {
        assert!(log.len() > 100 && !log.contains("hush"), "{log}");
    }
}

#[tokio::test]
async fn each_request_is_one_log_line() {
    let bench = Bench::new(On::Redis);
    let replica = bench.replica(&[]);
    let request = replica.post(&serde_json::json!({"data": "x"})).header("x-request-id", "id-1");
    request.send().await.expect("an answer");
    crate::support::until("the line is logged", async || replica.log().contains("id-1")).await;
    let log = replica.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("id-1")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    for part in ["outcome=\"written\"", "token=1", "waited_ms=", "held_ms=", "status=201"] {
        assert!(lines[0].contains(part), "{}", lines[0]);
    }
}
