//! The lock's Lua scripts: compared with a model in random order, and with answers that are cut off.

use std::{
    collections::{HashMap, VecDeque},
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use proptest::{collection::vec, prelude::*, test_runner::TestRunner};
use redis::{Commands, Connection, Script};
use serde_json::json;

use crate::support::{Bench, On, Redis};

const QUEUE: &str = include_str!("../../src/lock/redis/scripts/queue.lua");
const KEYS: [&str; 4] = ["{m}", "{m}:token", "{m}:queue", "{m}:seen"];
const TTL_MS: u64 = 600_000;

fn acquire() -> String {
    [QUEUE, include_str!("../../src/lock/redis/scripts/acquire.lua")].concat()
}

fn release() -> String {
    [QUEUE, include_str!("../../src/lock/redis/scripts/release.lua")].concat()
}

fn renew() -> String {
    [QUEUE, include_str!("../../src/lock/redis/scripts/renew.lua")].concat()
}

const NO_MORE: (Option<usize>, Option<&str>) = (None, None);

/// Five replicas with two leases each, which they use in turn.
const LEASES: usize = 10;

fn next_lease(who: usize) -> usize {
    (who + LEASES / 2) % LEASES
}

/// One event, of one lease.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// The replica polls.
    Poll(usize),
    /// The holder releases the lock, a waiter leaves the queue, or any other lease calls by mistake.
    Release(usize),
    /// The same, and the replica queues for its other lease; if the flag is set, only if other replicas wait.
    Requeue(usize, bool),
    /// The waiter stops polling.
    Die(usize),
    /// The lock expires, as an abandoned one does, or another program deletes it.
    Expire,
}

#[derive(Debug, Default)]
struct Model {
    holder: Option<usize>,
    waiting: VecDeque<usize>,
    dead: [bool; LEASES],
    last_token: u64,
}

impl Model {
    /// The first live waiter is next.
    fn hand_over(&mut self) {
        self.holder = None;
        while let Some(next) = self.waiting.pop_front() {
            if !self.dead[next] {
                self.holder = Some(next);
                return;
            }
            self.dead[next] = false;
        }
    }

    /// Returns whether the lease is granted the lock.
    fn poll(&mut self, who: usize) -> bool {
        self.dead[who] = false;
        if self.holder.is_none() {
            if self.waiting.is_empty() {
                self.holder = Some(who);
            } else {
                self.join(who);
                self.hand_over();
            }
        }
        if self.holder != Some(who) {
            self.join(who);
        }
        self.holder == Some(who)
    }

    fn join(&mut self, who: usize) {
        if !self.waiting.contains(&who) {
            self.waiting.push_back(who);
        }
    }

    /// Returns the next holder, if this lease held the lock.
    fn release(&mut self, who: usize) -> Option<String> {
        if self.holder == Some(who) {
            self.hand_over();
            return Some(self.holder.map(|next| next.to_string()).unwrap_or_default());
        }
        self.waiting.retain(|&waiter| waiter != who);
        None
    }

    /// The same, and the replica's other lease joins the end of the queue.
    fn requeue(&mut self, who: usize, only_if_contended: bool) -> Option<String> {
        if self.holder == Some(who) && !(only_if_contended && self.waiting.is_empty()) {
            let next = next_lease(who);
            assert!(!self.waiting.contains(&next), "an id that does not wait yet");
            self.dead[next] = false;
            self.waiting.push_back(next);
        }
        self.release(who)
    }
}

struct Real<'a> {
    redis: &'a mut Connection,
    scripts: &'a [Script; 2],
}

impl Real<'_> {
    fn call<T: redis::FromRedisValue>(&mut self, script: usize, who: usize, more: (Option<usize>, Option<&str>)) -> T {
        let mut call = self.scripts[script].prepare_invoke();
        KEYS.iter().for_each(|key| {
            call.key(*key);
        });
        call.arg(who).arg(TTL_MS).arg(more).invoke(self.redis).expect("the script runs")
    }

    /// Sets the time of its last poll back.
    fn die(&mut self, who: usize) -> bool {
        let known: bool = self.redis.hexists(KEYS[3], who).expect("answers");
        if known {
            let _: () = self.redis.hset(KEYS[3], who, "1 1").expect("answers");
        }
        known
    }
}

