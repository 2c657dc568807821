//! Starts replicas and Redis servers for tests, and stops them by process id.

use std::{
    collections::HashMap,
    fs,
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

/// The longest time that a test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Says that a test, or a part of it, is not run, and why. Fails where `CI` is set: there nothing may be left out.
pub(crate) fn not_run(reason: &str) {
    let is_ci = std::env::var_os("CI").is_some_and(|value| !value.is_empty());
    assert!(!is_ci, "not run, which fails because CI is set: {reason}");
    // Not `eprintln!`, whose output a passing test hides.
    let _ = writeln!(io::stderr(), "not run: {reason}");
}

/// A temporary folder with one CSV, and the Redis of its lock if there is one.
pub(crate) struct Bench {
    folder: TempDir,
    pub(crate) csv: PathBuf,
    pub(crate) redis: Option<Redis>,
}

/// The lock that a test uses.
#[derive(Clone, Copy)]
pub(crate) enum On {
    Redis,
    Embedded,
}

impl Bench {
    pub(crate) fn new(on: On) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let redis = matches!(on, On::Redis).then(|| Redis::start(&[]));
        Self { csv: folder.path().join("rows.csv"), folder, redis }
    }

    pub(crate) fn with_file(on: On, content: &[u8]) -> Self {
        let bench = Self::new(on);
        fs::write(&bench.csv, content).expect("writable");
        bench
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn redis(&self) -> &Redis {
        self.redis.as_ref().expect("this test has a Redis")
    }

    /// The binary with this bench's folder, file and lock, and without inherited environment variables.
    pub(crate) fn command(&self, settings: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rowlock"));
        command
            .current_dir(self.folder())
            .env_clear()
            .env("REDIS_CSV_FILE_NAME", &self.csv)
            // Hundreds of journals of the default size would wear out the disk.
            .env("ROWLOCK_JOURNAL_BYTES", "1MiB")
            .env("ROWLOCK_LISTEN", "127.0.0.1:0");
        if let Some(redis) = &self.redis {
            command.env("REDIS_CONN_STR", redis.url());
        }
        command.envs(settings.iter().copied());
        command
    }

    pub(crate) fn replica(&self, settings: &[(&str, &str)]) -> Replica {
        Replica::start(self.command(settings))
    }

    /// Runs a command, or a start that is refused, to its end. Kills it if it does not end.
    pub(crate) fn run(&self, args: &[&str], settings: &[(&str, &str)]) -> Output {
        let mut command = self.command(settings);
        let child = command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let child = child.expect("the binary runs");
        let (pid, (done, ended)) = (child.id().to_string(), mpsc::channel::<()>());
        let killer = thread::spawn(move || {
            if ended.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                let _ = Command::new("kill").args(["-KILL", &pid]).status();
            }
        });
        let output = child.wait_with_output().expect("ends");
        drop(done);
        killer.join().expect("does not panic");
        output
    }

    pub(crate) fn content(&self) -> String {
        fs::read_to_string(&self.csv).expect("a readable CSV")
    }

    /// All records with the header, read by an independent reader: Python's `csv` in strict mode.
    pub(crate) fn records(&self) -> Vec<Vec<String>> {
        let script = "import csv, json, sys\nwith open(sys.argv[1], newline='', encoding='utf-8-sig') as f: print(json.dumps(list(csv.reader(f, strict=True))))";
        let output = Command::new("python3").args(["-c", script]).arg(&self.csv).output().expect("python3 runs");
        assert!(output.status.success(), "python cannot read the CSV: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// The column `token` in file order.
    pub(crate) fn tokens(&self) -> Vec<u64> {
        self.rows().iter().map(|row| row["token"].parse().expect("a token")).collect()
    }

    /// The records after the header, by column name.
    pub(crate) fn rows(&self) -> Vec<HashMap<String, String>> {
        let records = self.records();
        let (header, rows) = records.split_first().expect("a header");
        rows.iter()
            .map(|row| {
                assert_eq!(row.len(), header.len(), "a ragged row: {row:?}");
                header.iter().cloned().zip(row.iter().cloned()).collect()
            })
            .collect()
    }
}

/// A program of the tests' Python environment.
pub(crate) fn python_tool(name: &str) -> Command {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-venv/bin").join(name);
    assert!(path.exists(), "{} is missing: run tests/install-deps or make test", path.display());
    Command::new(path)
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// A process that is killed when its test ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // Fails if the process has exited already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Collects the lines of a process in a log, and sends each line with `marker` to the receiver.
fn follow(
    output: impl io::Read + Send + 'static,
    marker: &'static str,
) -> (Arc<Mutex<String>>, mpsc::Receiver<String>) {
    let log = Arc::new(Mutex::new(String::new()));
    let (sender, marked_lines) = mpsc::channel();
    let lines = Arc::clone(&log);
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if line.contains(marker) {
                let _ = sender.send(line.clone());
            }
            let mut log = lines.lock().expect("not poisoned");
            log.push_str(&line);
            log.push('\n');
        }
    });
    (log, marked_lines)
}

