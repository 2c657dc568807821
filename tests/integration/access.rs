//! Who may do what: tokens, addresses, TLS; and that no secret is ever shown.

use std::{fs, path::Path, process::Command};

use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::support::{Bench, On, Replica, free_port, until};

const TOKENS: [(&str, &str); 1] =
    [("ROWLOCK_API_TOKENS", "append:append-secret-1,read:read-secret-1,admin:admin-secret-1")];

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
async fn each_role_reaches_what_it_is_for_and_nothing_else() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&TOKENS);
    let roles = ["", "Bearer append-secret-1", "Bearer read-secret-1", "bearer admin-secret-1", "Bearer wrong"];
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
    assert_eq!(bench.rows().len(), 2, "what was refused was not written");
}

#[tokio::test]
async fn a_refusal_says_what_is_missing() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&TOKENS);
    for (authorization, status, code, challenge) in [
        ("", 401, "unauthorized", "Bearer realm=\"rowlock\""),
        ("Bearer x", 401, "unauthorized", "Bearer realm=\"rowlock\", error=\"invalid_token\""),
        ("Basic YTpi", 401, "unauthorized", "Bearer realm=\"rowlock\", error=\"invalid_token\""),
        ("Bearer", 401, "unauthorized", "Bearer realm=\"rowlock\", error=\"invalid_token\""),
        ("Bearer read-secret-1", 403, "forbidden", "Bearer realm=\"rowlock\", error=\"insufficient_scope\""),
    ] {
        let response = ask(&replica, &Method::POST, "/append", authorization).await;
        let told = response.headers()["www-authenticate"].to_str().expect("text").to_owned();
        assert_eq!((response.status().as_u16(), told.as_str()), (status, challenge));
        let problem: Value = response.json().await.expect("JSON");
        assert_eq!((&problem["code"], &problem["outcome"]), (&json!(code), &json!("not_written")), "{problem}");
    }
    assert!(!replica.log().contains("secret"), "{}", replica.log());
}

#[tokio::test]
async fn probes_are_always_answered_and_show_no_checks_to_who_may_not_read() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&TOKENS);
    for (authorization, sees) in
        [("", false), ("Bearer wrong", false), ("Bearer append-secret-1", false), ("Bearer read-secret-1", true)]
    {
        let response = ask(&replica, &Method::GET, "/readyz?verbose", authorization).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.text().await.expect("text").contains("embedded"), sees, "{authorization}");
    }
}

#[tokio::test]
async fn tokens_in_a_file_are_read_again_on_a_signal_and_a_broken_file_changes_nothing() {
    let bench = Bench::new(On::Embedded);
    let file = bench.folder().join("tokens");
    fs::write(&file, "# who may\nappend:first # the shop\n\nread:reader,admin:root\n").expect("writable");
    let replica = bench.replica(&[("ROWLOCK_API_TOKENS", &format!("@{}", file.display()))]);
    let status = async |token: &str| ask(&replica, &Method::POST, "/append", &format!("Bearer {token}")).await.status();
    assert_eq!(
        (status("first").await, status("root").await, status("second").await),
        (201.try_into().expect("a status"), 201.try_into().expect("a status"), 401.try_into().expect("a status"))
    );
    fs::write(&file, "append:second\n").expect("writable");
    replica.signal("HUP");
    until("the new token is known", async || status("second").await == 201).await;
    assert_eq!(status("first").await, 401);
    for broken in ["append:third\nwrite:hush\n", "", "append:third\nhush\n"] {
        fs::write(&file, broken).expect("writable");
        let before = replica.log().matches("cannot reload the tokens").count();
        replica.signal("HUP");
        until("it is said", async || replica.log().matches("cannot reload the tokens").count() > before).await;
        assert_eq!((status("second").await.as_u16(), status("third").await.as_u16()), (201, 401));
    }
    assert!(!replica.log().contains("hush"), "{}", replica.log());
}

#[test]
fn an_address_that_others_reach_is_not_served_without_tokens_unless_that_is_meant() {
    let bench = Bench::new(On::Embedded);
    for address in ["0.0.0.0:0", "[::]:0"] {
        let output = bench.run(&["serve"], &[("ROWLOCK_LISTEN", address)]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert_eq!(told.lines().count(), 1);
        for name in ["ROWLOCK_LISTEN", "ROWLOCK_API_TOKENS", "ROWLOCK_AUTH"] {
            assert!(told.contains(name), "{told}");
        }
        bench.replica(&[("ROWLOCK_LISTEN", address), ("ROWLOCK_AUTH", "off")]);
        bench.replica(&[("ROWLOCK_LISTEN", address), TOKENS[0]]);
    }
    bench.replica(&[("ROWLOCK_LISTEN", "[::1]:0")]);
}

#[test]
fn tokens_that_are_none_end_the_start_and_no_secret_is_shown() {
    let bench = Bench::new(On::Embedded);
    for tokens in ["hush", "writer:hush", "append:hush,read:", "append:hu sh", "@/nowhere/hush-file", ","] {
        let output = bench.run(&["serve"], &[("ROWLOCK_API_TOKENS", tokens)]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), told.lines().count()), (Some(2), 1), "{told}");
        assert!(told.contains("ROWLOCK_API_TOKENS"), "{told}");
        assert!(!told.replace("hush-file", "").contains("hush"), "{told}");
    }
    let help = bench.run(&["--help"], &TOKENS);
    assert!(!String::from_utf8_lossy(&help.stdout).contains("secret"));
    let flag = bench.run(&["serve", "--api-tokens", "append:x"], &[]);
    assert_eq!(flag.status.code(), Some(2), "a command line is seen by all");
}

/// A key, and a certificate for this host that signs itself.
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

/// What curl gets over TLS, trusting one certificate; nothing if it trusts not.
fn curl(url: &str, cert: &str, args: &[&str]) -> Option<String> {
    let output = Command::new("curl").args(["-sS", "--max-time", "10", "--cacert", cert]).args(args).arg(url).output();
    let output = output.expect("curl runs");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test]
async fn https_is_served_and_a_new_certificate_is_taken_on_a_signal() {
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
    assert!(curl(&format!("{url}/livez"), &other, &[]).is_none(), "another one is not trusted");
    fs::copy(&other, &cert).expect("writable");
    replica.signal("HUP");
    until("a pair that does not fit is said", async || replica.log().contains("cannot reload the certificate")).await;
    fs::copy(&other_key, &key).expect("writable");
    replica.signal("HUP");
    until("the new one is served", async || curl(&format!("{url}/livez"), &other, &[]).is_some()).await;
}

#[test]
fn a_certificate_that_cannot_be_used_ends_the_start() {
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
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), told.lines().count()), (Some(2), 1), "{told}");
        assert!(told.contains(named), "{told}");
    }
}
