//! Each recipe of docs/clients.md, as it stands there, against a real replica whose answers get lost on the way.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use crate::support::{Bench, On, not_run};

const UNAVAILABLE: &str = "{\"code\":\"no_replica\",\"retryable\":true,\"outcome\":\"not_written\"}";

fn recipe(language: &str) -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/clients.md");
    let text = fs::read_to_string(path).expect("readable");
    let blocks: Vec<_> = text.split(&format!("\n```{language}\n")).skip(1).collect();
    assert_eq!(blocks.len(), 1, "one recipe in {language}");
    blocks[0].split("\n```\n").next().expect("a block ends").to_owned()
}

/// Reads one HTTP message with a `Content-Length`.
fn read_message(stream: &TcpStream) -> Option<Vec<u8>> {
    let mut reader = BufReader::new(stream);
    let (mut message, mut length) = (Vec::new(), 0);
    loop {
        let mut line = Vec::new();
        reader.read_until(b'\n', &mut line).ok().filter(|&bytes| bytes > 0)?;
        let text = String::from_utf8_lossy(&line).to_ascii_lowercase();
        if let Some(value) = text.strip_prefix("content-length:") {
            length = value.trim().parse().expect("a number");
        }
        message.extend_from_slice(&line);
        if line == b"\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    message.append(&mut body);
    Some(message)
}

/// Forwards requests to a replica, and counts those. The first answer is lost after the row was written, the second request gets 503.
fn lossy_proxy(replica: String) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let forwarded = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&forwarded);
    thread::spawn(move || {
        for (number, client) in listener.incoming().map_while(Result::ok).enumerate() {
            let Some(request) = read_message(&client) else { continue };
            if number == 1 {
                let head = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n";
                let _ = write!(&client, "{head}Content-Length: {}\r\n\r\n{UNAVAILABLE}", UNAVAILABLE.len());
                continue;
            }
            let upstream = TcpStream::connect(replica.trim_start_matches("http://")).expect("the replica listens");
            (&upstream).write_all(&request).expect("the replica reads");
            let answer = read_message(&upstream).expect("the replica answers");
            count.fetch_add(1, Ordering::Relaxed);
            if number != 0 {
                let _ = (&client).write_all(&answer);
            }
        }
    });
    (url, forwarded)
}

/// Runs the recipe. It must print the acknowledgement, and leave one row.
fn writes_one_row(language: &str, file: &str, command: &[&str]) {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[("ROWLOCK_API_TOKENS", "append:token-of-a-recipe")]);
    let (url, forwarded) = lossy_proxy(replica.url.clone());
    fs::write(bench.folder().join(file), recipe(language)).expect("writable");
    let output = Command::new(command[0])
        .args(&command[1..])
        .arg(file)
        .current_dir(bench.folder())
        .envs([("ROWLOCK_URL", url.as_str()), ("ROWLOCK_TOKEN", "token-of-a-recipe")])
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{} runs: {e}", command[0]));
    let (printed, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success() && printed.contains("\"offset\""),
        "{language}: {printed}\n{said}\n{}",
        replica.log()
    );
    assert_eq!(forwarded.load(Ordering::Relaxed), 2, "{language}: the request whose answer was lost is sent again");
    let rows = bench.rows();
    assert_eq!(rows.len(), 1, "{language}: {rows:?}");
    assert_eq!(rows[0]["data"], "hello", "{language}");
}

/// Whether this runtime is here, in this version or a newer one. If not, the test leaves its recipe out.
pub(crate) fn is_here(language: &str, command: &[&str], before: &str, version_min: u32) -> bool {
    let output = Command::new(command[0]).args(&command[1..]).output();
    let version = output.ok().and_then(|output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split(before).nth(1)?.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok()
    });
    let here = version.is_some_and(|version| version >= version_min);
    if !here {
        not_run(&format!("what clients in {language} do: {} is missing or too old", command[0]));
    }
    here
}

#[test]
fn python_recipe_writes_a_retried_row_once() {
    writes_one_row("python", "append.py", &["python3"]);
}

#[test]
fn shell_recipe_writes_a_retried_row_once() {
    writes_one_row("sh", "append.sh", &["sh"]);
}

#[test]
fn javascript_recipe_writes_a_retried_row_once() {
    if is_here("JavaScript", &["node", "--version"], "v", 20) {
        writes_one_row("javascript", "append.mjs", &["node"]);
    }
}

#[test]
fn go_recipe_writes_a_retried_row_once() {
    if is_here("Go", &["go", "version"], "go1.", 19) {
        writes_one_row("go", "append.go", &["go", "run"]);
    }
}
