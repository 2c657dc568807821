//! `Idempotency-Key`: a request that is retried until it succeeds writes its row once.

use std::{fs, time::Duration};

use serde_json::{Value, json};

use crate::support::{Bench, On, Replica, answer, until, until_checkpointed, until_held};

/// Returns the status, whether the answer was replayed, and the body.
async fn keyed(replica: &Replica, key: &str, body: Value) -> (u16, bool, Value) {
    let response = replica.post(&body).header("idempotency-key", key).send().await.expect("an answer");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let replayed = headers.get("idempotent-replayed").is_some_and(|value| value == "true");
    (status, replayed, response.json().await.expect("JSON"))
}

#[tokio::test]
async fn key_is_replayed_by_any_replica_after_kill_and_flush() {
    let bench = Bench::new(On::Redis);
    let settings = [("ROWLOCK_CSV_HEADER", "token,key,data")];
    let mut replicas = [(); 2].map(|()| bench.replica(&settings));
    let (status, replayed, first) = keyed(&replicas[0], "\"k,1\"", json!({"data": "x", "skip_release": false})).await;
    assert_eq!((status, replayed), (201, false), "{first}");
    for replica in &replicas {
        assert_eq!(keyed(replica, "k,1", json!({"data": "x"})).await, (201, true, first.clone()));
    }
    replicas[0].signal("KILL");
    replicas[0].end();
    let again = bench.replica(&settings);
    assert_eq!(keyed(&again, "k,1", json!({"data": "x"})).await, (201, true, first.clone()), "from the journal");
    until_checkpointed(&bench).await;
    bench.redis().cli(&["flushall"]);
    let late = bench.replica(&settings);
    assert_eq!(keyed(&late, "k,1", json!({"data": "x"})).await, (201, true, first), "from the keys file");
    assert_eq!(bench.content(), "token,key,data\n1,\"k,1\",x\n");
}

#[tokio::test]
async fn key_with_other_data_is_refused() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    assert_eq!(keyed(&replica, "k", json!({"data": "x"})).await.0, 201);
    for data in [json!("y"), json!(["x", ""]), json!(""), json!({"data": "z"})] {
        let (status, _, problem) = keyed(&replica, "k", json!({ "data": data })).await;
        let expected = (422, &json!("not_written"));
        assert_eq!((status, &problem["outcome"]), expected, "{problem}");
    }
    let (status, _, problem) = keyed(&replica, "k", json!({"data": "y", "sleep": 0.01})).await;
    assert_eq!((status, &problem["code"]), (422, &json!("key_reused")));
    // Equal cells are equal data, however they are encoded. `sleep` is not part of the data, and a replay does not sleep.
    let (status, replayed, _) = keyed(&replica, "k", json!({"data": {"data": "x"}, "sleep": 20})).await;
    assert_eq!((status, replayed), (201, true));
    assert_eq!(bench.rows().len(), 1);
}

#[tokio::test]
async fn key_in_flight_is_conflict_here_and_one_row_elsewhere() {
    let bench = Bench::new(On::Redis);
    let replicas = [(); 2].map(|()| bench.replica(&[]));
    let body = json!({"data": "x", "sleep": 0.5});
    let (first, second, third) =
        tokio::join!(keyed(&replicas[0], "k", body.clone()), keyed(&replicas[1], "k", body.clone()), async {
            until_held(&bench).await;
            until("a conflict", async || {
                // The first replica refuses the key while its own request is in flight.
                let response = replicas[0].post(&body).header("idempotency-key", "k").send().await.expect("an answer");
                let (status, retry) = (response.status().as_u16(), response.headers().contains_key("retry-after"));
                assert_eq!(status == 409, retry);
                if status == 409 {
                    let problem: Value = response.json().await.expect("JSON");
                    // The row of the key is written a moment later.
                    let expected = (&json!("key_in_flight"), &json!("unknown"));
                    assert_eq!((&problem["code"], &problem["outcome"]), expected, "{problem}");
                }
                status == 409
            })
            .await;
        });
    let ((), [first, second]) = (third, [first, second]);
    assert_eq!((first.0, second.0), (201, 201));
    assert!(first.1 != second.1, "one of them is the other's answer: {first:?} {second:?}");
    assert_eq!(first.2, second.2);
    assert_eq!(bench.rows().len(), 1);
}

