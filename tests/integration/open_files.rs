//! The limit of open files bounds connections, and never takes a file or a connection to Redis away.

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::Command,
};

use reqwest::Method;

use crate::support::{Bench, On, Replica, answer, until};

/// A replica that starts with these limits of open files.
fn replica(bench: &Bench, soft: u32, hard: u32) -> Replica {
    let command = bench.command(&[]);
    let mut limited = Command::new("/bin/sh");
    limited.args(["-c", &format!("ulimit -S -n {soft} && ulimit -H -n {hard} && exec \"$0\"")]);
    limited.arg(command.get_program()).env_clear().current_dir(bench.folder());
    limited.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Replica::start(limited)
}

/// Appends over this connection and leaves it open. Returns the first line of the answer.
fn append(stream: &mut TcpStream) -> String {
    let head = "POST /append HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-www-form-urlencoded\r\n";
    stream.write_all(format!("{head}content-length: 6\r\n\r\ndata=x").as_bytes()).expect("sent");
    let mut answer = Vec::new();
    while !answer.ends_with(b"}\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer");
        answer.push(byte[0]);
    }
    String::from_utf8_lossy(&answer).lines().next().expect("a line").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn more_clients_than_open_files_are_refused_at_once() {
    let bench = Bench::new(On::Redis);
    let replica = replica(&bench, 300, 300);
    let mut kept = replica.connect();
    assert_eq!(append(&mut kept), "HTTP/1.1 201 Created");
    let mut idle: Vec<_> = (0..400).map(|_| replica.connect()).collect();
    let mut newest = replica.connect();
    let mut text = String::new();
    newest.read_to_string(&mut text).expect("a clean end");
    assert!(text.starts_with("HTTP/1.1 503") && text.contains("queue_full"), "{text}");
    // Redis and the files stay in reach: a lost connection to Redis is opened again.
    bench.redis().cli(&["client", "kill", "type", "normal"]);
    for _ in 0..3 {
        assert_eq!(append(&mut kept), "HTTP/1.1 201 Created", "{}", replica.log());
    }
    let log = replica.log();
    let line = log.lines().find(|line| line.contains("the limit of open files is too low")).expect("a warning");
    assert!(line.contains("open_files_max=300") && line.contains("connections_max=172"), "{line}");
    assert!(!log.contains("cannot accept a connection"), "{log}");
    idle.clear();
    until("clients are served again", async || {
        let sent = replica.request(Method::GET, "/livez").send().await;
        sent.is_ok_and(|response| response.status() == 200)
    })
    .await;
    assert_eq!(bench.rows().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn soft_limit_of_open_files_is_raised() {
    let bench = Bench::new(On::Embedded);
    let replica = replica(&bench, 64, 1000);
    let idle: Vec<_> = (0..400).map(|_| replica.connect()).collect();
    assert_eq!(answer(replica.request(Method::GET, "/livez")).await.0, 200);
    drop(idle);
    assert!(replica.log().contains("connections_max=872"), "{}", replica.log());
}
