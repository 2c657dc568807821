//! Connections: accepted up to a maximum, with limits on the time and size of a request's head, and closed gracefully.

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
use crate::server::{
    answer_stream::{AnswerStream, set_user_timeout},
    tls::Tls,
};

/// How long a request's head may take to arrive, and how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest head of a request, and the most of a body that is read at once.
const HEAD_BYTES_MAX: usize = 64 << 10;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after a failure to accept, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The most connections above the maximum that are answered with 503 at the same time; others are closed without an answer.
const REFUSALS_MAX: usize = 64;
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Accepts and serves connections.
pub(super) struct Connections {
    pub(super) service: Arc<Service>,
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) connections_max: usize,
    pub(super) write_timeout: Duration,
}

impl Connections {
    /// Accepts until `stop` is true, then answers the requests that have started, and returns when all connections are closed.
    pub(super) async fn serve(self, listener: TcpListener, stop: watch::Receiver<bool>) {
        let (slots, refusals) =
            (Arc::new(Semaphore::new(self.connections_max)), Arc::new(Semaphore::new(REFUSALS_MAX)));
        let graceful = GracefulShutdown::new();
        let mut stop = std::pin::pin!(super::is_true(stop));
        loop {
            let (stream, peer) = tokio::select! {
                () = &mut stop => break,
                accepted = listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(e) => {
                        tracing::warn!(error = %e, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            match Arc::clone(&slots).try_acquire_owned() {
                Ok(slot) => self.begin(stream, peer, slot, graceful.watcher()),
                Err(_) => {
                    tracing::debug!(%peer, "too many connections");
                    if let (Ok(refusal), None) = (Arc::clone(&refusals).try_acquire_owned(), &self.tls) {
                        tokio::spawn(timeout(REFUSAL_TIMEOUT, refuse(stream, refusal)));
                    }
                }
            }
        }
        drop(listener);
        graceful.shutdown().await;
    }

    fn begin(&self, stream: TcpStream, peer: SocketAddr, slot: OwnedSemaphorePermit, watcher: Watcher) {
        // Otherwise Nagle's algorithm delays small answers.
        if let Err(e) = stream.set_nodelay(true) {
            tracing::debug!(error = %e, "cannot set TCP_NODELAY");
        }
        // guard: user_timeout: a stalled subscriber, whose events fit the kernel's buffer, is disconnected
        if let Err(e) = set_user_timeout(&stream, self.write_timeout) {
            tracing::debug!(error = %e, "cannot set TCP_USER_TIMEOUT");
        }
        let (write_timeout, unsent) = (self.write_timeout, self.service.answer_budget().nothing());
        let (service, acceptor) = (Arc::clone(&self.service), self.tls.as_ref().map(|tls| tls.acceptor()));
        tokio::spawn(async move {
            let _slot = slot;
            let Some(acceptor) = acceptor else {
                return serve_connection(AnswerStream::new(stream, write_timeout, unsent), peer, &service, watcher)
                    .await;
            };
            match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    serve_connection(AnswerStream::new(stream, write_timeout, unsent), peer, &service, watcher).await
                }
                Ok(Err(e)) => tracing::debug!(%peer, error = %e, "the TLS handshake failed"),
                Err(_) => tracing::debug!(%peer, "the TLS handshake took too long"),
            }
        });
    }
}

/// Serves one connection until it is closed.
async fn serve_connection(
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

/// Answers 503 without reading the request, and closes the connection once the client has closed it.
async fn refuse(mut stream: TcpStream, _refusal: OwnedSemaphorePermit) {
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
    // Closing a socket with unread bytes resets the connection, and the client may lose the answer.
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await.is_ok_and(|read| read > 0) {}
}
