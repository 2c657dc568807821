//! Every kind of Redis: ACL users, unix sockets, TLS, sentinels, a cluster; each a real one, made by the test.

use std::{fs, path::Path, process::Command};

use tempfile::TempDir;

use crate::support::{Bench, LOCK_KEY, On, Redis, Replica, free_port, until};

/// A replica on a Redis that is not the bench's own.
fn replica(bench: &Bench, url: &str, more: &[(&str, &str)]) -> Replica {
    bench.replica(&[&[("REDIS_CONN_STR", url), ("ROWLOCK_CSV_HEADER", "token,data")], more].concat())
}

/// Two replicas that wake each other: turns go back and forth.
async fn takes_turns(bench: &Bench, url: &str, more: &[(&str, &str)]) {
    let replicas = [(); 2].map(|()| replica(bench, url, more));
    let posts = (0..40).map(|n| replicas[n % 2].append_text("x"));
    futures_util::future::join_all(posts).await;
    let tokens = bench.tokens();
    assert_eq!((tokens.len(), tokens.is_sorted()), (40, true));
}

/// Makes the user of docs/deployment.md.
fn set_documented_acl(redis: &Redis) {
    let document = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/deployment.md")).expect("readable");
    let line = document.lines().find_map(|line| line.strip_prefix("ACL SETUSER ")).expect("it names the ACL");
    let acl: Vec<&str> = ["acl", "setuser"].into_iter().chain(line.split(' ')).collect();
    assert_eq!(redis.cli(&acl), "OK");
}

#[tokio::test]
async fn documented_acl_is_enough_also_on_a_unix_socket() {
    let folder = TempDir::new().expect("a folder");
    let socket = folder.path().join("redis.sock").display().to_string();
    let redis = Redis::start(&["--unixsocket", &socket]);
    set_documented_acl(&redis);
    let bench = Bench::new(On::Embedded);
    takes_turns(&bench, &format!("redis://rowlock:secret@127.0.0.1:{}", redis.port()), &[]).await;
    let bench = Bench::new(On::Embedded);
    takes_turns(&bench, &format!("redis+unix://{socket}?user=rowlock&pass=secret"), &[]).await;
    let denied = redis.cli(&["acl", "log"]);
    assert!(!denied.contains("reason"), "something was denied: {denied}");
    assert!(redis.cli(&["info", "commandstats"]).contains("cmdstat_publish"), "turns were handed over");
}

#[tokio::test]
async fn user_without_publish_or_subscribe_finds_turns_by_polling() {
    let redis = Redis::start(&[]);
    set_documented_acl(&redis);
    assert_eq!(redis.cli(&["acl", "setuser", "rowlock", "resetchannels", "-publish", "-subscribe"]), "OK");
    let bench = Bench::new(On::Embedded);
    takes_turns(&bench, &format!("redis://rowlock:secret@127.0.0.1:{}", redis.port()), &[]).await;
}