#[tokio::test]
async fn key_of_a_disconnected_client_stays_in_flight() {
    let bench = Bench::new(On::Redis);
    let replica = bench.replica(&[]);
    let body = json!({"data": "x", "sleep": 1});
    let first = tokio::spawn(replica.post(&body).header("idempotency-key", "k").send());
    until_held(&bench).await;
    first.abort();
    // From here on the row is written, whatever the client does.
    let (status, _, problem) = keyed(&replica, "k", body.clone()).await;
    assert_eq!((status, &problem["outcome"]), (409, &json!("unknown")), "{problem}");
    let mut last = (0, false);
    until("the answer is replayed", async || {
        let (status, replayed, _) = keyed(&replica, "k", body.clone()).await;
        last = (status, replayed);
        status != 409
    })
    .await;
    assert_eq!(last, (201, true));
    assert_eq!(bench.rows().len(), 1);
}

#[tokio::test]
async fn key_in_flight_is_told_before_other_reasons() {
    let mut bench = Bench::new(On::Redis);
    let replica = bench.replica(&[("ROWLOCK_WAIT_TIMEOUT", "3s")]);
    bench.redis.as_mut().expect("a Redis").stop();
    until("the outage is logged", async || replica.log().contains("the lock is unreachable")).await;
    // Requests are refused at once when Redis has been away for 3 s. This one then still waits for a second.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let first = tokio::spawn(answer(replica.post(&json!({"data": "x"})).header("idempotency-key", "k")));
    until("it is in the queue", async || {
        let metrics = replica.get("/metrics", &[]).await.text().await.expect("text");
        metrics.lines().any(|line| line == "rowlock_queue_rows 1")
    })
    .await;
    loop {
        let (status, _, problem) = keyed(&replica, "k", json!({"data": "x"})).await;
        if first.is_finished() {
            break;
        }
        assert_eq!((status, &problem["outcome"]), (409, &json!("unknown")), "{problem}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(first.await.expect("no panic").1["code"], "redis_unavailable");
}

#[tokio::test]
async fn refused_key_is_not_remembered() {
    let bench = Bench::new(On::Redis);
    let replica = bench.replica(&[("ROWLOCK_WAIT_TIMEOUT", "300ms")]);
    bench.redis().cli(&["set", crate::support::LOCK_KEY, "foreign", "px", "60000"]);
    let (status, _, problem) = keyed(&replica, "k", json!({"data": "x"})).await;
    assert_eq!((status, &problem["code"]), (503, &json!("wait_timeout")));
    bench.redis().cli(&["del", crate::support::LOCK_KEY]);
    let (status, replayed, _) = keyed(&replica, "k", json!({"data": "other"})).await;
    assert_eq!((status, replayed), (201, false));
}

#[tokio::test]
async fn only_newest_keys_are_remembered() {
    let bench = Bench::new(On::Embedded);
    let few = [("ROWLOCK_IDEMPOTENCY_KEYS", "3")];
    let replica = bench.replica(&few);
    for key in ["a", "b", "c", "d"] {
        assert_eq!(keyed(&replica, key, json!({ "data": key })).await.0, 201);
    }
    until_checkpointed(&bench).await;
    for replica in [replica, bench.replica(&few)] {
        for key in ["d", "c", "b"] {
            assert!(keyed(&replica, key, json!({ "data": key })).await.1, "{key} is remembered");
        }
    }
    let replica = bench.replica(&few);
    assert!(!keyed(&replica, "a", json!({"data": "a"})).await.1, "the oldest is forgotten");
    assert_eq!(bench.rows().len(), 5);
}

#[tokio::test]
async fn larger_key_limit_keeps_keys_of_smaller_file() {
    let bench = Bench::new(On::Embedded);
    let small = bench.replica(&[("ROWLOCK_IDEMPOTENCY_KEYS", "3")]);
    for key in ["a", "b", "c"] {
        keyed(&small, key, json!({ "data": key })).await;
    }
    until_checkpointed(&bench).await;
    let large = bench.replica(&[("ROWLOCK_IDEMPOTENCY_KEYS", "100")]);
    for key in ["a", "b", "c"] {
        assert!(keyed(&large, key, json!({ "data": key })).await.1, "{key}");
    }
    for key in ["d", "e"] {
        assert!(!keyed(&small, key, json!({ "data": key })).await.1);
    }
    until_checkpointed(&bench).await;
    let again = bench.replica(&[("ROWLOCK_IDEMPOTENCY_KEYS", "100")]);
    for key in ["a", "b", "c", "d", "e"] {
        assert!(keyed(&again, key, json!({ "data": key })).await.1, "{key}");
    }
    assert!(fs::metadata(format!("{}.keys", bench.csv.display())).expect("there").len() >= 128 * 6);
}

#[tokio::test]
async fn keys_survive_journal_recycling() {
    let bench = Bench::new(On::Redis);
    let replicas = [(); 3].map(|()| bench.replica(&[]));
    let body = "x".repeat(3000);
    let posts = (0..1200).map(|n| {
        let replica = &replicas[n % 3];
        keyed(replica, Box::leak(format!("k{n}").into_boxed_str()), json!({ "data": format!("{n} {body}") }))
    });
    let answers = futures_util::future::join_all(posts).await;
    assert!(answers.iter().all(|(status, replayed, _)| (*status, *replayed) == (201, false)));
    let late = bench.replica(&[]);
    for n in [0, 1, 2, 599, 1197, 1198, 1199] {
        for replica in replicas.iter().chain([&late]) {
            let (_, replayed, ack) = keyed(replica, &format!("k{n}"), json!({ "data": format!("{n} {body}") })).await;
            assert_eq!((replayed, &ack), (true, &answers[n].2), "k{n}");
        }
    }
    assert_eq!(bench.rows().len(), 1200);
}

#[tokio::test]
async fn retries_write_once_while_replicas_are_killed() {
    let bench = Bench::new(On::Redis);
    let settings = [("ROWLOCK_LOCK_TTL", "300ms")];
    let steady = bench.replica(&settings);
    let posts = async {
        for round in 0..6 {
            let victim = bench.replica(&settings);
            let (victim, steady) = (&victim, &steady);
            let rounds = (0..40).map(|n| async move {
                let (key, body) = (format!("{round}-{n}"), json!({ "data": format!("{round}-{n}") }));
                let mut targets = [victim, steady].into_iter().cycle();
                loop {
                    let target = targets.next().expect("a cycle");
                    let request = target.post(&body).header("idempotency-key", &key);
                    if request.send().await.is_ok_and(|response| response.status() == 201) {
                        break;
                    }
                }
            });
            let kill = async {
                steady.append_text(&format!("trigger {round}")).await;
                victim.signal("KILL");
            };
            tokio::join!(futures_util::future::join_all(rounds), kill);
        }
    };
    posts.await;
    let mut data: Vec<_> = bench.rows().into_iter().map(|mut row| row.remove("data").expect("data")).collect();
    data.retain(|data| !data.starts_with("trigger"));
    data.sort();
    let mut expected: Vec<_> = (0..6).flat_map(|round| (0..40).map(move |n| format!("{round}-{n}"))).collect();
    expected.sort();
    assert_eq!(data, expected);
}

#[test]
fn append_command_takes_key() {
    let bench = Bench::new(On::Embedded);
    let append = |data: &str| bench.run(&["append", "--data", data, "--idempotency-key", "k"], &[]);
    let (first, again, other) = (append("x"), append("x"), append("y"));
    assert!(first.status.success() && again.status.success());
    assert!(String::from_utf8_lossy(&again.stdout).contains("written before, under this key"), "{again:?}");
    assert_eq!(other.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&other.stderr).contains("used with other data"), "{other:?}");
    assert_eq!(bench.run(&["append", "--data", "x", "--idempotency-key", ""], &[]).status.code(), Some(2));
    assert_eq!(bench.rows().len(), 1);
}

#[tokio::test]
async fn row_too_large_for_journal_is_refused_alone() {
    let bench = Bench::new(On::Embedded);
    let replica = bench.replica(&[]);
    let large = "x".repeat(600_000);
    let posts = [&large, "small", &large].map(|data| answer(replica.post(&json!({ "data": data }))));
    let answers = futures_util::future::join_all(posts).await;
    let codes: Vec<_> = answers.iter().map(|(status, body)| (*status, body["code"].as_str())).collect();
    assert_eq!(codes, [(413, Some("batch_too_large")), (201, None), (413, Some("batch_too_large"))]);
    // The row exceeds the limit only after its quotes are escaped.
    let (status, problem) = replica.append(json!({ "data": "\"".repeat(300_000) })).await;
    assert_eq!((status, &problem["code"]), (413, &json!("batch_too_large")));
    assert_eq!(bench.rows().len(), 1);
}
