//! Refuses connections beyond the maximum.

use std::{mem::MaybeUninit, sync::LazyLock, time::Duration};

use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::OwnedSemaphorePermit,
    time::timeout,
};

const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);
const BODY: &str = concat!(
    r#"{"type":"urn:rowlock:problem:queue_full","title":"The queue is full","status":503,"detail":"too many connections (ROWLOCK_MAX_CONNECTIONS)","code":"queue_full","retryable":true,"outcome":"not_written","request_id":""}"#,
    "\n",
);
static ANSWER: LazyLock<String> = LazyLock::new(|| {
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{BODY}",
        BODY.len()
    )
});

/// Answers 503 without reading the request, and closes the connection once the client has closed it.
pub(super) async fn refuse(mut stream: TcpStream, _refusal: OwnedSemaphorePermit) {
    let answer = async {
        stream.write_all(ANSWER.as_bytes()).await?;
        stream.shutdown().await?;
        // Closing a socket with unread bytes resets the connection, and the client may lose the answer.
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    // The client may have gone, or not close its side.
    let _ = timeout(REFUSAL_TIMEOUT, answer).await;
}

/// Answers 503 and closes the connection at once. A client whose request arrives later may lose the answer.
pub(super) fn refuse_at_once(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let _ = socket.recv(&mut [MaybeUninit::uninit(); 4096]);
    let _ = socket.send(ANSWER.as_bytes());
}