fn openssl(folder: &Path, args: &str) {
    let output = Command::new("openssl").current_dir(folder).args(args.split(' ')).output().expect("openssl runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A certificate authority, and certificates for the server and for us, signed by it.
fn certificates(folder: &Path) {
    openssl(folder, "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=test-ca");
    fs::write(folder.join("san"), "subjectAltName=IP:127.0.0.1").expect("written");
    for name in ["server", "client"] {
        openssl(folder, &format!("req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        openssl(
            folder,
            &format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days 2 -extfile san"
            ),
        );
    }
}

#[tokio::test]
async fn tls_with_a_ca_of_ones_own_and_a_client_certificate() {
    let folder = TempDir::new().expect("a folder");
    certificates(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let port = free_port().to_string();
    let (server_cert, server_key, ca) = (file("server.pem"), file("server.key"), file("ca.pem"));
    let tls = ["--tls-cert-file", &*server_cert, "--tls-key-file", &*server_key, "--tls-ca-cert-file", &*ca];
    let _redis = Redis::start(&[&["--tls-port", &port, "--tls-auth-clients", "yes"][..], &tls].concat());
    let url = format!("rediss://127.0.0.1:{port}/0");
    let (cert, key) = (file("client.pem"), file("client.key"));
    let all = [("ROWLOCK_REDIS_CA", &*ca), ("ROWLOCK_REDIS_CERT", &*cert), ("ROWLOCK_REDIS_KEY", &*key)];
    let bench = Bench::new(On::Embedded);
    takes_turns(&bench, &url, &all).await;

    let sentinel_port = free_port().to_string();
    let monitored_by_tls = ["--sentinel", "--tls-port", &sentinel_port, "--tls-replication", "yes"];
    let sentinel = Redis::start(&[&monitored_by_tls[..], &tls].concat());
    assert_eq!(sentinel.cli(&["sentinel", "monitor", "rows", "127.0.0.1", &port, "1"]), "OK");
    until("the sentinel sees the primary", async || {
        sentinel.cli(&["sentinel", "master", "rows"]).contains("role-reported\nmaster")
    })
    .await;
    let bench = Bench::new(On::Embedded);
    takes_turns(&bench, &format!("rediss-sentinel://127.0.0.1:{sentinel_port}/0#rows"), &all).await;

    let append = |settings: &[(&str, &str)]| {
        let wait = [("REDIS_CONN_STR", &*url), ("ROWLOCK_WAIT_TIMEOUT", "500ms")];
        bench.run(&["append", "--data", "x"], &[&wait[..], settings].concat())
    };
    assert_eq!(append(&all[..1]).status.code(), Some(75), "the server asks for a certificate");
    assert_eq!(append(&all[1..]).status.code(), Some(75), "the system's roots don't know the test's CA");
    for (settings, says) in [
        (&[all[0], all[1]][..], "go together"),
        (&[("ROWLOCK_REDIS_CA", "/nowhere.pem")], "ROWLOCK_REDIS_CA (--redis-ca): cannot read /nowhere.pem"),
    ] {
        let output = append(settings);
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains(says), "{output:?}");
    }
}

#[tokio::test]
async fn sentinel_failover_to_replica_without_the_lock_is_followed() {
    let primary = Redis::start(&[]);
    let follower = Redis::start(&["--replicaof", "127.0.0.1", &primary.port().to_string()]);
    until("the replica follows", async || follower.cli(&["info", "replication"]).contains("master_link_status:up"))
        .await;
    let sentinels = [(); 3].map(|()| Redis::start(&["--sentinel"]));
    for sentinel in &sentinels {
        let monitor = ["sentinel", "monitor", "rows", "127.0.0.1", &primary.port().to_string(), "2"];
        assert_eq!(sentinel.cli(&monitor), "OK");
        for (name, value) in [("down-after-milliseconds", "500"), ("failover-timeout", "3000")] {
            assert_eq!(sentinel.cli(&["sentinel", "set", "rows", name, value]), "OK");
        }
    }
    until("the sentinels know each other", async || {
        sentinels.iter().all(|sentinel| {
            let known = sentinel.cli(&["sentinel", "master", "rows"]);
            known.contains("num-other-sentinels\n2") && known.contains("num-slaves\n1")
        })
    })
    .await;
    let hosts: Vec<String> = sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port())).collect();
    let url = format!("redis-sentinel://{}/0#rows", hosts.join(","));
    let bench = Bench::new(On::Embedded);
    let replicas = [(); 2].map(|()| replica(&bench, &url, &[("ROWLOCK_LOCK_TTL", "1s")]));
    for replica in &replicas {
        replica.append_text("before").await;
    }
    // What the primary grants from now on never reaches the replica: tokens will go back, and the fence must hold.
    follower.cli(&["replicaof", "no", "one"]);
    follower.cli(&["flushall"]);
    replicas[0].append_text("unreplicated").await;
    follower.cli(&["replicaof", "127.0.0.1", &primary.port().to_string()]);
    until("the replica follows again", async || {
        follower.cli(&["info", "replication"]).contains("master_link_status:up")
    })
    .await;
    primary.signal("STOP");
    let posts = replicas.iter().map(|replica| replica.append_text("during"));
    futures_util::future::join_all(posts).await;
    assert!(follower.cli(&["role"]).starts_with("master"), "the rows were written under the new primary");
    primary.signal("CONT");
    for replica in &replicas {
        replica.append_text("after").await;
    }
    let tokens = bench.tokens();
    assert_eq!((tokens.len(), tokens.is_sorted()), (7, true), "{tokens:?}");
}

