//! The composition root: opens what there is to open, serves, and drains.

use std::{future::pending, time::Duration};

use axum::serve::ListenerExt;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    commit::{self, Fatal, events::Events, reading::Reading},
    config::Config,
    http::{App, Draining},
};

/// How long answers may take to leave once all rows are settled.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Why serving ended other than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// File or lock can't be used.
    #[error(transparent)]
    Open(#[from] commit::OpenError),
    /// The address can't be served on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// `ROWLOCK_LISTEN`.
        address: std::net::SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Signals or sockets failed.
    #[error("cannot serve: {0}")]
    Io(#[from] std::io::Error),
    /// What the file holds is in doubt.
    #[error("{0}; ending, so that nobody believes this process's view of the file")]
    Fatal(#[from] Fatal),
    /// A bug.
    #[error("the committer ended without a word")]
    CommitterGone,
}

/// Serves until SIGTERM or SIGINT, then finishes what was taken and returns.
///
/// # Errors
/// If it can't begin, or can't go on.
pub async fn serve(config: Config) -> Result<(), ServeError> {
    let leave = leave_on_signal()?;
    let (appender, mut ended) = commit::open(&config).await?;
    let reading = Reading::open(&config)?;
    let address = config.listen;
    let listener = TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })?;
    tracing::info!(listening = %format_args!("http://{}", listener.local_addr()?), "serving");

    let draining = Draining::default();
    let events = Events::start(&appender, &reading)?;
    let (stop, stopped) = watch::channel(false);
    let open = (appender.clone(), reading, events.clone());
    let router = App::new(open, &config, draining.clone(), stopped.clone()).router();
    // Without it, Nagle's algorithm holds small answers back.
    let listener = listener.tap_io(|stream| {
        if let Err(e) = stream.set_nodelay(true) {
            tracing::debug!(error = %e, "cannot set TCP_NODELAY");
        }
    });
    let server = axum::serve(listener, router).with_graceful_shutdown(is_true(stopped));
    let mut server = tokio::spawn(server.into_future());

    let mut end = None;
    tokio::select! {
        () = is_true(leave) => tracing::info!(grace = ?config.grace, "leaving: finishing what was taken"),
        result = &mut ended => end = Some(result),
        result = &mut server => result.map_err(std::io::Error::other)??,
    }
    draining.begin();
    events.drain();
    stop.send_replace(true);
    let deadline = Instant::now() + config.grace;
    if end.is_none() && timeout_at(deadline, &mut server).await.is_err() {
        tracing::warn!("the grace time is over: refusing what still waits");
        appender.refuse_waiting();
    }
    appender.close();
    let end = match end {
        Some(end) => end,
        None => timeout(LAST_ANSWERS + deadline.saturating_duration_since(Instant::now()), ended)
            .await
            .unwrap_or(Ok(Ok(()))),
    };
    let _ = timeout(LAST_ANSWERS, async {
        if !server.is_finished() {
            let _ = (&mut server).await;
        }
    })
    .await;
    end.map_err(|_| ServeError::CommitterGone)??;
    tracing::info!("left");
    Ok(())
}

/// The first signal begins the drain, a second one leaves at once.
fn leave_on_signal() -> std::io::Result<watch::Receiver<bool>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (leave, leaving) = watch::channel(false);
    tokio::spawn(async move {
        loop {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            if leave.send_replace(true) {
                tracing::warn!("a second signal: leaving at once");
                std::process::exit(1);
            }
        }
    });
    Ok(leaving)
}

async fn is_true(mut flag: watch::Receiver<bool>) {
    if flag.wait_for(|on| *on).await.is_err() {
        pending().await
    }
}
