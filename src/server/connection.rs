//! One connection: its requests and answers, with limits on the time and size of a request's head, until it is closed.

use std::{convert::Infallible, future::Future, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::body::Body;
use hyper::{
    Request,
    body::Incoming,
    header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::watch,
    time::{sleep, timeout},
};
use tokio_rustls::server::TlsStream;

use crate::http::Service;
use crate::server::{
    answer_stream::AnswerStream,
    exchange::Exchange,
    flag::is_true,
    lingering_close::{self, LingerBounds},
    socket::Socket,
    watched_io::{AnswerBody, RequestBody, WatchedIo},
};

/// How long a request's head may take to arrive, and how long a connection may be idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest head of a request, and the most of a body that is read at once.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// How long an answer to a head that cannot be parsed may take to be sent.
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);
/// In a drain, a connection that carries no request for so long is closed: `IDLE_CHECKS` checks, `IDLE_CHECK_INTERVAL` apart.
const IDLE_CHECK_INTERVAL: Duration = Duration::from_millis(250);
const IDLE_CHECKS: u32 = 4;

/// How the requests of a connection ended.
enum Ended {
    /// By the client, by an answer, or by hyper.
    ByProtocol(hyper::Result<()>),
    /// The client has gone, and its request is cancelled.
    ClientGone,
}

/// One accepted connection.
pub(super) struct Connection {
    service: Arc<Service>,
    peer: SocketAddr,
    socket: Socket,
    limits: ConnectionLimits,
    stop: watch::Receiver<bool>,
    exchange: Arc<Exchange>,
}

/// Bounds on what a client may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConnectionLimits {
    pub(super) linger: LingerBounds,
    /// How long it may take no byte of its answer.
    pub(super) write_timeout: Duration,
}

impl Connection {
    pub(super) fn new(
        service: Arc<Service>,
        peer: SocketAddr,
        socket: Socket,
        limits: ConnectionLimits,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Self { service, peer, socket, limits, stop, exchange: Arc::default() }
    }

    /// Serves HTTP until the connection is closed.
    pub(super) async fn serve(self, stream: Socket) {
        let gone = self.socket.client_is_gone(&self.exchange);
        self.serve_until(stream, gone).await;
    }

    /// Serves HTTPS until the connection is closed. A client that closes its side of an encrypted connection counts as gone, since nothing
    /// can be sent to it unnoticed.
    pub(super) async fn serve_encrypted(self, stream: TlsStream<Socket>) {
        self.serve_until(stream, self.socket.client_closed_its_side()).await;
    }

    async fn serve_until(&self, stream: impl AsyncRead + AsyncWrite + Unpin, client_is_gone: impl Future<Output = ()>) {
        let mut stream = AnswerStream::new(stream, self.limits.write_timeout, self.service.answer_budget().nothing());
        match self.exchange_messages(&mut stream, client_is_gone).await {
            Ended::ClientGone => return tracing::debug!(peer = %self.peer, "the client has gone"),
            Ended::ByProtocol(Ok(())) => {}
            Ended::ByProtocol(Err(e)) => {
                tracing::debug!(peer = %self.peer, error = %e, "a connection failed");
                if let Some(automatic) = self.exchange.automatic_answer() {
                    let answer = self.service.answer_unparsed(automatic, &e.to_string()).await;
                    // A client that does not read its answer does not get it.
                    let _ = timeout(REFUSAL_TIMEOUT, stream.write_all(&answer)).await;
                }
            }
        }
        lingering_close::close(stream, self.limits.linger, &self.stop).await;
    }

    /// Receives requests and sends answers until the connection carries no more of them.
    async fn exchange_messages(
        &self,
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        client_is_gone: impl Future<Output = ()>,
    ) -> Ended {
        let io = TokioIo::new(WatchedIo { io: stream, exchange: &self.exchange });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX)
            .half_close(true)
            .writev(false)
            .serve_connection(io, service_fn(|request| self.answer(request)));
        let mut connection = pin!(connection);
        tokio::select! {
            biased;
            ended = connection.as_mut() => Ended::ByProtocol(ended),
            () = client_is_gone => Ended::ClientGone,
            () = self.idle_in_drain() => {
                connection.as_mut().graceful_shutdown();
                Ended::ByProtocol(connection.await)
            }
        }
    }

    fn answer(
        &self,
        mut request: Request<Incoming>,
    ) -> impl Future<Output = Result<hyper::Response<AnswerBody>, Infallible>> + '_ {
        if let Some(length) = self.exchange.begin(&request) {
            request.headers_mut().insert(CONTENT_LENGTH, length);
        }
        let request = request.map(|body| Body::new(RequestBody { body, exchange: Arc::clone(&self.exchange) }));
        async {
            let mut response = self.service.answer(self.peer, request).await;
            if self.exchange.has_unread_body() {
                // What is left of the body may still arrive, so the connection cannot carry another request.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            let is_endless = response.headers().get(CONTENT_TYPE).is_some_and(|value| value == "text/event-stream");
            self.exchange.answer(is_endless);
            Ok(response.map(|body| AnswerBody { body, exchange: Arc::clone(&self.exchange) }))
        }
    }

    /// Returns when the replica drains and the connection has carried no request for a while. All answers of a drain say
    /// `Connection: close`, so a client that uses its connection closes it before.
    async fn idle_in_drain(&self) {
        is_true(self.stop.clone()).await;
        let mut idle_checks = 0;
        while idle_checks < IDLE_CHECKS {
            sleep(IDLE_CHECK_INTERVAL).await;
            let is_idle = self.exchange.is_idle() && !self.socket.has_unread_bytes();
            idle_checks = if is_idle { idle_checks + 1 } else { 0 };
        }
    }
}
