//! The lock's status, and forced releases.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Bench, LOCK_KEY, On, Replica, answer, until, until_free, until_held};

async fn status(replica: &Replica) -> Value {
    let (status, body) = answer(replica.request(Method::GET, "/lock")).await;
    assert_eq!(status, 200, "{body}");
    body
}

async fn force(replica: &Replica) -> Value {
    let (status, body) = answer(replica.request(Method::DELETE, "/lock")).await;
    assert_eq!(status, 200, "{body}");
    body
}

fn named(bench: &Bench, name: &str) -> Replica {
    bench.replica(&[("ROWLOCK_REPLICA", name), ("ROWLOCK_CSV_HEADER", "token,data"), ("ROWLOCK_LOCK_TTL", "60s")])
}

#[tokio::test]
async fn status_shows_the_holder_and_waiters_in_order() {
    let bench = Bench::new(On::Redis);
    let replicas = ["one", "two", "three"].map(|name| named(&bench, name));
    let free = json!({"lock": "redis", "state": "free", "holder": null, "token": null, "ttl_ms": null, "waiters": []});
    assert_eq!(status(&replicas[0]).await, free);
    let holding = replicas[0].append(json!({"data": "slow", "sleep": 1}));
    let observing = async {
        until_held(&bench).await;
        let second = replicas[1].append_text("second");
        let third = async {
            until("the second waits", async || {
                status(&replicas[2]).await["waiters"].as_array().expect("a list").len() == 1
            })
            .await;
            replicas[2].append_text("third").await
        };
        let seen = async {
            until("both wait", async || status(&replicas[2]).await["waiters"].as_array().expect("a list").len() == 2)
                .await;
            (status(&replicas[2]).await, bench.run(&["lock", "status", "--json"], &[]), bench.run(&["lock"], &[]))
        };
        tokio::join!(second, third, seen).2
    };
    let (_, (seen, json_output, text_output)) = tokio::join!(holding, observing);
    assert_eq!((&seen["state"], &seen["holder"], &seen["token"]), (&json!("held"), &json!("one"), &json!(1)), "{seen}");
    assert!((1..=60_000).contains(&seen["ttl_ms"].as_u64().expect("a number")), "{seen}");
    let waiters = seen["waiters"].as_array().expect("a list");
    assert_eq!((&waiters[0]["replica"], &waiters[1]["replica"]), (&json!("two"), &json!("three")));
    assert!(waiters[0]["waited_ms"].as_u64() >= waiters[1]["waited_ms"].as_u64(), "{seen}");
    let said: Value = serde_json::from_slice(&json_output.stdout).expect("JSON");
    assert_eq!((&said["holder"], said["waiters"].as_array().map(Vec::len)), (&json!("one"), Some(2)), "{said}");
    let text = String::from_utf8_lossy(&text_output.stdout).into_owned();
    assert!(text.contains("held by one, token 1") && text.contains("1. two waits"), "{text}");
    let data: Vec<_> = bench.rows().iter().map(|row| row["data"].clone()).collect();
    assert_eq!(data, ["slow", "second", "third"]);
}

/// Sets a key to a value of another program, as raw arguments: not all of them are text.
fn set_foreign(bench: &Bench, command: &str, key: &str, values: &[&[u8]]) {
    let client = redis::Client::open(bench.redis().url()).expect("an address");
    let mut connection = client.get_connection().expect("connects");
    let _: () = redis::cmd("DEL").arg(key).query(&mut connection).expect("answers");
    let _: redis::Value = redis::cmd(command).arg(key).arg(values).query(&mut connection).expect("answers");
}

/// Locks of other programs: a command, its arguments after the key, and the type of the key.
const FOREIGN: [(&str, &[&[u8]], &str); 9] = [
    ("SET", &[b"secret", b"PX", b"60000"], "string"),
    ("SET", &[b""], "string"),
    // rslock and pottery store random bytes.
    ("SET", &[b"\xff\xfe\x00secret"], "string"),
    ("SET", &[b"\xff/0123456789abcdef0123456789abcdef/10000/1"], "string"),
    // Redisson stores a hash.
    ("HSET", &[b"secret:1", b"1"], "hash"),
    ("RPUSH", &[b"secret"], "list"),
    ("SADD", &[b"secret"], "set"),
    ("ZADD", &[b"1", b"secret"], "zset"),
    ("XADD", &[b"*", b"secret", b"1"], "stream"),
];

