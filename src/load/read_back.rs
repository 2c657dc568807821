//! Reads the CSV back for verification, from this host or from a replica.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Method, header};
use tokio::time::timeout;

use crate::client::{Connector, Target};
use crate::load::{
    book::Book,
    plan::{Plan, VerifyFrom},
    report::Verification,
    rows::Generator,
    verify::{Verdict, Verifier, verify_file},
};

/// The longest pause between two pieces of the answer.
const PIECE_TIMEOUT: Duration = Duration::from_secs(60);

/// Reads the whole CSV and verifies it.
pub(super) async fn verify(
    plan: &Plan,
    from: &VerifyFrom,
    connector: &Connector,
    generator: &Generator,
    book: &Book,
) -> Verification {
    match from {
        VerifyFrom::File(path) => {
            let verdict = verify_file(path, generator, book).map_err(|e| e.to_string());
            Verification::new(path.display().to_string(), verdict)
        }
        VerifyFrom::Http => {
            let mut failed = Vec::new();
            for target in &plan.targets {
                let source = format!("{target}/rows.csv");
                match fetch(plan, target, connector, Verifier::new(generator, book)).await {
                    Ok(verdict) => return Verification::new(source, Ok(verdict)),
                    Err(e) => failed.push(format!("{source}: {e}")),
                }
            }
            Verification::new("/rows.csv".to_owned(), Err(failed.join("; ")))
        }
    }
}

async fn fetch(
    plan: &Plan,
    target: &Target,
    connector: &Connector,
    mut verifier: Verifier<'_>,
) -> Result<Verdict, String> {
    let mut connection = connector.connect(target).await.map_err(|e| e.to_string())?;
    let mut request = target.request(Method::GET, "/rows.csv", Bytes::new());
    if let Some(authorization) = &plan.authorization {
        request.headers_mut().insert(header::AUTHORIZATION, authorization.clone());
    }
    let slow = |_| format!("nothing came within {PIECE_TIMEOUT:?}");
    let response = timeout(PIECE_TIMEOUT, connection.send_request(request)).await.map_err(slow)?;
    let response = response.map_err(|e| e.to_string())?;
    match response.status().as_u16() {
        200 => {}
        401 | 403 => return Err(format!("{}: --verify-http needs a --token with the role `read`", response.status())),
        _ => return Err(response.status().to_string()),
    }
    let mut body = response.into_body();
    while let Some(frame) = timeout(PIECE_TIMEOUT, body.frame()).await.map_err(slow)? {
        if let Some(piece) = frame.map_err(|e| e.to_string())?.data_ref() {
            verifier.feed(piece);
        }
    }
    Ok(verifier.finish())
}
