//! Access: tokens and roles, listen addresses and TLS. No secret is ever shown.

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::Command,
};

use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::support::{Bench, On, PATIENCE, Replica, free_port, until};

const TOKENS: [(&str, &str); 1] =
    [("ROWLOCK_API_TOKENS", "append:append-secret-of-tests,read:read-secret-of-tests,admin:admin-secret-of-tests")];

async fn ask(replica: &Replica, method: &Method, path: &str, authorization: &str) -> Response {
    let mut request = replica.request(method.clone(), path);
    if method == Method::POST {
        request = request.json(&json!({"data": "x"}));
    }
    if !authorization.is_empty() {
        request = request.header("authorization", authorization);
    }
    request.send().await.expect("an answer")
}

#[tokio::test]
async fn each_role_reaches_its_routes_and_no_others() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&TOKENS);
    let roles = [
        "",
        "Bearer append-secret-of-tests",
        "Bearer read-secret-of-tests",
        "bearer admin-secret-of-tests",
        "Bearer wrong",
    ];
    for (method, path, statuses) in [
        (Method::POST, "/append", [401, 201, 403, 201, 401]),
        (Method::POST, "/append/batch", [401, 422, 403, 422, 401]),
        (Method::GET, "/rows", [401, 403, 200, 200, 401]),
        (Method::GET, "/rows.csv", [401, 403, 200, 200, 401]),
        (Method::HEAD, "/rows.csv", [401, 403, 200, 200, 401]),
        (Method::GET, "/events", [401, 403, 200, 200, 401]),
        (Method::GET, "/lock", [401, 403, 200, 200, 401]),
        (Method::DELETE, "/lock", [401, 403, 403, 200, 401]),
        (Method::PUT, "/lock", [401, 403, 403, 405, 401]),
        (Method::GET, "/nothing", [401, 403, 404, 404, 401]),
        (Method::GET, "/livez", [200; 5]),
        (Method::GET, "/readyz", [200; 5]),
        (Method::GET, "/openapi.yaml", [200; 5]),
        (Method::OPTIONS, "/append", [204; 5]),
    ] {
        for (authorization, expected) in roles.iter().zip(statuses) {
            let response = ask(&replica, &method, path, authorization).await;
            assert_eq!(response.status(), expected, "{method} {path} {authorization}");
        }
    }
    assert_eq!(bench.rows().len(), 2, "refused rows are not written");
}

#[tokio::test]
async fn refusal_names_the_missing_token_or_role() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&TOKENS);
    for (authorization, status, code, challenge) in [
        ("", 401, "unauthorized", "Bearer realm=\"rowlock\""),
        ("Bearer x", 401, "unauthorized", "Bearer realm=\"rowlock\", error=\"invalid_token\""),
        ("Basic YTpi", 401, "unauthorized", "Bearer realm=\"rowlock\", error=\"invalid_token\""),
        ("Bearer", 401, "unauthorized", "Bearer realm=\"rowlock\", error=\"invalid_token\""),
        ("Bearer read-secret-of-tests", 403, "forbidden", "Bearer realm=\"rowlock\", error=\"insufficient_scope\""),
    ] {
        let response = ask(&replica, &Method::POST, "/append", authorization).await;
        let sent = response.headers()["www-authenticate"].to_str().expect("text").to_owned();
        assert_eq!((response.status().as_u16(), sent.as_str()), (status, challenge));
        let problem: Value = response.json().await.expect("JSON");
        assert_eq!((&problem["code"], &problem["outcome"]), (&json!(code), &json!("not_written")), "{problem}");
    }
    assert!(!replica.log().contains("secret"), "{}", replica.log());
}

#[tokio::test]
async fn probes_are_answered_and_show_checks_to_readers_only() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&TOKENS);
    for (authorization, sees) in [
        ("", false),
        ("Bearer wrong", false),
        ("Bearer append-secret-of-tests", false),
        ("Bearer read-secret-of-tests", true),
    ] {
        let response = ask(&replica, &Method::GET, "/readyz?verbose", authorization).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.text().await.expect("text").contains("embedded"), sees, "{authorization}");
    }
}