fn follow(steps: &[Step], real: &mut Real<'_>) -> Result<(), TestCaseError> {
    let _: () = redis::cmd("FLUSHALL").query(real.redis).expect("answers");
    let mut model = Model::default();
    for step in steps {
        match *step {
            Step::Poll(who) => {
                let (token, _): (u64, i64) = real.call(0, who, NO_MORE);
                prop_assert_eq!(token > 0, model.poll(who), "{} polls: {:?}", who, &model);
                if token > 0 {
                    prop_assert!(token > model.last_token, "tokens go back");
                    model.last_token = token;
                }
            }
            Step::Release(who) => {
                let next: (u64, Option<String>) = real.call(1, who, NO_MORE);
                prop_assert_eq!(next, (0, model.release(who)), "{} releases: {:?}", who, &model);
            }
            Step::Requeue(who, only_if_contended) => {
                let next = next_lease(who);
                // Replicas use each lease id once: one that waits already is never the next.
                if !model.waiting.contains(&next) {
                    let (token, holder): (u64, Option<String>) =
                        real.call(1, who, (Some(next), only_if_contended.then_some("soon")));
                    let expected = model.requeue(who, only_if_contended);
                    let is_granted = expected == Some(next.to_string());
                    let expected = if is_granted { Some(String::new()) } else { expected };
                    prop_assert_eq!((token > 0, holder), (is_granted, expected), "{} requeues: {:?}", who, &model);
                    if is_granted {
                        prop_assert!(token > model.last_token, "tokens go back");
                        model.last_token = token;
                    }
                }
            }
            // A holder that dies is covered by Step::Expire.
            Step::Die(who) => {
                if model.waiting.contains(&who) {
                    prop_assert!(real.die(who), "a waiter is known");
                    model.dead[who] = true;
                }
            }
            Step::Expire => {
                let _: () = real.redis.del(KEYS[0]).expect("answers");
                model.holder = None;
            }
        }
        let holder: Option<usize> = real.redis.get(KEYS[0]).expect("answers");
        prop_assert_eq!(holder, model.holder, "after {:?}", step);
        let waiting: VecDeque<usize> = real.redis.lrange::<_, Vec<usize>>(KEYS[2], 0, -1).expect("answers").into();
        prop_assert_eq!(&waiting, &model.waiting, "after {:?}", step);
    }
    Ok(())
}

fn step() -> impl Strategy<Value = Step> {
    let who = 0..LEASES;
    prop_oneof![
        6 => who.clone().prop_map(Step::Poll),
        4 => who.clone().prop_map(Step::Release),
        4 => (who.clone(), any::<bool>()).prop_map(|(who, only_if_contended)| Step::Requeue(who, only_if_contended)),
        1 => who.prop_map(Step::Die),
        1 => Just(Step::Expire),
    ]
}

#[test]
fn scripts_match_the_model_in_any_order() {
    let redis = Redis::start(&[]);
    let client = redis::Client::open(redis.url()).expect("an address");
    let mut connection = client.get_connection().expect("connects");
    let scripts = [Script::new(&acquire()), Script::new(&release())];
    let real = std::cell::RefCell::new(Real { redis: &mut connection, scripts: &scripts });
    let config = ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() };
    let run = TestRunner::new(config).run(&vec(step(), 1..20), |steps| follow(&steps, &mut real.borrow_mut()));
    run.unwrap_or_else(|e| panic!("{e}"));
}

/// With hand-overs only: no poll extends the keys.
#[test]
fn busy_queue_and_token_counter_do_not_expire() {
    let redis = Redis::start(&[]);
    let mut connection = redis::Client::open(redis.url()).and_then(|client| client.get_connection()).expect("connects");
    let scripts = [Script::new(&acquire()), Script::new(&release())];
    let mut real = Real { redis: &mut connection, scripts: &scripts };
    for who in [0, 1] {
        let _: (u64, i64) = real.call(0, who, NO_MORE);
    }
    for key in &KEYS[1..] {
        let shortened: bool = real.redis.pexpire(key, 40_000).expect("answers");
        assert!(shortened, "{key} is there");
    }
    for turn in 0..20 {
        let held: (u64, Option<String>) = real.call(1, turn, (Some(turn + 2), None));
        assert_eq!(held, (0, Some((turn + 1).to_string())), "the two take turns");
    }
    for key in &KEYS[1..] {
        let left: i64 = real.redis.pttl(key).expect("answers");
        assert!(left > 50_000, "{key} is kept for {left} ms");
    }
}

