//! TCP proxies in front of Redis and the replicas. They delay, stall and reset connections on command.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

use crate::sandbox::HARNESS;

/// Forwards connections to one target.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    target: Mutex<SocketAddr>,
    /// A new generation closes all connections of the one before.
    generation: watch::Sender<u64>,
    resets_due: AtomicU64,
    resets: AtomicU64,
    delay_ms: AtomicU64,
    delayed: AtomicU64,
    is_stalled: AtomicBool,
}

/// Which way bytes go: resets hit responses only.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Requests,
    Responses,
}

impl Proxy {
    pub(crate) async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((HARNESS, 0)).await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            target: Mutex::new(target),
            generation: watch::Sender::new(0),
            resets_due: AtomicU64::default(),
            resets: AtomicU64::default(),
            delay_ms: AtomicU64::default(),
            delayed: AtomicU64::default(),
            is_stalled: AtomicBool::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { port, shared, accepting }
    }

    /// Changes the target and closes all connections to the old one.
    pub(crate) fn retarget(&self, target: SocketAddr) {
        *self.shared.target.lock().expect("not poisoned") = target;
        self.shared.generation.send_modify(|generation| *generation += 1);
    }

    /// Resets the connections of the next `count` responses, half way.
    pub(crate) fn reset_responses(&self, count: u64) {
        self.shared.resets_due.store(count, Ordering::Relaxed);
    }

    /// How many connections were reset since the last call.
    pub(crate) fn take_resets(&self) -> u64 {
        self.shared.resets.swap(0, Ordering::Relaxed)
    }

    /// Delays every chunk in both directions.
    pub(crate) fn set_delay_ms(&self, delay_ms: u64) {
        self.shared.delay_ms.store(delay_ms, Ordering::Relaxed);
    }

    /// How many chunks were delayed since the last call.
    pub(crate) fn take_delayed(&self) -> u64 {
        self.shared.delayed.swap(0, Ordering::Relaxed)
    }

    /// While stalled, nothing is forwarded and nothing is lost.
    pub(crate) fn stall(&self, on: bool) {
        self.shared.is_stalled.store(on, Ordering::Relaxed);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.shared.generation.send_modify(|generation| *generation += 1);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let mut generation = shared.generation.subscribe();
            let target = *shared.target.lock().expect("not poisoned");
            match TcpStream::connect(target).await {
                Ok(server) => {
                    tokio::select! {
                        _ = generation.changed() => {}
                        _ = forward(client, server, &shared) => {}
                    }
                }
                // The client sees what it would see without a proxy: nobody listens.
                Err(_) => drop(client.set_zero_linger()),
            }
        });
    }
}

async fn forward(client: TcpStream, server: TcpStream, shared: &Shared) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::try_join!(
        copy(from_client, to_server, Direction::Requests, shared),
        copy(from_server, to_client, Direction::Responses, shared)
    )?;
    Ok(())
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    direction: Direction,
    shared: &Shared,
) -> io::Result<()> {
    let mut chunk = vec![0; 16 << 10];
    loop {
        let read = from.read(&mut chunk).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        shared.delay().await;
        if direction == Direction::Responses && shared.take_reset() {
            to.write_all(&chunk[..read / 2]).await?;
            to.as_ref().set_zero_linger()?;
            from.as_ref().set_zero_linger()?;
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        to.write_all(&chunk[..read]).await?;
    }
}

impl Shared {
    async fn delay(&self) {
        let delay_ms = self.delay_ms.load(Ordering::Relaxed);
        if delay_ms > 0 {
            self.delayed.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(delay_ms)).await;
        }
        while self.is_stalled.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn take_reset(&self) -> bool {
        let take = self.resets_due.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |due| due.checked_sub(1));
        if take.is_ok() {
            self.resets.fetch_add(1, Ordering::Relaxed);
        }
        take.is_ok()
    }
}