/// Six nodes, three of them replicas of the others.
async fn cluster() -> Vec<Redis> {
    let nodes: Vec<Redis> = (0..6)
        .map(|_| {
            let bus = free_port().to_string();
            Redis::start(&[
                "--cluster-enabled",
                "yes",
                "--cluster-node-timeout",
                "1000",
                // However old a replica's data: what it lacks is the fence's to catch.
                "--cluster-replica-validity-factor",
                "0",
                "--cluster-port",
                &bus,
            ])
        })
        .collect();
    let mut create: Vec<String> = ["--cluster", "create"].map(str::to_owned).to_vec();
    create.extend(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())));
    create.extend(["--cluster-replicas", "1", "--cluster-yes"].map(str::to_owned));
    let output = Command::new("redis-cli").args(&create).output().expect("redis-cli runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    until("the cluster is up", async || {
        nodes.iter().all(|node| node.cli(&["cluster", "info"]).contains("cluster_state:ok"))
    })
    .await;
    until("each replica follows", async || {
        let up = nodes.iter().filter(|node| node.cli(&["info", "replication"]).contains("master_link_status:up"));
        up.count() == 3
    })
    .await;
    nodes
}

/// Port and id of the node that serves the lock's slot, as `asked` knows.
fn owner(asked: &Redis) -> (u16, String) {
    let slot: u16 = asked.cli(&["cluster", "keyslot", LOCK_KEY]).parse().expect("a slot");
    let nodes = asked.cli(&["cluster", "nodes"]);
    let line =
        nodes.lines().find(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            words[2].contains("master") && !words[2].contains("fail") && words[8..].iter().any(|range| {
                let (from, to) = range.split_once('-').unwrap_or((range, range));
                matches!((from.parse::<u16>(), to.parse::<u16>()), (Ok(from), Ok(to)) if (from..=to).contains(&slot))
            })
        });
    let words: Vec<&str> = line.unwrap_or_else(|| panic!("nobody serves slot {slot}: {nodes}")).split(' ').collect();
    let port = words[1].split(['@', ':']).nth(1).and_then(|port| port.parse().ok()).expect("a port");
    (port, words[0].to_owned())
}

/// Whether all nodes have the same view of the slots, which a resharding needs.
fn cluster_agrees(host: &str) -> bool {
    let check = Command::new("redis-cli").args(["--cluster", "check", host]).output().expect("redis-cli runs");
    check.status.success()
}

#[tokio::test]
async fn cluster_failover_and_resharding_of_lock_slot_are_followed() {
    let nodes = cluster().await;
    let hosts: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
    let url = format!("redis-cluster://{}", hosts.join(","));
    let bench = Bench::new(On::Embedded);
    takes_turns(&bench, &url, &[]).await;
    let replicas = [(); 2].map(|()| replica(&bench, &url, &[("ROWLOCK_LOCK_TTL", "1s")]));
    let first = owner(&nodes[0]);
    let stopped = nodes.iter().position(|node| node.port() == first.0).expect("one of ours");
    nodes[stopped].signal("STOP");
    let posts = replicas.iter().map(|replica| replica.append_text("failed over"));
    futures_util::future::join_all(posts).await;
    let asked = &nodes[(stopped + 1) % nodes.len()];
    let second = owner(asked);
    assert_ne!(second.1, first.1, "another node serves the slot");
    nodes[stopped].signal("CONT");
    until("the old one follows the new one", async || {
        nodes[stopped].cli(&["info", "replication"]).contains("master_link_status:up")
            && nodes.iter().all(|node| owner(node).1 == second.1)
            && cluster_agrees(&hosts[0])
    })
    .await;

    let known = asked.cli(&["cluster", "nodes"]);
    let other = known.lines().find(|line| line.contains("master") && !line.starts_with(&second.1));
    let other = other.and_then(|line| line.split(' ').next()).expect("another master");
    let resharding = Command::new("redis-cli")
        .args(["--cluster", "reshard", &hosts[0], "--cluster-from", &second.1, "--cluster-to", other])
        .args(["--cluster-slots", "16384", "--cluster-yes"])
        .stdout(std::process::Stdio::null())
        .spawn();
    let mut resharding = resharding.expect("redis-cli runs");
    let mut rows = 42;
    let resharded = loop {
        if let Some(status) = resharding.try_wait().expect("a child of ours") {
            break status;
        }
        replicas[rows % 2].append_text("moving").await;
        rows += 1;
    };
    assert!(resharded.success(), "redis-cli moves the slots");
    // Nodes that did not take part learn of the move by gossip.
    until("all nodes know that the slot was moved", async || nodes.iter().all(|node| owner(node).1 == other)).await;
    replicas[0].append_text("moved").await;
    let tokens = bench.tokens();
    assert_eq!((tokens.len(), tokens.is_sorted()), (rows + 1, true));
}
