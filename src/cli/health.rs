//! `rowlock health`: whether a replica accepts rows. For health checks of containers without curl.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use hyper::Method;
use serde::Serialize;
use tokio::time::timeout;

use crate::cli::{Exit, FAILED, WRONG_USAGE, output};
use crate::{
    client::{Connector, Target, Trust},
    config::Config,
};

/// Less than the timeout of a probe on container platforms.
const TIMEOUT: Duration = Duration::from_secs(2);

pub(super) const EXAMPLES: &str = "\
Exit codes: 0 ready; 1 not ready; 2 wrong usage or a wrong setting; 73 ready, but standard output did not take the result.

Examples:
  rowlock health                                       the replica of these settings, on this host
  rowlock health https://rows.example.com --ca ca.pem";

/// The arguments of `rowlock health`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The replica's URL; unless given, the address that these settings serve.
    #[arg(value_parser = Target::parse)]
    url: Option<Target>,
    /// For https: PEM file of the certificate authorities that sign the replica's certificate; the system's unless given.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Health {
    url: String,
    ready: bool,
    /// The status of `/readyz`, if there was an answer.
    status: Option<u16>,
    /// Why there was no answer.
    error: Option<String>,
}

pub(super) async fn run(config: &Config, args: Args) -> Result<(), Exit> {
    let trust = match (&args.url, args.ca) {
        (_, Some(path)) => Trust::File(path),
        (Some(_), None) => Trust::System,
        // A check of this host's own address sends no secret, and the certificate is for another name.
        (None, None) => Trust::Any,
    };
    let target = args.url.map_or_else(|| own_target(config), Ok)?;
    let connector = Connector::new(&trust).map_err(|e| Exit::new(WRONG_USAGE, format_args!("--ca: {e}")))?;
    let answer = timeout(TIMEOUT, get_readiness(&connector, &target)).await;
    let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {TIMEOUT:?}")));
    let (status, error) = match answer {
        Ok(status) => (Some(status), None),
        Err(error) => (None, Some(error)),
    };
    let health = Health { url: target.to_string(), ready: status == Some(200), status, error };
    let text =
        if args.json { serde_json::to_string(&health).map_err(|e| Exit::new(FAILED, e))? } else { describe(&health) };
    let printed = output::print(text, if health.ready { "ready" } else { "not ready" });
    Exit::verdict(health.ready, printed)
}

/// The address that these settings serve; the loopback address, if they serve all addresses.
fn own_target(config: &Config) -> Result<Target, Exit> {
    if config.listen.port() == 0 {
        return Err(Exit::new(WRONG_USAGE, "ROWLOCK_LISTEN (--listen) has port 0: give the URL"));
    }
    let scheme = if config.tls_cert.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{}", config.listen.local_authority());
    Ok(Target::parse(&url).expect("a host and a port are a URL"))
}

async fn get_readiness(connector: &Connector, target: &Target) -> Result<u16, String> {
    let mut connection = connector.connect(target).await.map_err(|e| e.to_string())?;
    let request = target.request(Method::GET, "/readyz", Bytes::new());
    let response = connection.send_request(request).await.map_err(|e| e.to_string())?;
    Ok(response.status().as_u16())
}

fn describe(health: &Health) -> String {
    let url = &health.url;
    match (health.ready, health.status, &health.error) {
        (true, ..) => format!("{url}: ready"),
        (false, Some(status), _) => format!("{url}: not ready, answered {status}"),
        (false, None, error) => format!("{url}: not ready, {}", error.as_deref().unwrap_or("no answer")),
    }
}
