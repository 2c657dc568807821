//! A way through the harness: to a Redis or to a replica, made slow, stopped up or torn down as a run asks.

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

pub(crate) struct Link {
    pub(crate) port: u16,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    target: Mutex<SocketAddr>,
    /// A change ends all connections.
    era: watch::Sender<u64>,
    resets_due: AtomicU64,
    resets: AtomicU64,
    delay_ms: AtomicU64,
    delayed: AtomicU64,
    is_stalled: AtomicBool,
}

/// Which way a pump moves bytes: resets hit answers only.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Requests,
    Answers,
}

impl Link {
    pub(crate) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((HARNESS, 0)).await.expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let shared = Arc::new(Shared {
            target: Mutex::new(target),
            era: watch::Sender::new(0),
            resets_due: AtomicU64::default(),
            resets: AtomicU64::default(),
            delay_ms: AtomicU64::default(),
            delayed: AtomicU64::default(),
            is_stalled: AtomicBool::default(),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { port, shared, accepting }
    }

    /// From now on to there; connections to where it led before end.
    pub(crate) fn lead_to(&self, target: SocketAddr) {
        *self.shared.target.lock().expect("not poisoned") = target;
        self.shared.era.send_modify(|era| *era += 1);
    }

    /// The next answers end in a reset, half way.
    pub(crate) fn reset_answers(&self, count: u64) {
        self.shared.resets_due.store(count, Ordering::Relaxed);
    }

    /// How many were reset since it was asked last.
    pub(crate) fn resets(&self) -> u64 {
        self.shared.resets.swap(0, Ordering::Relaxed)
    }

    /// Every piece takes so long, in both directions; 0 ends it.
    pub(crate) fn slow_down(&self, delay_ms: u64) {
        self.shared.delay_ms.store(delay_ms, Ordering::Relaxed);
    }

    /// How many pieces were late since it was asked last.
    pub(crate) fn delayed(&self) -> u64 {
        self.shared.delayed.swap(0, Ordering::Relaxed)
    }

    /// Lets nothing through, and loses nothing.
    pub(crate) fn stall(&self, on: bool) {
        self.shared.is_stalled.store(on, Ordering::Relaxed);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accepting.abort();
        self.shared.era.send_modify(|era| *era += 1);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let mut era = shared.era.subscribe();
            let target = *shared.target.lock().expect("not poisoned");
            match TcpStream::connect(target).await {
                Ok(server) => {
                    tokio::select! {
                        _ = era.changed() => {}
                        _ = carry(client, server, &shared) => {}
                    }
                }
                // As if nobody listened there.
                Err(_) => drop(client.set_zero_linger()),
            }
        });
    }
}

async fn carry(client: TcpStream, server: TcpStream, shared: &Shared) -> io::Result<()> {
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::try_join!(
        pump(from_client, to_server, Way::Requests, shared),
        pump(from_server, to_client, Way::Answers, shared)
    )?;
    Ok(())
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, way: Way, shared: &Shared) -> io::Result<()> {
    let mut piece = vec![0; 16 << 10];
    loop {
        let read = from.read(&mut piece).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        shared.hold_back().await;
        if way == Way::Answers && shared.take_reset() {
            to.write_all(&piece[..read / 2]).await?;
            to.as_ref().set_zero_linger()?;
            from.as_ref().set_zero_linger()?;
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        to.write_all(&piece[..read]).await?;
    }
}

impl Shared {
    async fn hold_back(&self) {
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
