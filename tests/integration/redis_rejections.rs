//! A Redis that answers and refuses: told from one that does not answer, at the start, by commands, and while replicas run.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use reqwest::Method;
use serde_json::json;

use crate::support::{Bench, On, Redis, answer, free_port, until};

/// A server that answers all that it receives with the same bytes, or is Redis if there are none.
struct Fake {
    port: u16,
    answer: Arc<Mutex<Option<Vec<u8>>>>,
}

impl Fake {
    fn start(answer: &str, redis_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let answer = Arc::new(Mutex::new(Some(answer.as_bytes().to_vec())));
        let shared = Arc::clone(&answer);
        // It ends with the test's process, and each connection with its client.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let answer = shared.lock().expect("not poisoned").clone();
                thread::spawn(move || match answer {
                    Some(answer) => Self::say(client, &answer),
                    None => Self::forward(&client, redis_port),
                });
            }
        });
        Self { port, answer }
    }

    fn say(mut client: TcpStream, answer: &[u8]) {
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = client.read(&mut buffer) {
            let said = if answer == b"echo" { &buffer[..read] } else { answer };
            if client.write_all(said).is_err() {
                break;
            }
        }
    }

    fn forward(client: &TcpStream, redis_port: u16) {
        let server = TcpStream::connect(("127.0.0.1", redis_port)).expect("Redis is there");
        let (mut from, mut to) = (client.try_clone().expect("ours"), server.try_clone().expect("ours"));
        let requests = thread::spawn(move || std::io::copy(&mut from, &mut to));
        let _ = std::io::copy(&mut &server, &mut &*client);
        let _ = requests.join();
    }

    fn turn_into_redis(&self) {
        *self.answer.lock().expect("not poisoned") = None;
    }
}

const HTTP: &str = "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";

/// A Redis with a password and users that may too little.
fn guarded_redis() -> Redis {
    let redis = Redis::start(&[]);
    let rights = "on >hush resetkeys ~{rowlock:rows.csv}* resetchannels &* +@all";
    for (user, less) in
        [("no-script", "-evalsha"), ("no-counter", "-incr"), ("no-read", "-get"), ("no-key", "resetkeys")]
    {
        let acl: Vec<&str> = ["acl", "setuser", user].into_iter().chain(rights.split(' ')).chain([less]).collect();
        assert_eq!(redis.cli(&acl), "OK");
    }
    assert_eq!(redis.cli(&["config", "set", "requirepass", "right"]), "OK");
    redis
}

