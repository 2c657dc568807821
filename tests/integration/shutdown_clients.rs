//! Clients that keep connections open, without a load balancer: no restart of a replica resets one of them.

use std::{
    fs,
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::Value;

use crate::{
    client_recipes::is_here,
    support::{Bench, On, PATIENCE, Replica, free_port, python_tool},
};

const REQUEST: &[u8] =
    b"POST /append HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 12\r\n\r\n{\"data\":\"x\"}";

/// Reads an answer. Returns its status, and whether the connection closes after it.
fn read_answer(reader: &mut BufReader<TcpStream>) -> std::io::Result<(u16, bool)> {
    let (mut status, mut length, mut closes) = (0, 0, false);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if let Some(rest) = line.strip_prefix("HTTP/1.1 ") {
            status = rest[..3].parse().expect("a status");
        } else if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.trim().parse().expect("a number");
        } else if line.starts_with("connection: ") {
            closes = line.contains("close");
        } else if line == "\r\n" {
            reader.read_exact(&mut vec![0; length])?;
            return Ok((status, closes));
        }
    }
}

/// Appends over one connection after the other until a file appears, with a pause after each answer.
fn append_until(stop: &Path, ports: &[u16], mut number: usize, pause: Duration) -> (usize, Vec<String>) {
    let (mut written, mut resets) = (0, Vec::new());
    while !stop.exists() {
        let stream = match TcpStream::connect(("127.0.0.1", ports[number % ports.len()])) {
            Ok(stream) => stream,
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
                number += 1;
                continue;
            }
            Err(e) => {
                resets.push(format!("connect: {e}"));
                continue;
            }
        };
        stream.set_read_timeout(Some(PATIENCE)).expect("settable");
        let mut reader = BufReader::new(stream);
        while !stop.exists() {
            let sent = reader.get_ref().write_all(REQUEST);
            match sent.and_then(|()| read_answer(&mut reader)) {
                Ok((status, closes)) => {
                    assert_eq!(status, 201);
                    written += 1;
                    if closes {
                        break;
                    }
                }
                Err(e) => {
                    resets.push(e.to_string());
                    break;
                }
            }
            thread::sleep(pause);
        }
    }
    (written, resets)
}

/// A client program, which prints the statuses that it got and the connections that were reset.
fn program(mut command: Command, file: &str, stop: &Path, ports: &[u16]) -> JoinHandle<(usize, Vec<String>)> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration/keep_alive").join(file);
    command.arg(file).arg(stop).args(ports.iter().map(u16::to_string)).stdin(Stdio::null());
    thread::spawn(move || {
        let output = command.output().expect("the client runs");
        let said = String::from_utf8_lossy(&output.stderr);
        let result: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {said}"));
        let statuses = result["statuses"].as_object().expect("an object");
        assert!(statuses.keys().eq(["201"]), "{result}");
        let resets = result["resets"].as_array().expect("a list").iter().map(Value::to_string).collect();
        (statuses["201"].as_u64().expect("a number") as usize, resets)
    })
}

/// Ends the clients when the test fails, too.
struct StopFile(PathBuf);

impl Drop for StopFile {
    fn drop(&mut self) {
        let _ = fs::write(&self.0, "");
    }
}

#[test]
fn restarts_reset_no_connection_that_is_in_use() {
    let bench = Bench::new(On::Redis);
    let ports = [free_port(), free_port()];
    let start = |port: u16| {
        let address = format!("127.0.0.1:{port}");
        Replica::start(bench.command(&[("ROWLOCK_LISTEN", &*address), ("RUST_LOG", "warn,rowlock::server=info")]))
    };
    let mut replicas = ports.map(start);
    let stop = StopFile(bench.folder().join("stop"));
    let mut clients: Vec<_> = (0..8)
        .map(|number| {
            let (path, pause) = (stop.0.clone(), Duration::from_millis([0, 0, 20, 300][number % 4]));
            thread::spawn(move || append_until(&path, &ports, number, pause))
        })
        .collect();
    clients.push(program(python_tool("python"), "client.py", &stop.0, &ports));
    if is_here("JavaScript", &["node", "--version"], "v", 20) {
        clients.push(program(Command::new("node"), "client.mjs", &stop.0, &ports));
    }
    for restart in 0..6 {
        // Long enough for all clients to be connected and in their loops.
        thread::sleep(Duration::from_secs(1));
        let number = restart % replicas.len();
        replicas[number].signal("TERM");
        assert_eq!(replicas[number].end().code(), Some(0), "{}", replicas[number].log());
        replicas[number] = start(ports[number]);
    }
    drop(stop);
    let ended: Vec<_> = clients.into_iter().map(|client| client.join().expect("no panic")).collect();
    let resets: Vec<_> = ended.iter().flat_map(|(_, resets)| resets).collect();
    assert!(resets.is_empty(), "{resets:#?}");
    assert!(ended.iter().all(|(written, _)| *written > 10), "{ended:?}");
    assert_eq!(bench.rows().len(), ended.iter().map(|(written, _)| written).sum::<usize>());
}

/// Connections that the system has accepted, and a request that has arrived, before the replica knows of them or of the signal.
#[test]
fn last_connections_and_requests_are_answered() {
    let bench = Bench::new(On::Embedded);
    let mut replica = bench.replica(&[]);
    let connect = || {
        let stream = TcpStream::connect(replica.url.trim_start_matches("http://")).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("settable");
        BufReader::new(stream)
    };
    let mut open: Vec<_> = (0..8).map(|_| connect()).collect();
    for reader in &mut open {
        reader.get_ref().write_all(REQUEST).expect("sent");
        assert_eq!(read_answer(reader).expect("an answer"), (201, false));
    }
    replica.signal("STOP");
    replica.signal("TERM");
    let mut waiting: Vec<_> = (0..8).map(|_| connect()).chain(open).collect();
    waiting.iter().for_each(|reader| reader.get_ref().write_all(REQUEST).expect("sent"));
    replica.signal("CONT");
    for reader in &mut waiting {
        // A request that is answered before the signal is handled does not close its connection.
        assert_eq!(read_answer(reader).expect("an answer").0, 201);
    }
    for reader in &mut waiting {
        assert_eq!(reader.read(&mut [0]).expect("a clean end"), 0);
    }
    drop(waiting);
    assert_eq!(replica.end().code(), Some(0), "{}", replica.log());
    assert_eq!(bench.rows().len(), 24);
}

/// A connection that is open in a drain and has carried nothing, or is between two requests.
#[test]
fn request_after_the_drain_began_is_answered() {
    let bench = Bench::new(On::Embedded);
    let mut replica = bench.replica(&[]);
    let address = replica.url.trim_start_matches("http://").to_owned();
    let mut connections: Vec<_> =
        (0..2).map(|_| BufReader::new(TcpStream::connect(&address).expect("connects"))).collect();
    connections[0].get_ref().write_all(REQUEST).expect("sent");
    assert_eq!(read_answer(&mut connections[0]).expect("an answer"), (201, false));
    replica.signal("TERM");
    // The listener is closed with the first step of the drain.
    while TcpStream::connect(&address).is_ok() {
        thread::sleep(Duration::from_millis(1));
    }
    for reader in &mut connections {
        reader.get_ref().write_all(REQUEST).expect("sent");
        assert_eq!(read_answer(reader).expect("an answer").0, 201);
        assert_eq!(reader.read(&mut [0]).expect("a clean end"), 0);
    }
    drop(connections);
    assert_eq!(replica.end().code(), Some(0), "{}", replica.log());
    assert_eq!(bench.rows().len(), 3);
}
