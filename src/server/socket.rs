//! A TCP connection as hyper reads and writes it, and the signs by which a client is known to be gone.

use std::{
    future::pending,
    io,
    mem::MaybeUninit,
    net::Shutdown,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    time::timeout,
};

use crate::server::exchange::Exchange;

/// How often a client that has closed its side of the connection is looked at.
const CLOSED_SIDE_INTERVAL: Duration = Duration::from_millis(100);
/// A harmless answer: a client that still reads ignores it, and the system of one that has gone resets the connection.
const PROBE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A TCP connection that its reader, its writer and a watcher share.
#[derive(Clone)]
pub(super) struct Socket(Arc<TcpStream>);

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self(Arc::new(stream))
    }

    /// Whether bytes have arrived that nobody has read.
    pub(super) fn has_unread_bytes(&self) -> bool {
        SockRef::from(&*self.0).peek(&mut [MaybeUninit::uninit()]).is_ok_and(|bytes| bytes > 0)
    }

    /// Returns once the client has gone.
    ///
    /// A client that closes only its side of the connection still waits for its answer. Its system sends the same FIN as that of a client
    /// that has gone, but a byte that is sent after the FIN makes only the latter reset the connection.
    pub(super) async fn client_is_gone(&self, exchange: &Exchange) {
        self.client_closed_its_side().await;
        let mut probed = false;
        while !exchange.is_streaming() {
            if timeout(CLOSED_SIDE_INTERVAL, self.0.ready(Interest::ERROR)).await.is_ok() {
                return;
            }
            if !probed && exchange.takes_interim_answer() {
                probed = true;
                // A failure shows as an error of the connection.
                let _ = self.0.try_write(PROBE);
            }
        }
    }

    /// Returns once no more bytes can arrive.
    pub(super) async fn client_closed_its_side(&self) {
        // The only interest that does not end as soon as a byte arrives. Urgent data is not registered.
        let ready = self.0.ready(Interest::PRIORITY).await;
        if !ready.is_ok_and(|ready| ready.is_read_closed()) {
            pending().await
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            let (room, mut bytes) = (buf.remaining(), 0);
            let outcome = self.0.try_io(Interest::READABLE, || {
                bytes = self.0.try_read_buf(buf)?;
                // Fewer bytes than fit are all that have arrived: this saves a read that finds nothing, as Tokio's own `poll_read` does.
                if (1..room).contains(&bytes) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match outcome {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && bytes == 0 => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Poll::Ready(Ok(())),
                outcome => return Poll::Ready(outcome),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(bytes) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(SockRef::from(&*self.0).shutdown(Shutdown::Write))
    }
}