/// Address of a Redis that rejects, settings, and what the refusal says.
fn rejections(guarded: u16, open: u16, fakes: &mut Vec<Fake>) -> Vec<(String, &'static str, &'static str)> {
    let mut fake = |answer: &str| {
        fakes.push(Fake::start(answer, open));
        fakes.last().expect("pushed").port
    };
    vec![
        (format!("redis://:hush@127.0.0.1:{guarded}"), "", "WRONGPASS invalid username-password pair"),
        (format!("redis://nobody:hush@127.0.0.1:{guarded}"), "", "WRONGPASS"),
        (format!("redis-cluster://:hush@127.0.0.1:{guarded}"), "", "rejects"),
        (format!("redis://127.0.0.1:{guarded}"), "", "NOAUTH Authentication required"),
        (format!("redis://:hush@127.0.0.1:{open}"), "", "without any password configured"),
        (format!("redis://no-script:hush@127.0.0.1:{guarded}"), "", "NOPERM"),
        (format!("redis://no-counter:hush@127.0.0.1:{guarded}"), "", "can't run this command"),
        (format!("redis://no-read:hush@127.0.0.1:{guarded}"), "", "can't run this command"),
        (format!("redis://no-key:hush@127.0.0.1:{guarded}"), "", "NOPERM"),
        (format!("redis://127.0.0.1:{open}/99"), "", "DB index is out of range"),
        (format!("redis-cluster://127.0.0.1:{open}"), "", "cluster support disabled"),
        (format!("redis-cluster://127.0.0.1:{open}"), "{}x", "has a } but no hash tag"),
        (format!("redis://127.0.0.1:{}", fake(HTTP)), "", "not Redis's protocol"),
        (format!("redis://:hush@127.0.0.1:{}", fake(HTTP)), "", "not Redis's protocol"),
        (format!("redis-cluster://:hush@127.0.0.1:{}", fake(HTTP)), "", "rejects"),
        (format!("redis://127.0.0.1:{}", fake("220 mail ESMTP\r\n")), "", "not Redis's protocol"),
        (format!("redis://:hush@127.0.0.1:{}", fake("echo")), "", "rejects"),
        (
            format!("redis://:hush@127.0.0.1:{}", fake("-ERR unknown command 'AUTH', with args: 'hush'\r\n")),
            "",
            "'***'",
        ),
        (
            format!(
                "redis://:hush@127.0.0.1:{}?protocol=3",
                fake("-ERR unknown command 'HELLO', with args: 'hush'\r\n")
            ),
            "",
            "rejects",
        ),
        (format!("redis://127.0.0.1:{}", fake("-DENIED Redis is running in protected mode\r\n")), "", "protected mode"),
        (format!("redis://127.0.0.1:{}", fake("-MOVED 1 10.0.0.1:6379\r\n")), "", "MOVED 1 10.0.0.1:6379"),
        (format!("redis://127.0.0.1:{}", fake("-CROSSSLOT Keys in request\r\n")), "", "CROSSSLOT"),
    ]
}

#[test]
fn redis_that_rejects_refuses_every_command_in_one_line() {
    let (guarded, open, mut fakes) = (guarded_redis(), Redis::start(&[]), Vec::new());
    for (url, key, says) in rejections(guarded.port(), open.port(), &mut fakes) {
        let bench = Bench::new(On::Embedded);
        let port = url.rsplit(':').next().and_then(|rest| rest.split(['/', '?']).next()).expect("a port");
        // A command that waited for the lock would be killed.
        let settings = [("REDIS_CONN_STR", &*url), ("ROWLOCK_WAIT_TIMEOUT", "1h"), ("ROWLOCK_LOCK_KEY", key)];
        for args in [&["serve"][..], &["append", "--data", "x"], &["lock"], &["lock", "release"]] {
            let output = bench.run(args, &settings);
            if args == ["lock"] && url.contains("no-counter") {
                assert_eq!(output.status.code(), Some(0), "a user that may read is enough: {output:?}");
                continue;
            }
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!((output.status.code(), said.lines().count()), (Some(2), 1), "{url} {args:?}: {said}");
            assert!(said.contains(says), "{url} {args:?}: {said}");
            assert!(said.contains(&format!("127.0.0.1:{port}")) || !key.is_empty(), "{url} {args:?}: {said}");
            assert!(!said.contains("hush"), "{url} {args:?}: {said}");
        }
        let traced = bench.run(&["lock"], &[&settings[..], &[("RUST_LOG", "rowlock=trace")]].concat());
        assert!(!String::from_utf8_lossy(&traced.stderr).contains("hush"), "{url}: {traced:?}");
        assert!(!bench.csv.exists(), "{url}: nothing is created");
    }
}

#[test]
fn unreachable_redis_is_named_by_the_lock_command() {
    let bench = Bench::new(On::Embedded);
    let url = format!("redis://:hush@127.0.0.1:{}", free_port());
    let output = bench.run(&["lock"], &[("REDIS_CONN_STR", &*url)]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(75), "{said}");
    let last = said.lines().last().expect("a line");
    assert!(last.contains("cannot be reached: ") && last.contains(url.split('@').nth(1).expect("a host")), "{said}");
    assert!(!said.contains("hush"), "{said}");
}

