//! Connections: accepted up to a maximum, and closed gracefully.

use std::{
    net::{SocketAddr, TcpListener as StdListener, TcpStream as StdStream},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch},
    time::timeout,
};

use crate::http::Service;
use crate::server::{
    answer_stream::set_user_timeout,
    connection::{Connection, ConnectionLimits},
    flag::is_true,
    refusal::{refuse, refuse_at_once},
    socket::Socket,
    tls::Tls,
};

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after a failure to accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The most connections above the maximum that are answered with 503 and closed slowly at the same time.
const REFUSALS_MAX: usize = 64;

/// Accepts and serves connections.
pub(super) struct Connections {
    service: Arc<Service>,
    tls: Option<Arc<Tls>>,
    limits: ConnectionLimits,
    stop: watch::Receiver<bool>,
    slots: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    /// Each connection holds a receiver, so that the sender knows when the last one is closed.
    open: watch::Sender<()>,
}

impl Connections {
    /// Serves at most `connections_max` at once, until `stop` is true.
    pub(super) fn new(
        service: Arc<Service>,
        tls: Option<Arc<Tls>>,
        connections_max: usize,
        limits: ConnectionLimits,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Self {
            service,
            tls,
            limits,
            stop,
            slots: Arc::new(Semaphore::new(connections_max)),
            refusals: Arc::new(Semaphore::new(REFUSALS_MAX)),
            open: watch::channel(()).0,
        }
    }

    /// Accepts until `stop` is true, tells `closed` that the listener is closed, answers the requests that have started or still arrive on open connections, and returns when
    /// all connections are closed.
    pub(super) async fn serve(self, listener: TcpListener, closed: oneshot::Sender<()>) {
        tokio::select! {
            () = is_true(self.stop.clone()) => {}
            never = self.accept(&listener) => match never {},
        }
        match listener.into_std() {
            Ok(listener) => last_connections(listener).into_iter().for_each(|(stream, peer)| self.admit(stream, peer)),
            Err(e) => tracing::debug!(error = %e, "cannot accept the last connections"),
        }
        // Nobody waits for it when the grace time is over.
        let _ = closed.send(());
        self.open.closed().await;
    }

    async fn accept(&self, listener: &TcpListener) -> std::convert::Infallible {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => self.admit(stream, peer),
                Err(e) => {
                    tracing::warn!(error = %e, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Serves or refuses a connection in a task of its own.
    fn admit(&self, stream: TcpStream, peer: SocketAddr) {
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            tracing::debug!(%peer, "too many connections");
            return if self.tls.is_none() {
                self.refuse(stream)
            };
        };
        // Otherwise Nagle's algorithm delays small answers.
        if let Err(e) = stream.set_nodelay(true) {
            tracing::debug!(error = %e, "cannot set TCP_NODELAY");
        }
        // guard: user_timeout: a stalled subscriber, whose events fit the kernel's buffer, is disconnected
        if let Err(e) = set_user_timeout(&stream, self.limits.write_timeout) {
            tracing::debug!(error = %e, "cannot set TCP_USER_TIMEOUT");
        }
        let acceptor = self.tls.as_ref().map(|tls| tls.acceptor());
        let socket = Socket::new(stream);
        let connection =
            Connection::new(Arc::clone(&self.service), peer, socket.clone(), self.limits, self.stop.clone());
        let open = self.open.subscribe();
        tokio::spawn(async move {
            let _held: (OwnedSemaphorePermit, watch::Receiver<()>) = (slot, open);
            let Some(acceptor) = acceptor else { return connection.serve(socket).await };
            match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket)).await {
                Ok(Ok(stream)) => connection.serve_encrypted(stream).await,
                Ok(Err(e)) => tracing::debug!(%peer, error = %e, "the TLS handshake failed"),
                Err(_) => tracing::debug!(%peer, "the TLS handshake took too long"),
            }
        });
    }

    fn refuse(&self, stream: TcpStream) {
        match Arc::clone(&self.refusals).try_acquire_owned() {
            Ok(refusal) => drop(tokio::spawn(refuse(stream, refusal))),
            Err(_) => refuse_at_once(&stream),
        }
    }
}

/// Accepts the connections that the system has completed, and closes the listener. No other system call stands between the last try and
/// the close, since the system resets a connection that is completed in between.
fn last_connections(listener: StdListener) -> Vec<(TcpStream, SocketAddr)> {
    let accepted: Vec<(StdStream, SocketAddr)> = std::iter::from_fn(|| listener.accept().ok()).collect();
    drop(listener);
    let into_tokio = |(stream, peer): (StdStream, SocketAddr)| {
        stream.set_nonblocking(true).ok()?;
        Some((TcpStream::from_std(stream).ok()?, peer))
    };
    accepted.into_iter().filter_map(into_tokio).collect()
}