#[test]
fn holder_and_next_waiter_are_notified() {
    let redis = Redis::start(&[]);
    let client = redis::Client::open(redis.url()).expect("an address");
    let mut connection = client.get_connection().expect("connects");
    let mut listening = client.get_connection().expect("connects");
    let mut messages = listening.as_pubsub();
    messages.psubscribe("{m}:queue:*").expect("subscribes");
    messages.set_read_timeout(Some(Duration::from_secs(10))).expect("a connection");
    let scripts = [Script::new(&acquire()), Script::new(&release())];
    let mut call = |script: usize, who: &str| {
        let mut call = scripts[script].prepare_invoke();
        KEYS.iter().for_each(|key| {
            call.key(*key);
        });
        let _: redis::Value = call.arg(who).arg(TTL_MS).invoke(&mut connection).expect("the script runs");
    };
    for lease in ["a/1", "b/1", "c/1", "a b/1"] {
        call(0, lease);
    }
    call(1, "a/1");
    call(1, "b/1");
    call(0, "d/1");
    let mut next = || {
        let message = messages.get_message().expect("a notification");
        (message.get_channel_name().to_owned(), message.get_payload::<String>().expect("text"))
    };
    let expected =
        [("{m}:queue:a/", "wanted 1 a/1"), ("{m}:queue:b/", "granted 2 2 b/1"), ("{m}:queue:c/", "granted 3 1 c/1")];
    for (channel, what) in expected {
        assert_eq!(next(), (channel.to_owned(), what.to_owned()));
    }
    call(1, "c/1");
    call(1, "a b/1");
    call(0, "e/1");
    let expected = [
        ("{m}:queue:a b/", "granted 4 1 a b/1"),
        ("{m}:queue:d/", "granted 5 0 d/1"),
        ("{m}:queue:d/", "wanted 5 d/1"),
    ];
    for (channel, what) in expected {
        assert_eq!(next(), (channel.to_owned(), what.to_owned()));
    }
}

/// A proxy before Redis that cuts the next answers to one script in the middle, and closes the connection.
struct Proxy {
    port: u16,
    cuts_left: Arc<AtomicU32>,
}

impl Proxy {
    fn start(redis: &Redis, script: &str) -> Self {
        let (target, sha) = (redis.port(), redis.cli(&["script", "load", script]));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("bound").port();
        let cuts_left = Arc::new(AtomicU32::new(0));
        let cuts = Arc::clone(&cuts_left);
        // It ends with the test's process, and each connection with its replica.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect(("127.0.0.1", target)).expect("Redis is there");
                Self::serve(client, server, sha.clone(), Arc::clone(&cuts));
            }
        });
        Self { port, cuts_left }
    }

    fn serve(mut client: TcpStream, mut server: TcpStream, sha: String, cuts: Arc<AtomicU32>) {
        let asked = Arc::new(AtomicU32::new(0));
        let (mut requests, mut to_server) = (client.try_clone().expect("ours"), server.try_clone().expect("ours"));
        let seen = Arc::clone(&asked);
        thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok(read @ 1..) = requests.read(&mut buffer) {
                if buffer[..read].windows(sha.len()).any(|window| window == sha.as_bytes()) {
                    seen.fetch_add(1, Ordering::SeqCst);
                }
                if to_server.write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
            let _ = to_server.shutdown(Shutdown::Both);
        });
        thread::spawn(move || {
            let mut buffer = [0; 65536];
            while let Ok(read @ 1..) = server.read(&mut buffer) {
                let cut = asked.swap(0, Ordering::SeqCst) > 0
                    && cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
                let _ = client.write_all(&buffer[..if cut { read / 2 } else { read }]);
                if cut {
                    break;
                }
            }
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        });
    }
}

/// A lost grant would block all replicas for a full time to live, which is longer than the test waits.
async fn check_lost_answers(script: &str, sleep: f64) {
    let bench = Bench::new(On::Redis);
    let proxy = Proxy::start(bench.redis(), script);
    let url = format!("redis://127.0.0.1:{}", proxy.port);
    let ttl = if sleep > 0.0 { "3s" } else { "120s" };
    let settings = [("REDIS_CONN_STR", &*url), ("ROWLOCK_LOCK_TTL", ttl), ("ROWLOCK_CSV_HEADER", "token,data")];
    let replicas = [(); 2].map(|()| bench.replica(&settings));
    let began = Instant::now();
    let mut cut = 0;
    for round in 0..6 {
        proxy.cuts_left.store(1 + round % 2, Ordering::SeqCst);
        let posts = replicas.iter().map(|replica| replica.append(json!({"data": "x", "sleep": sleep})));
        for (status, body) in futures_util::future::join_all(posts).await {
            assert_eq!(status, 201, "{body}");
        }
        cut += (1 + round % 2) - proxy.cuts_left.swap(0, Ordering::SeqCst);
    }
    assert!(cut >= 3, "the answers were cut {cut} times");
    assert!(began.elapsed().as_secs() < 60, "a replica was blocked");
    let rows = bench.rows();
    let tokens: HashMap<&str, usize> =
        rows.iter().map(|row| row["token"].as_str()).fold(HashMap::new(), |mut map, token| {
            *map.entry(token).or_default() += 1;
            map
        });
    assert_eq!((rows.len(), tokens.len()), (12, 12), "each row under a token of its own: {tokens:?}");
}

#[tokio::test]
async fn grant_with_a_lost_answer_is_found_again() {
    check_lost_answers(&acquire(), 0.0).await;
}

#[tokio::test]
async fn release_with_a_lost_answer_releases_once() {
    check_lost_answers(&release(), 0.0).await;
}

#[tokio::test]
async fn renewal_with_a_lost_answer_is_repeated() {
    check_lost_answers(&renew(), 1.2).await;
}
