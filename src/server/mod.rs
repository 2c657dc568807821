//! The server: opens lock, file and sockets, serves, and drains on a signal.

mod answer_stream;
mod connection;
mod connections;
mod exchange;
mod flag;
mod lingering_close;
mod listen;
mod open_files;
mod refusal;
mod socket;
mod tls;
mod traces;
mod watched_io;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{oneshot, watch},
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};

use crate::server::{
    connection::ConnectionLimits, connections::Connections, flag::is_true, lingering_close::LingerBounds, tls::Tls,
    traces::Traces,
};
pub use crate::server::{tls::TlsError, traces::TracesError};
use crate::{
    commit::{self, Appender, CommitterHandle, Fatal, peer_events::PeerEvents, reading::Reading},
    config::{Config, ListenAddress, Switch},
    csv::{schema::Schema, suspect_header},
    http::{Access, AccessError, AppParts, Draining, Service},
    metrics::Meter,
};

/// How long no answer closes a connection before the listener is closed. The system resets a connection that is completed in the moment
/// of the close, and clients connect the most just after an answer has closed their connection.
const QUIET_BEFORE_CLOSE: Duration = Duration::from_millis(50);
/// How long the listener may take to be closed.
const LISTENER_CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the last answers may take to be sent after the committer has ended.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Why the server did not start, or ended without a signal.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The tokens cannot be used.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// Other hosts could use the service without a token.
    #[error(
        "ROWLOCK_LISTEN (--listen): other hosts reach {0} and would need no token; accepted: a loopback address, or tokens in ROWLOCK_API_TOKENS, or ROWLOCK_AUTH=off if this is intended"
    )]
    Open(SocketAddr),
    /// The host name of the address is unknown.
    #[error("ROWLOCK_LISTEN (--listen): {address} cannot be resolved: {source}")]
    Resolve {
        /// `ROWLOCK_LISTEN`.
        address: ListenAddress,
        /// The resolver's answer.
        source: std::io::Error,
    },
    /// Certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Traces cannot be exported as configured.
    #[error(transparent)]
    Traces(#[from] TracesError),
    /// File or lock cannot be used.
    #[error(transparent)]
    Commit(#[from] commit::OpenError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// `ROWLOCK_LISTEN`.
        address: ListenAddress,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Signals or sockets failed.
    #[error("cannot serve: {0}")]
    Io(#[from] std::io::Error),
    /// The committer could not continue.
    #[error(transparent)]
    Fatal(#[from] Fatal),
}

/// Serves until SIGTERM or SIGINT, then drains and returns.
///
/// # Errors
/// If the server cannot start, or cannot continue.
pub async fn serve(mut config: Config) -> Result<(), ServeError> {
    let shutdown = shutdown_signal()?;
    // A random name is made once, for all uses.
    config.replica = Some(config.replica_name());
    let address = config.listen.clone();
    let resolved = listen::resolve(&address).await;
    let addresses = resolved.map_err(|source| ServeError::Resolve { address: address.clone(), source })?;
    let access = Arc::new(open_access(&config, &addresses)?);
    let tls = Tls::load(&config)?.map(Arc::new);
    reload_on_signal(Arc::clone(&access), tls.clone())?;
    let connections_max = open_files::connections_within_limit(config.max_connections);
    let traces = Traces::from_env(&config.replica_name())?;
    let opened = tokio::select! {
        opened = open(&config) => opened,
        () = grace_over(shutdown.clone(), config.grace) => {
            tracing::warn!("the grace time is over, and the CSV is not open yet: ending without it");
            return Ok(());
        }
    };
    let (appender, committer, reading) = opened?;
    log_columns(appender.schema());
    let events = PeerEvents::start(&appender, &reading)?;
    let listener = listen::bind(&addresses).await.map_err(|source| ServeError::Listen { address, source })?;
    warn_of_simulation(&config, listener.local_addr()?);
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
    let linger = LingerBounds::for_bodies(config.batch_limit.max(config.body_limit));
    let limits = ConnectionLimits { linger, write_timeout: config.write_timeout };
    let connections = Connections::new(service, tls, connections_max, limits, stopped);
    let (closed, listener_closed) = oneshot::channel();
    let server = tokio::spawn(connections.serve(listener, closed));
    let result =
        Serving { config, appender, events, draining, stop, listener_closed, server, committer }.run(shutdown).await;
    if let Some(traces) = traces {
        traces.flush().await;
    }
    result
}

/// Opens lock and file, for appending and for reading.
async fn open(config: &Config) -> Result<(Appender, CommitterHandle, Reading), commit::OpenError> {
    let (appender, committer) = commit::open(config, Arc::new(Meter::exposed())).await?;
    let reading = Reading::open(config, &appender).await?;
    Ok((appender, committer, reading))
}

/// Loads the tokens. Without tokens, only a loopback address may be served, unless `ROWLOCK_AUTH` is `off`.
fn open_access(config: &Config, addresses: &[SocketAddr]) -> Result<Access, ServeError> {
    let access = Access::load(config.api_tokens.clone())?;
    match addresses.iter().find(|address| !is_loopback(address)) {
        Some(reached) if access.is_open() && config.auth == Switch::On => Err(ServeError::Open(*reached)),
        _ => Ok(access),
    }
}

fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Logs how the header was understood, and what about it may be a mistake.
fn log_columns(schema: &Schema) {
    let columns = schema.names().map_or_else(|| "none, rows hold only data".to_owned(), |names| names.join(","));
    tracing::info!(columns, "the columns of the CSV");
    for doubt in suspect_header::doubts(schema) {
        tracing::warn!(%doubt, "the header of the CSV may be a mistake");
    }
}

/// `sleep` and `skip_release` let a client hold the lock for long, so they are for tests.
fn warn_of_simulation(config: &Config, address: SocketAddr) {
    if config.simulation == Switch::On && !is_loopback(&address) {
        tracing::warn!(%address, "other hosts may send sleep and skip_release; unless this is a test, set ROWLOCK_SIMULATION=off");
    }
}

/// The running server, and what its shutdown needs.
struct Serving {
    config: Config,
    appender: Appender,
    events: PeerEvents,
    draining: Draining,
    stop: watch::Sender<bool>,
    listener_closed: oneshot::Receiver<()>,
    server: JoinHandle<()>,
    committer: CommitterHandle,
}

impl Serving {
    /// Serves until a signal or until the committer ends, then drains.
    async fn run(mut self, shutdown: watch::Receiver<bool>) -> Result<(), ServeError> {
        let (config, draining, events) = (&self.config, &self.draining, &self.events);
        let drain_delay_over = async {
            is_true(shutdown).await;
            tracing::info!(drain_delay = ?config.drain_delay, grace = ?config.grace, "shutting down: no longer ready");
            draining.begin();
            events.drain();
            if config.drain_delay.is_zero() {
                return;
            }
            draining.close_connections(true);
            // guard: drain_delay: load balancers notice a draining replica before it stops
            tokio::time::sleep(config.drain_delay).await;
            draining.close_connections(false);
            tokio::time::sleep(QUIET_BEFORE_CLOSE).await;
        };
        let end = tokio::select! {
            () = drain_delay_over => None,
            end = self.committer.ended() => Some(end),
        };
        self.draining.begin();
        self.stop.send_replace(true);
        // Connections are served in any case.
        let _ = timeout(LISTENER_CLOSE_TIMEOUT, &mut self.listener_closed).await;
        self.draining.close_connections(true);
        let end = match end {
            Some(end) => end,
            None => self.drain().await,
        };
        self.last_answers().await;
        end?;
        tracing::info!("shut down");
        Ok(())
    }

    /// Finishes the accepted requests within the grace time.
    async fn drain(&mut self) -> Result<(), Fatal> {
        let deadline = Instant::now() + self.config.grace;
        if timeout_at(deadline, &mut self.server).await.is_err() {
            tracing::warn!("the grace time is over: refusing the requests that still wait");
            self.appender.refuse_waiting();
        }
        self.appender.close();
        let left = LAST_ANSWERS + deadline.saturating_duration_since(Instant::now());
        let Ok(end) = timeout(left, self.committer.ended()).await else {
            tracing::warn!("the grace time is over, and the committer has not ended: ending without it");
            // Only then is it unknown what happens to rows: all others are answered.
            return if self.appender.is_stuck_writing() { Err(Fatal::StorageStuck) } else { Ok(()) };
        };
        end
    }

    /// Gives clients a bounded time to read the last answers.
    async fn last_answers(&mut self) {
        if !self.server.is_finished() {
            let _ = timeout(LAST_ANSWERS, &mut self.server).await;
        }
    }
}

/// The first signal starts the drain, a second one ends the process at once.
fn shutdown_signal() -> std::io::Result<watch::Receiver<bool>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (shutdown, requested) = watch::channel(false);
    tokio::spawn(async move {
        loop {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            if shutdown.send_replace(true) {
                tracing::warn!("a second signal: ending at once");
                std::process::exit(1);
            }
        }
    });
    Ok(requested)
}

/// Reads tokens and certificate again on SIGHUP. A file that cannot be used changes nothing.
fn reload_on_signal(access: Arc<Access>, tls: Option<Arc<Tls>>) -> std::io::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            match access.reload() {
                Ok(()) => tracing::info!("tokens reloaded"),
                Err(e) => tracing::error!(error = %e, "cannot reload the tokens; the old ones stay in use"),
            }
            match tls.as_ref().map(|tls| tls.reload()) {
                Some(Ok(())) => tracing::info!("certificate reloaded"),
                Some(Err(e)) => tracing::error!(error = %e, "cannot reload the certificate; the old one stays in use"),
                None => {}
            }
        }
    });
    Ok(())
}

/// Returns when the grace time after a shutdown signal has passed.
async fn grace_over(shutdown: watch::Receiver<bool>, grace: Duration) {
    is_true(shutdown).await;
    tokio::time::sleep(grace).await;
}
