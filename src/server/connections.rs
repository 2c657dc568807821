//! Connections: accepted up to a bound, with bounds on how long and how large a request's head may be, and let go in the end.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::body::Body;
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::timeout,
};

use crate::http::Service;
use crate::server::tls::Tls;

/// How long a request's head may take to arrive, and a connection stay without one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// A request's head, and what is read of a body at once.
const HEAD_BYTES_MAX: usize = 64 << 10;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failure to accept, such as too many open files.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Connections beyond the bound that are told so at once; more are closed without a word.
const TOLD_MAX: usize = 64;
const TELLING: Duration = Duration::from_secs(1);

/// What connections are served with.
pub(super) struct Connections {
    pub(super) service: Arc<Service>,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) connections_max: usize,
}

impl Connections {
    /// Accepts until `stop` is true, then answers what has begun, and returns when all connections are closed.
    pub(super) async fn serve(self, listener: TcpListener, stop: watch::Receiver<bool>) {
        let (places, told) = (Arc::new(Semaphore::new(self.connections_max)), Arc::new(Semaphore::new(TOLD_MAX)));
        let graceful = GracefulShutdown::new();
        let mut stop = std::pin::pin!(super::is_true(stop));
        loop {
            let (stream, peer) = tokio::select! {
                () = &mut stop => break,
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(e) => {
                        tracing::warn!(error = %e, "a connection was not accepted");
                        tokio::time::sleep(ACCEPT_AGAIN).await;
                        continue;
                    }
                },
            };
            match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => self.begin(stream, peer, place, graceful.watcher()),
                Err(_) => {
                    tracing::debug!(%peer, "too many connections");
                    if let (Ok(telling), None) = (Arc::clone(&told).try_acquire_owned(), &self.tls) {
                        tokio::spawn(timeout(TELLING, tell_full(stream, telling)));
                    }
                }
            }
        }
        drop(listener);
        graceful.shutdown().await;
    }

    fn begin(&self, stream: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit, watcher: Watcher) {
        // Without it, Nagle's algorithm holds small answers back.
        if let Err(e) = stream.set_nodelay(true) {
            tracing::debug!(error = %e, "cannot set TCP_NODELAY");
        }
        let (service, acceptor) = (Arc::clone(&self.service), self.tls.as_ref().map(|tls| tls.acceptor()));
        tokio::spawn(async move {
            let _place = place;
            let Some(acceptor) = acceptor else { return one(stream, peer, &service, watcher).await };
            match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => one(stream, peer, &service, watcher).await,
                Ok(Err(e)) => tracing::debug!(%peer, error = %e, "no TLS"),
                Err(_) => tracing::debug!(%peer, "no TLS in time"),
            }
        });
    }
}

/// Serves one connection to its end.
async fn one(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    peer: SocketAddr,
    service: &Service,
    watcher: Watcher,
) {
    let answer = service_fn(|request: Request<Incoming>| async {
        Ok::<_, Infallible>(service.answer(peer, request.map(Body::new)).await)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .writev(false)
        .serve_connection(TokioIo::new(stream), answer);
    if let Err(e) = watcher.watch(connection).await {
        tracing::debug!(%peer, error = %e, "a connection failed");
    }
}

/// Says why, without reading what is asked for, and closes once the client has.
async fn tell_full(mut stream: TcpStream, _telling: OwnedSemaphorePermit) {
    const BODY: &str = concat!(
        r#"{"type":"urn:rowlock:problem:queue_full","title":"The queue is full","status":503,"detail":"too many connections (ROWLOCK_MAX_CONNECTIONS)","code":"queue_full","retryable":true,"outcome":"not_written","request_id":""}"#,
        "\n",
    );
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    );
    if stream.write_all(answer.as_bytes()).await.is_err() || stream.shutdown().await.is_err() {
        return;
    }
    // What is unread when a connection closes takes the answer with it.
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await.is_ok_and(|read| read > 0) {}
}