/// A file of tokens that a test rewrites while a replica uses it.
struct TokenFile(PathBuf);

impl TokenFile {
    fn new(bench: &Bench, content: &str) -> Self {
        let file = Self(bench.folder().join("tokens"));
        file.write(content);
        file
    }

    fn write(&self, content: &str) {
        fs::write(&self.0, content).expect("writable");
    }

    fn setting(&self) -> (&'static str, String) {
        ("ROWLOCK_API_TOKENS", format!("@{}", self.0.display()))
    }
}

async fn append_status(replica: &Replica, token: &str) -> u16 {
    ask(replica, &Method::POST, "/append", &format!("Bearer {token}")).await.status().as_u16()
}

#[tokio::test]
async fn sighup_reloads_the_token_file_and_keeps_it_if_broken() {
    let bench = Bench::new(On::Embedded);
    let tokens = "# tokens\nappend:token-called-first # the shop\n\nread:token-called-reader,admin:token-called-root\n";
    let file = TokenFile::new(&bench, tokens);
    let (name, value) = file.setting();
    let replica = bench.replica(&[(name, &value)]);
    let status = async |name: &str| append_status(&replica, &format!("token-called-{name}")).await;
    assert_eq!((status("first").await, status("root").await, status("second").await), (201, 201, 401));
    file.write("append:token-called-second\n");
    replica.signal("HUP");
    until("the new token is known", async || status("second").await == 201).await;
    assert_eq!(status("first").await, 401);
    let third = "append:token-called-third";
    for broken in
        [&*format!("{third}\nwrite:hush\n"), "", &format!("{third}\nhush\n"), &format!("{third}\nappend:hush\n")]
    {
        file.write(broken);
        let before = replica.log().matches("ROWLOCK_API_TOKENS").count();
        replica.signal("HUP");
        until("the failure is logged", async || replica.log().matches("ROWLOCK_API_TOKENS").count() > before).await;
        assert_eq!((status("second").await, status("third").await), (201, 401));
    }
    assert!(!replica.log().contains("hush"), "{}", replica.log());
}

#[tokio::test]
async fn hash_within_a_token_of_a_file_belongs_to_it() {
    let bench = Bench::new(On::Embedded);
    let file = TokenFile::new(&bench, "append:token#with#hashes\t# the shop\n#append:token-in-a-comment\n");
    let (name, value) = file.setting();
    let replica = bench.replica(&[(name, &value)]);
    for (token, expected) in [("token#with#hashes", 201), ("token", 401), ("token-in-a-comment", 401)] {
        assert_eq!(append_status(&replica, token).await, expected, "{token}");
    }
}

