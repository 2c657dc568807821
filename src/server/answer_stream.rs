//! The stream of a connection, with a bound on the time and the memory that its client may take by not reading its answers.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_io_timeout::TimeoutStream;

use crate::http::AnswerBytes;

/// A stream that fails once its client has taken no byte for the write time-out.
pub(super) struct AnswerStream<S> {
    stream: Pin<Box<TimeoutStream<S>>>,
    /// What waits in the connection's write buffer.
    unsent: AnswerBytes,
}

impl<S: AsyncRead + AsyncWrite> AnswerStream<S> {
    pub(super) fn new(stream: S, write_timeout: Duration, unsent: AnswerBytes) -> Self {
        let mut stream = TimeoutStream::new(stream);
        // guard: write_timeout: a client that stops reading is disconnected
        stream.set_write_timeout(Some(write_timeout));
        Self { stream: Box::pin(stream), unsent }
    }
}

/// Ends a connection whose client takes no byte for this time out of the kernel's send buffer, which may hold megabytes: a stalled
/// subscriber of `/events` would take hours to fill it.
pub(super) fn set_user_timeout(stream: &TcpStream, write_timeout: Duration) -> io::Result<()> {
    let ms = u32::try_from(write_timeout.as_millis()).unwrap_or(u32::MAX);
    Ok(rustix::net::sockopt::set_tcp_user_timeout(stream, ms)?)
}

impl<S: AsyncRead + AsyncWrite> AsyncRead for AnswerStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_read(cx, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite> AsyncWrite for AnswerStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = self.stream.as_mut().poll_write(cx, bytes);
        // The caller offers all that it holds.
        let sent = if let Poll::Ready(Ok(sent)) = result { sent } else { 0 };
        self.unsent.set(bytes.len() - sent);
        result
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::http::AnswerBudget;

    #[tokio::test]
    async fn write_without_progress_times_out() {
        let (timeout, pause) = (Duration::from_secs(2), Duration::from_millis(120));
        let (mut client, server) = tokio::io::duplex(1000);
        let mut stream = AnswerStream::new(server, timeout, AnswerBudget::default().nothing());
        let slow = tokio::spawn(async move {
            for _ in 0..20 {
                tokio::time::sleep(pause).await;
                client.read_exact(&mut [0; 100]).await.expect("data");
            }
            client
        });
        stream.write_all(&[b'x'; 3000]).await.expect("a slow reader is no stalled one");
        let _client = slow.await.expect("no panic");
        let stalled = tokio::time::timeout(15 * timeout, stream.write_all(&[b'x'; 1001])).await.expect("does not hang");
        assert_eq!(stalled.expect_err("nobody reads").kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn unsent_bytes_are_counted_until_they_are_sent() {
        let (mut client, server) = tokio::io::duplex(1000);
        let budget = AnswerBudget::default();
        let mut stream = AnswerStream::new(server, Duration::from_secs(30), budget.nothing());
        assert_eq!(stream.write(&[b'x'; 1500]).await.expect("room"), 1000);
        assert_eq!(budget.bytes(), 500);
        client.read_exact(&mut [0; 1000]).await.expect("data");
        stream.write_all(&[b'x'; 500]).await.expect("room");
        assert_eq!(budget.bytes(), 0);
        assert_eq!(stream.write(&[b'x'; 1500]).await.expect("room"), 500);
        drop(stream);
        assert_eq!(budget.bytes(), 0, "a closed connection holds nothing");
    }
}