pub(crate) struct Redis {
    process: Option<Process>,
    port: u16,
    password: Option<&'static str>,
    settings: Vec<String>,
    environment: Vec<(String, String)>,
    pub(crate) folder: TempDir,
}

impl Redis {
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.as_ref().expect("Redis runs").0.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }

    pub(crate) fn start(settings: &[&str]) -> Self {
        Self::start_in(settings, &[])
    }

    /// Starts Redis with additional environment variables.
    pub(crate) fn start_in(settings: &[&str], environment: &[(&str, &str)]) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        let environment = environment.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect();
        let mut redis = Self { process: None, port: 0, password: None, settings, environment, folder };
        until_it_starts(|| {
            redis.port = free_port();
            redis.launch()
        });
        redis
    }

    pub(crate) fn with_password(password: &'static str) -> Self {
        let mut redis = Self::start(&["--requirepass", password]);
        redis.password = Some(password);
        redis
    }

    /// # Errors
    /// The output, if Redis does not start: another process may have taken the port.
    fn launch(&mut self) -> Result<(), String> {
        let mut command = Command::new("redis-server");
        let is_sentinel = self.settings.iter().any(|setting| setting == "--sentinel");
        let port = self.port.to_string();
        if is_sentinel {
            let config = self.folder.path().join("sentinel.conf");
            fs::write(&config, "").expect("writable");
            command.arg(config);
        } else {
            command.args(["--save", "", "--appendonly", "no"]);
        }
        command.args(["--bind", "127.0.0.1", "--port", &port, "--dir"]).arg(self.folder.path()).args(&self.settings);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let mut child =
            command.stdout(Stdio::piped()).spawn().expect("redis-server is missing: run tests/install-deps");
        let marker = if is_sentinel { "Sentinel ID is" } else { "Ready to accept connections" };
        let (log, ready) = follow(child.stdout.take().expect("piped"), marker);
        self.process = Some(Process(child));
        ready.recv_timeout(PATIENCE).map(|_| ()).map_err(|_| log.lock().expect("not poisoned").clone())
    }

    pub(crate) fn stop(&mut self) {
        self.process = None;
    }

    /// Starts again on the same port.
    pub(crate) fn restart(&mut self) {
        until_it_starts(|| self.launch());
    }

    pub(crate) fn url(&self) -> String {
        let password = self.password.map(|password| format!(":{password}@")).unwrap_or_default();
        format!("redis://{password}127.0.0.1:{}/0", self.port)
    }

    /// Runs one command in `redis-cli`, an independent client.
    pub(crate) fn cli(&self, args: &[&str]) -> String {
        let output =
            Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(args).output().expect("redis-cli runs");
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    }
}