#[tokio::test]
async fn foreign_lock_of_any_type_is_shown_waited_for_and_released() {
    let bench = Bench::new(On::Redis);
    let replica = named(&bench, "one");
    let impatient = bench.replica(&[("ROWLOCK_WAIT_TIMEOUT", "300ms"), ("ROWLOCK_CSV_HEADER", "token,data")]);
    for (n, (command, values, key_type)) in FOREIGN.into_iter().enumerate() {
        until_free(&bench).await;
        set_foreign(&bench, command, LOCK_KEY, values);
        let seen = status(&replica).await;
        assert_eq!((&seen["state"], &seen["foreign_type"]), (&json!("foreign"), &json!(key_type)), "{seen}");
        assert_eq!((&seen["holder"], &seen["token"]), (&Value::Null, &Value::Null), "{seen}");
        let shown = bench.run(&["lock"], &[]);
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(text.contains(&format!("foreign, its key is of type {key_type}")), "{shown:?}");
        assert!(!format!("{seen}{text}").contains("secret"), "its value is not shown");
        let (code, problem) = impatient.append(json!({"data": "waits"})).await;
        assert_eq!((code, &problem["code"]), (503, &json!("wait_timeout")), "{key_type}: {problem}");
        let waiting = async { replica.append_text("next").await };
        let releasing = async {
            until("the row waits for the lock", async || {
                bench.redis().cli(&["llen", crate::support::QUEUE_KEY]) == "1"
            })
            .await;
            if n % 2 == 0 {
                let forced = force(&impatient).await;
                assert_eq!((&forced["released"], &forced["holder"]), (&json!(true), &Value::Null), "{forced}");
            } else {
                let output = bench.run(&["lock", "release"], &[]);
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(said.starts_with("released: a client that is no replica held it"), "{output:?}");
            }
        };
        tokio::join!(waiting, releasing);
    }
    assert_eq!(bench.rows().len(), FOREIGN.len());
}

#[tokio::test]
async fn lease_replaced_by_another_type_is_lost() {
    let bench = Bench::new(On::Redis);
    let replica = bench.replica(&[("ROWLOCK_LOCK_TTL", "600ms"), ("ROWLOCK_CSV_HEADER", "token,data")]);
    let replacing = async {
        until_held(&bench).await;
        // The row sleeps only after its token is recorded.
        tokio::time::sleep(Duration::from_millis(100)).await;
        set_foreign(&bench, "HSET", LOCK_KEY, &[b"other", b"1"]);
    };
    let ((code, problem), ()) = tokio::join!(replica.append(json!({"data": "x", "sleep": 20})), replacing);
    assert_eq!((code, &problem["code"]), (503, &json!("lock_lost")), "{problem}");
    assert_eq!(bench.redis().cli(&["type", LOCK_KEY]), "hash", "it is not ours to release");
}

#[tokio::test]
async fn garbage_in_derived_keys_stops_neither_rows_nor_releases() {
    let bench = Bench::new(On::Redis);
    let replicas = ["one", "two"].map(|name| named(&bench, name));
    let garbage: [(&str, &[&[u8]]); 14] = [
        ("HSET", &[b"a", b"b"]),
        ("RPUSH", &[b"a"]),
        ("SADD", &[b"a"]),
        ("ZADD", &[b"1", b"a"]),
        ("XADD", &[b"*", b"a", b"b"]),
        ("SET", &[b"abc"]),
        ("SET", &[b""]),
        ("SET", &[b"\xff\xfe"]),
        ("SET", &[b"-5"]),
        ("SET", &[b"1e3"]),
        // Above 2^53, where Lua's numbers are not exact, then far above, and at the end of Redis's numbers.
        ("SET", &[b"9007199254740993"]),
        ("SET", &[b"9223372036854775806"]),
        ("SET", &[b"9223372036854775807"]),
        ("SET", &[b"99999999999999999999"]),
    ];
    for key in ["token", "queue", "seen"] {
        for (command, values) in garbage {
            let what = format!("{command} {key}");
            until_free(&bench).await;
            set_foreign(&bench, "SET", LOCK_KEY, &[b"foreign"]);
            set_foreign(&bench, command, &format!("{LOCK_KEY}:{key}"), values);
            assert_eq!(status(&replicas[0]).await["state"], "foreign", "{what}");
            assert_eq!(bench.run(&["lock"], &[]).status.code(), Some(0), "{what}");
            assert_eq!(force(&replicas[0]).await["released"], true, "{what}");
            let posts = replicas.iter().map(|replica| replica.append_text("x"));
            futures_util::future::join_all(posts).await;
        }
    }
    let tokens = bench.tokens();
    assert!(tokens.is_sorted_by(|a, b| a < b), "each row has a token of its own: {tokens:?}");
    assert_eq!(tokens.len(), 2 * 3 * garbage.len());
    assert!(tokens.iter().all(|&token| token < 1 << 62), "no token near the end of Redis's numbers: {tokens:?}");
}

