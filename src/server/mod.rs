//! The composition root: opens what there is to open, serves, and drains.

mod connections;
mod tls;
mod traces;

use std::{future::pending, net::SocketAddr, sync::Arc, time::Duration};

use crate::server::connections::Connections;
use crate::server::tls::Tls;
pub use crate::server::tls::TlsError;
use crate::server::traces::Traces;
pub use crate::server::traces::TracesError;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{oneshot::error::RecvError, watch},
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

use crate::{
    commit::{self, Appender, Ended, Fatal, peer_events::Events, reading::Reading},
    config::{Config, Switch},
    http::{Access, AccessError, AppParts, Draining, Service},
    metrics::Meter,
};

/// How long answers may take to leave once all rows are settled.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Why serving ended other than by a signal.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Tokens can't be used.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// Everybody who reaches the address could do everything.
    #[error(
        "ROWLOCK_LISTEN (--listen): {0} is reached by others, and nobody would be asked for a token; accepted: a loopback address, or ROWLOCK_API_TOKENS with tokens, or ROWLOCK_AUTH=off if that is meant"
    )]
    Open(SocketAddr),
    /// Certificate or key can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Traces can't be exported as asked.
    #[error(transparent)]
    Traces(#[from] TracesError),
    /// File or lock can't be used.
    #[error(transparent)]
    Commit(#[from] commit::OpenError),
    /// The address can't be served on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// `ROWLOCK_LISTEN`.
        address: SocketAddr,
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
pub async fn serve(mut config: Config) -> Result<(), ServeError> {
    let leave = leave_on_signal()?;
    // One name, wherever it is told.
    config.replica = Some(config.replica_name());
    let access = Arc::new(open_access(&config)?);
    let tls = Tls::load(&config)?.map(Arc::new);
    reload_on_signal(Arc::clone(&access), tls.clone())?;
    let traces = Traces::from_env(&config.replica_name())?;
    let (appender, ended) = commit::open(&config, Arc::new(Meter::exposed())).await?;
    let reading = Reading::open(&config, &appender)?;
    let events = Events::start(&appender, &reading)?;
    let address = config.listen;
    let listener = TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    tracing::info!(listening = %format_args!("{scheme}://{}", listener.local_addr()?), "serving");

    let draining = Draining::default();
    let (stop, stopped) = watch::channel(false);
    let parts = AppParts {
        appender: appender.clone(),
        reading,
        events: events.clone(),
        access,
        draining: draining.clone(),
        stopped: stopped.clone(),
        tracer: traces.as_ref().map(Traces::tracer),
    };
    let service = Arc::new(Service::new(parts, &config));
    let connections = Connections { service, tls, connections_max: config.max_connections };
    let server = tokio::spawn(connections.serve(listener, stopped));
    let result = Serving { config, appender, events, draining, stop, server, ended }.until_end(leave).await;
    if let Some(traces) = traces {
        traces.flush().await;
    }
    result
}

/// Tokens, or an address that nobody else reaches, or the word that this is meant.
fn open_access(config: &Config) -> Result<Access, ServeError> {
    let access = Access::load(config.api_tokens.clone())?;
    if access.is_open() && config.auth == Switch::On && !config.listen.ip().to_canonical().is_loopback() {
        return Err(ServeError::Open(config.listen));
    }
    Ok(access)
}

/// What runs, and what it takes to end it.
struct Serving {
    config: Config,
    appender: Appender,
    events: Events,
    draining: Draining,
    stop: watch::Sender<bool>,
    server: JoinHandle<()>,
    ended: Ended,
}

impl Serving {
    /// Serves until it is told to leave, or can't go on; then drains.
    async fn until_end(mut self, leave: watch::Receiver<bool>) -> Result<(), ServeError> {
        let (config, draining, events) = (&self.config, &self.draining, &self.events);
        let told_to_leave = async {
            is_true(leave).await;
            tracing::info!(drain_delay = ?config.drain_delay, grace = ?config.grace, "leaving: not ready any more");
            draining.begin();
            events.drain();
            // guard: drain_delay
            tokio::time::sleep(config.drain_delay).await;
        };
        let end = tokio::select! {
            () = told_to_leave => None,
            end = &mut self.ended => Some(end),
        };
        self.draining.begin();
        self.stop.send_replace(true);
        let end = match end {
            Some(end) => end,
            None => self.drain().await,
        };
        self.last_answers().await;
        end.map_err(|_| ServeError::CommitterGone)??;
        tracing::info!("left");
        Ok(())
    }

    /// Finishes what was taken, within the grace time.
    async fn drain(&mut self) -> Result<Result<(), Fatal>, RecvError> {
        let deadline = Instant::now() + self.config.grace;
        if timeout_at(deadline, &mut self.server).await.is_err() {
            tracing::warn!("the grace time is over: refusing what still waits");
            self.appender.refuse_waiting();
        }
        self.appender.close();
        let left = LAST_ANSWERS + deadline.saturating_duration_since(Instant::now());
        timeout(left, &mut self.ended).await.unwrap_or(Ok(Ok(())))
    }

    /// Who does not take its answer in time goes without.
    async fn last_answers(&mut self) {
        if !self.server.is_finished() {
            let _ = timeout(LAST_ANSWERS, &mut self.server).await;
        }
    }
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

/// SIGHUP: what stands in files is read again. What can't be used changes nothing.
fn reload_on_signal(access: Arc<Access>, tls: Option<Arc<Tls>>) -> std::io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            match access.reload() {
                Ok(()) => tracing::info!("tokens were read again"),
                Err(e) => tracing::error!(error = %e, "the tokens that were read before go on"),
            }
            match tls.as_ref().map(|tls| tls.reload()) {
                Some(Ok(())) => tracing::info!("the certificate was read again"),
                Some(Err(e)) => tracing::error!(error = %e, "the certificate that was read before goes on"),
                None => {}
            }
        }
    });
    Ok(())
}

async fn is_true(mut flag: watch::Receiver<bool>) {
    if flag.wait_for(|on| *on).await.is_err() {
        pending().await
    }
}