#[tokio::test]
async fn removed_token_ends_its_event_streams_and_no_others() {
    let bench = Bench::new(On::Embedded);
    let file = TokenFile::new(&bench, "read:token-that-leaves,admin:token-that-changes,read:token-that-stays\n");
    let (name, value) = file.setting();
    let replica = bench.replica(&[(name, &value)]);
    let subscribe = async |token: &str| {
        let mut stream = ask(&replica, &Method::GET, "/events", &format!("Bearer {token}")).await;
        assert_eq!(stream.status(), 200);
        let hello = stream.chunk().await.expect("a stream").expect("an event");
        assert!(hello.starts_with(b"event: hello"), "{hello:?}");
        stream
    };
    let mut stays = subscribe("token-that-stays").await;
    let gone = [subscribe("token-that-leaves").await, subscribe("token-that-changes").await];
    file.write("append:token-that-changes,read:token-that-stays\n");
    replica.signal("HUP");
    for mut stream in gone {
        let ended = async { while stream.chunk().await.expect("an orderly end").is_some() {} };
        tokio::time::timeout(PATIENCE, ended).await.expect("the stream of a removed token ends");
    }
    assert_eq!(append_status(&replica, "token-that-changes").await, 201);
    let rows = async {
        loop {
            let chunk = stays.chunk().await.expect("a stream").expect("the stream goes on");
            if String::from_utf8_lossy(&chunk).contains("event: rows") {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, rows).await.expect("rows reach the token that stays");
}

#[test]
fn public_address_without_tokens_is_refused_at_start() {
    let bench = Bench::new(On::Embedded);
    for address in ["0.0.0.0:0", "[::]:0"] {
        let output = bench.run(&["serve"], &[("ROWLOCK_LISTEN", address)]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert_eq!(stderr.lines().count(), 1);
        for name in ["ROWLOCK_LISTEN", "ROWLOCK_API_TOKENS", "ROWLOCK_AUTH"] {
            assert!(stderr.contains(name), "{stderr}");
        }
        bench.replica(&[("ROWLOCK_LISTEN", address), ("ROWLOCK_AUTH", "off")]);
        bench.replica(&[("ROWLOCK_LISTEN", address), TOKENS[0]]);
    }
    bench.replica(&[("ROWLOCK_LISTEN", "[::1]:0")]);
}

#[test]
fn simulation_on_a_public_address_is_warned_about() {
    let bench = Bench::new(On::Embedded);
    let public = [("ROWLOCK_LISTEN", "0.0.0.0:0"), TOKENS[0]];
    for (settings, warned) in [
        (&public[..], true),
        (&[public[0], public[1], ("ROWLOCK_SIMULATION", "off")], false),
        (&[("ROWLOCK_LISTEN", "127.0.0.1:0")], false),
        (&[("ROWLOCK_LISTEN", "localhost:0")], false),
    ] {
        let log = bench.replica(settings).log();
        let line = log.lines().find(|line| line.contains("ROWLOCK_SIMULATION=off"));
        assert_eq!(line.is_some_and(|line| line.contains("WARN")), warned, "{settings:?}: {log}");
    }
}

#[test]
fn malformed_tokens_end_the_start_without_being_shown() {
    let bench = Bench::new(On::Embedded);
    for tokens in
        ["hush", "writer:hush", "append:hush,read:", "append:hu sh", "append:hush", "@/nowhere/hush-file", ","]
    {
        let output = bench.run(&["serve"], &[("ROWLOCK_API_TOKENS", tokens)]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
        assert!(stderr.contains("ROWLOCK_API_TOKENS"), "{stderr}");
        assert!(!stderr.replace("hush-file", "").contains("hush"), "{stderr}");
    }
    let mut broken = bench.command(&[]);
    let broken = broken.arg("serve").env("ROWLOCK_API_TOKENS", OsStr::from_bytes(b"admin:\xff-hush-hush-hush"));
    let output = broken.output().expect("ends");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && stderr.contains("ROWLOCK_API_TOKENS"), "never open: {stderr}");
    let help = bench.run(&["--help"], &TOKENS);
    assert!(!String::from_utf8_lossy(&help.stdout).contains("secret"));
    let flag = bench.run(&["serve", "--api-tokens", "append:x"], &[]);
    assert_eq!(flag.status.code(), Some(2), "other users can read a command line");
}

/// A key and a self-signed certificate for localhost.
fn certificate(folder: &Path, name: &str) -> [String; 2] {
    let [cert, key] = ["pem", "key"].map(|end| folder.join(format!("{name}.{end}")).display().to_string());
    let args =
        ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj"];
    let made = Command::new("openssl")
        .args(args)
        .args(["/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-out", &cert, "-keyout", &key])
        .output()
        .expect("openssl runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    [cert, key]
}

/// The answer that curl gets if it trusts this certificate; `None` if it does not.
fn curl(url: &str, cert: &str, args: &[&str]) -> Option<String> {
    let output = Command::new("curl").args(["-sS", "--max-time", "10", "--cacert", cert]).args(args).arg(url).output();
    let output = output.expect("curl runs");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test]
async fn sighup_reloads_the_certificate() {
    let bench = Bench::new(On::Embedded);
    let [cert, key] = certificate(bench.folder(), "one");
    let port = free_port();
    let settings =
        [("ROWLOCK_TLS_CERT", &*cert), ("ROWLOCK_TLS_KEY", &*key), ("ROWLOCK_LISTEN", &*format!("127.0.0.1:{port}"))];
    let replica = bench.replica(&settings);
    assert!(replica.url.starts_with("https://"), "{}", replica.url);
    let url = format!("https://localhost:{port}");
    let ack = curl(&format!("{url}/append"), &cert, &["-d", "data=secret"]).expect("an answer");
    assert_eq!(serde_json::from_str::<Value>(&ack).expect("JSON")["token"], 1);
    assert!(curl(&format!("http://localhost:{port}/livez"), &cert, &[]).is_none_or(|text| !text.contains("ok")));
    let [other, other_key] = certificate(bench.folder(), "two");
    assert!(curl(&format!("{url}/livez"), &other, &[]).is_none(), "another certificate is not trusted");
    fs::copy(&other, &cert).expect("writable");
    replica.signal("HUP");
    until("the mismatched pair is logged", async || replica.log().contains("ROWLOCK_TLS_KEY")).await;
    fs::copy(&other_key, &key).expect("writable");
    replica.signal("HUP");
    until("the new certificate is served", async || curl(&format!("{url}/livez"), &other, &[]).is_some()).await;
}

#[tokio::test]
async fn stalled_reader_over_tls_is_disconnected() {
    let bench = Bench::with_file(On::Embedded, format!("data\n{}", "0123456789\n".repeat(2 << 20)).as_bytes());
    let [cert, key] = certificate(bench.folder(), "one");
    let settings = [("ROWLOCK_TLS_CERT", &*cert), ("ROWLOCK_TLS_KEY", &*key), ("ROWLOCK_MAX_CONNECTIONS", "1")];
    let mut command = bench.command(&settings);
    command.args(["--write-timeout", "1s"]);
    let replica = Replica::start(command);
    let url = replica.url.replace("127.0.0.1", "localhost");
    let path = bench.folder().join("part");
    let slow = Command::new("curl")
        .args(["-sS", "--cacert", &cert, "-o"])
        .arg(&path)
        .arg(format!("{url}/rows.csv"))
        .args(["--limit-rate", "64K"])
        .spawn();
    let mut slow = slow.expect("curl runs");
    until("the answer has begun", async || fs::metadata(&path).is_ok_and(|file| file.len() > 0)).await;
    let stopped = Command::new("kill").args(["-STOP", &slow.id().to_string()]).status();
    assert!(stopped.expect("kill runs").success());
    until("its connection is closed", async || curl(&format!("{url}/livez"), &cert, &[]).is_some()).await;
    slow.kill().expect("curl still runs");
    slow.wait().expect("a child process");
}

#[test]
fn unusable_certificate_ends_the_start() {
    let bench = Bench::new(On::Embedded);
    let [cert, key] = certificate(bench.folder(), "one");
    let [_, other_key] = certificate(bench.folder(), "two");
    let csv = bench.csv.display().to_string();
    for (cert, key, named) in [
        (&*cert, "", "ROWLOCK_TLS_KEY"),
        ("", &*key, "ROWLOCK_TLS_CERT"),
        ("/nowhere.pem", &key, "ROWLOCK_TLS_CERT"),
        (&cert, "/nowhere.key", "ROWLOCK_TLS_KEY"),
        (&cert, &other_key, "ROWLOCK_TLS_CERT and ROWLOCK_TLS_KEY"),
        (&key, &key, "ROWLOCK_TLS_CERT"),
        (&cert, &csv, "ROWLOCK_TLS_KEY"),
    ] {
        let output = bench.run(&["serve"], &[("ROWLOCK_TLS_CERT", cert), ("ROWLOCK_TLS_KEY", key)]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
        assert!(stderr.contains(named), "{stderr}");
    }
}