#[tokio::test]
async fn abandoned_embedded_lock_is_shown_and_can_be_released() {
    let bench = Bench::new(On::Embedded);
    let (one, two) = (named(&bench, "one"), named(&bench, "two"));
    assert_eq!(status(&one).await["state"], "free");
    assert_eq!(one.append(json!({"data": "x", "skip_release": true})).await.0, 201);
    until_free(&bench).await;
    let seen = status(&two).await;
    assert_eq!((&seen["state"], &seen["holder"], &seen["token"]), (&json!("held"), &json!("one"), &json!(1)));
    assert!(seen["ttl_ms"].as_u64() > Some(30_000), "{seen}");
    assert_eq!(force(&two).await, json!({"released": true, "holder": "one", "token": 2}));
    two.append_text("y").await;
    let output = bench.run(&["lock", "release"], &[]);
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("nobody had it"), "{output:?}");
}

#[tokio::test]
async fn forced_release_fences_the_holder_out_and_hands_over() {
    let bench = Bench::new(On::Redis);
    let (one, two) = (named(&bench, "one"), named(&bench, "two"));
    let sleeping = one.append(json!({"data": "fenced out", "sleep": 30}));
    let forcing = async {
        until_held(&bench).await;
        one.signal("STOP");
        let waiting = two.append_text("next");
        let forced = async {
            until("the row waits for the lock", async || {
                bench.redis().cli(&["llen", crate::support::QUEUE_KEY]) == "1"
            })
            .await;
            let forced = force(&two).await;
            assert_eq!((&forced["released"], &forced["holder"]), (&json!(true), &json!("one")), "{forced}");
            forced["token"].as_u64().expect("a number")
        };
        let began = Instant::now();
        let (ack, forced_token) = tokio::join!(waiting, forced);
        assert!(ack["token"].as_u64().expect("a number") > forced_token, "{ack} {forced_token}");
        assert!(began.elapsed() < Duration::from_secs(20), "the forced release took effect at once");
        one.signal("CONT");
    };
    let ((code, problem), ()) = tokio::join!(sleeping, forcing);
    assert_eq!((code, &problem["code"], &problem["outcome"]), (503, &json!("lock_lost"), &json!("not_written")));
    assert_eq!(bench.rows().len(), 1);
}

#[tokio::test]
async fn a_forced_release_is_recorded_and_fences_older_tokens() {
    let bench = Bench::new(On::Redis);
    let replica = named(&bench, "one");
    bench.redis().cli(&["set", "{rowlock:rows.csv}:token", "41"]);
    assert_eq!(force(&replica).await, json!({"released": false, "holder": null, "token": 42}));
    // A replica with another lock on the same file: its first token is 1, which is lower.
    let stale = bench.replica(&[("ROWLOCK_LOCK_KEY", "another"), ("ROWLOCK_CSV_HEADER", "token,data")]);
    assert_eq!(stale.append_text("x").await["token"], json!(43));
}

#[tokio::test]
async fn sleeping_holder_can_force_its_own_release() {
    for on in [On::Redis, On::Embedded] {
        let bench = Bench::new(on);
        let replica = named(&bench, "one");
        let sleeping = replica.append(json!({"data": "given up", "sleep": 30}));
        let forcing = async {
            until_held(&bench).await;
            assert_eq!(force(&replica).await["holder"], "one");
            replica.append_text("next").await
        };
        let ((code, problem), _) = tokio::join!(sleeping, forcing);
        assert_eq!((code, &problem["code"]), (503, &json!("lock_lost")));
        assert_eq!(bench.rows().len(), 1);
    }
}

#[tokio::test]
async fn all_keys_in_redis_expire() {
    let bench = Bench::new(On::Redis);
    let replicas = [(); 3].map(|()| bench.replica(&[]));
    let posts = (0..30).map(|n| replicas[n % 3].append_text("x"));
    futures_util::future::join_all(posts).await;
    until_free(&bench).await;
    let keys = bench.redis().cli(&["keys", "*"]);
    for key in keys.lines() {
        let left = bench.redis().cli(&["pttl", key]).parse::<i64>().expect("a number");
        assert!(left > 0, "{key} never expires");
    }
    assert_eq!(keys, "{rowlock:rows.csv}:token", "only the counter is kept, for a day");
}