fn until_it_starts(mut launch: impl FnMut() -> Result<(), String>) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(log) = launch() {
        assert!(Instant::now() < deadline, "Redis does not start: {log}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// The default key of the lock.
pub(crate) const LOCK_KEY: &str = "{rowlock:rows.csv}";
/// The queue of leases that wait for the lock.
pub(crate) const QUEUE_KEY: &str = "{rowlock:rows.csv}:queue";

pub(crate) struct Replica {
    process: Process,
    log: Arc<Mutex<String>>,
    pub(crate) url: String,
    client: reqwest::Client,
}

impl Replica {
    pub(crate) fn start(command: Command) -> Self {
        Self::try_start(command).unwrap_or_else(|log| panic!("the replica does not start: {log}"))
    }

    /// # Errors
    /// The log, if the replica does not serve.
    pub(crate) fn try_start(mut command: Command) -> Result<Self, String> {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the binary runs");
        let (log, ready) = follow(child.stderr.take().expect("piped"), "listening=");
        let process = Process(child);
        let line = ready.recv_timeout(PATIENCE).map_err(|_| log.lock().expect("not poisoned").clone())?;
        let url = line.split("listening=").nth(1).expect("an address").trim().to_owned();
        let client = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
        Ok(Self { process, log, url, client })
    }

    /// A connection for requests that a client would not send.
    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.url.trim_start_matches("http://")).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("settable");
        stream
    }

    pub(crate) fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    pub(crate) async fn get(&self, path: &str, headers: &[(&str, &str)]) -> reqwest::Response {
        let request = self.request(reqwest::Method::GET, path);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.send().await.expect("a response")
    }

    pub(crate) fn post(&self, body: &Value) -> reqwest::RequestBuilder {
        self.request(reqwest::Method::POST, "/append").json(body)
    }

    pub(crate) async fn append(&self, body: Value) -> (u16, Value) {
        let sent = self.post(&body).send().await;
        let response = sent.unwrap_or_else(|e| panic!("no response: {e}; {}", self.log()));
        let status = response.status().as_u16();
        (status, response.json().await.unwrap_or(Value::Null))
    }

    /// Appends a string, which must be acknowledged.
    pub(crate) async fn append_text(&self, text: &str) -> Value {
        let (status, ack) = self.append(json!({ "data": text })).await;
        assert_eq!(status, 201, "{ack}");
        ack
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("not poisoned").clone()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.0.id()
    }

    pub(crate) fn resident_kib(&self) -> u64 {
        self.memory_kib("VmRSS:")
    }

    /// The most that was resident since the start.
    pub(crate) fn peak_kib(&self) -> u64 {
        self.memory_kib("VmHWM:")
    }

    fn memory_kib(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("a running process");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.0.try_wait().expect("a child process").is_some()
    }

    /// Waits for the process to exit.
    pub(crate) fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.process.0.try_wait().expect("a child process") {
                return status;
            }
            thread::sleep(Duration::from_millis(5));
        }
        panic!("the replica does not exit: {}", self.log());
    }
}

/// The text of a header; empty if it is missing.
pub(crate) fn header<'a>(response: &'a reqwest::Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().expect("text"))
}

/// Sends the request. Returns status and body; a body that is not JSON is null.
pub(crate) async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.expect("a response");
    let status = response.status().as_u16();
    (status, response.json().await.unwrap_or(Value::Null))
}

/// Waits until the condition holds.
pub(crate) async fn until(description: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "timed out: {description}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until the lock is held.
pub(crate) async fn until_held(bench: &Bench) {
    until("the lock is held", async || is_held(bench)).await;
}

/// Waits until the lock is free: a replica acknowledges rows before it releases the lock.
pub(crate) async fn until_free(bench: &Bench) {
    until("the lock is free", async || !is_held(bench)).await;
}

fn is_held(bench: &Bench) -> bool {
    match &bench.redis {
        Some(redis) => redis.cli(&["exists", LOCK_KEY]) == "1",
        None => {
            let path = format!("{}.lock", bench.csv.display());
            fs::File::open(path).is_ok_and(|file| matches!(file.try_lock_shared(), Err(fs::TryLockError::WouldBlock)))
        }
    }
}

/// Waits until a checkpoint covers all rows of the CSV, which the newest header of the journal shows.
pub(crate) async fn until_checkpointed(bench: &Bench) {
    let len = fs::metadata(&bench.csv).expect("a CSV").len();
    until("a checkpoint", async || journal_headers(bench).iter().max().is_some_and(|&(_, csv_bytes)| csv_bytes == len))
        .await;
}

/// (number, length of the CSV) in each of the journal's two headers. The layout is in `src/storage/journal.rs`.
pub(crate) fn journal_headers(bench: &Bench) -> [(u64, u64); 2] {
    let journal = fs::read(format!("{}.journal", bench.csv.display())).expect("a journal");
    let number = |at: usize| u64::from_le_bytes(journal[at..at + 8].try_into().expect("8 bytes"));
    [0, 4096].map(|page| {
        assert_eq!(&journal[page..page + 8], b"rowlockJ");
        (number(page + 36), number(page + 36 + 32))
    })
}