/// How Redis begins to reject a replica that runs, what it says, and how that is undone.
const TURNS: [(&str, &str, &str); 6] = [
    ("config set requirepass hush; -a hush client kill type normal", "NOAUTH", "-a hush config set requirepass ''"),
    ("acl setuser default -incr", "can't run this command", "acl setuser default +incr"),
    ("acl setuser default -evalsha", "NOPERM", "acl setuser default +evalsha"),
    ("replicaof 127.0.0.1 1", "READONLY", "replicaof no one"),
    ("config set maxmemory 1", "OOM", "config set maxmemory 0"),
    ("config set min-replicas-to-write 1", "NOREPLICAS", "config set min-replicas-to-write 0"),
];

fn run_all(redis: &Redis, commands: &str) {
    for command in commands.split("; ") {
        let words: Vec<&str> = command.split(' ').map(|word| if word == "''" { "" } else { word }).collect();
        redis.cli(&words);
    }
}

#[tokio::test]
async fn rejected_replica_is_not_ready_and_heals_by_itself() {
    let bench = Bench::new(On::Redis);
    let replica = bench.replica(&[("ROWLOCK_WAIT_TIMEOUT", "500ms")]);
    for (turn, says, undo) in TURNS {
        replica.append_text("before").await;
        let rows = bench.rows().len();
        run_all(bench.redis(), turn);
        let response = replica.post(&json!({"data": "refused"})).send().await.expect("an answer");
        assert!(response.headers().contains_key("retry-after"), "{says}");
        let (status, problem) = (response.status(), response.json::<serde_json::Value>().await.expect("JSON"));
        assert_eq!((status.as_u16(), &problem["code"]), (503, &json!("redis_rejected")), "{says}: {problem}");
        assert_eq!((&problem["outcome"], &problem["retryable"]), (&json!("not_written"), &json!(true)), "{problem}");
        until("the replica is not ready", async || replica.get("/readyz", &[]).await.status() == 503).await;
        // Also while no row asks for the lock.
        let checks = replica.get("/readyz?verbose", &[]).await;
        assert_eq!(checks.status(), 503, "{says}");
        let checks = checks.text().await.expect("text");
        let address = format!("Redis at 127.0.0.1:{} rejects this replica: ", bench.redis().port());
        assert!(checks.contains(&address) && checks.contains(says), "{says}: {checks}");
        assert!(!checks.contains("unreachable"), "{says}: {checks}");
        let health = bench.run(&["health", &replica.url], &[]);
        assert_eq!(health.status.code(), Some(1), "{health:?}");

        run_all(bench.redis(), undo);
        until("rows are taken again", async || replica.append(json!({"data": "after"})).await.0 == 201).await;
        assert_eq!(replica.get("/readyz", &[]).await.status(), 200, "{says}");
        assert_eq!(bench.rows().len(), rows + 1, "{says}: the refused row is not written later");
    }
    assert!(!replica.log().contains("hush"), "{}", replica.log());
}

#[tokio::test]
async fn loading_redis_is_waited_for_by_start_and_rows() {
    for state in [
        "LOADING Redis is loading the dataset in memory",
        "READONLY You can't write",
        "ERR max number of clients reached",
    ] {
        let bench = Bench::new(On::Redis);
        let fake = Fake::start(&format!("-{state}\r\n"), bench.redis().port());
        let url = format!("redis://127.0.0.1:{}", fake.port);
        let replica = bench.replica(&[("REDIS_CONN_STR", &*url)]);
        let (status, problem) = answer(replica.request(Method::GET, "/lock")).await;
        assert_eq!((status, &problem["code"]), (503, &json!("redis_rejected")), "{problem}");
        assert_eq!(replica.get("/readyz", &[]).await.status(), 200, "waiting may help: {state}");
        let (_, ()) = tokio::join!(replica.append_text("waits"), async { fake.turn_into_redis() });
    }
}
