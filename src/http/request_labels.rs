//! The metric labels of a request: method, route, status, code and outcome, each with few values.

use std::borrow::Cow;

use axum::{
    http::{Method, StatusCode},
    response::Response,
};
use utoipa::openapi::{OpenApi, RefOr, Response as Described};

use crate::{
    api::acknowledgement::Acknowledgement,
    commit::Outcome,
    http::{
        contract::from_json,
        error::{Code, Problem},
    },
    metrics::{NONE, RequestLabels},
};

/// Outcomes of an accepted append.
const WRITTEN: &str = "written";
const REPLAYED: &str = "replayed";
/// An unknown method or path: clients can send any number of them.
const OTHER: &str = "other";
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];

/// The labels of an answered request.
pub(crate) fn request_labels<'a>(
    response: &Response,
    method: &Method,
    route: Option<&'a str>,
    problem: Option<&Problem>,
) -> RequestLabels<'a> {
    let outcome = match (response.extensions().get::<Acknowledgement>(), problem) {
        (Some(Acknowledgement { replayed: true, .. }), _) => REPLAYED,
        (Some(_), _) => WRITTEN,
        (None, Some(problem)) => problem.outcome.name(),
        (None, None) => NONE,
    };
    RequestLabels {
        method: METHODS.into_iter().find(|known| *known == method.as_str()).unwrap_or(OTHER),
        route: Cow::Borrowed(route.unwrap_or(OTHER)),
        status: response.status().as_u16(),
        code: problem.map_or(Cow::Borrowed(NONE), |problem| Cow::Owned(problem.code.to_string())),
        outcome,
    }
}

/// The labels of all answers that the contract lists. They are declared at the start, so that an alert on one of them finds a series
/// before it first occurs.
pub(crate) fn declared_labels(api: &OpenApi) -> Vec<RequestLabels<'static>> {
    let mut all = Vec::new();
    for (path, item) in &api.paths.paths {
        for (method, operation) in [("GET", &item.get), ("POST", &item.post), ("DELETE", &item.delete)] {
            let Some(operation) = operation else { continue };
            for (status, answer) in &operation.responses.responses {
                let (status, RefOr::T(answer)) = (status.parse().expect("a status"), answer) else { continue };
                let labels =
                    |(code, outcome)| RequestLabels { method, route: path.clone().into(), status, code, outcome };
                all.extend(outcomes(status, answer).into_iter().map(labels));
            }
        }
    }
    all
}

/// The codes and outcomes of an answer in the contract.
fn outcomes(status: u16, answer: &Described) -> Vec<(Cow<'static, str>, &'static str)> {
    let codes = answer.extensions.as_ref().and_then(|extensions| extensions.get("x-codes"));
    let codes: Vec<Code> = codes.map_or_else(Vec::new, |codes| from_json(codes.clone()));
    let refused = |code: Code| {
        let outcomes: &[Outcome] = match code {
            Code::SyncFailed => &[Outcome::Unknown],
            Code::Internal => &[Outcome::NotWritten, Outcome::Unknown],
            _ => &[Outcome::NotWritten],
        };
        outcomes.iter().map(move |outcome| (Cow::Owned(code.to_string()), outcome.name()))
    };
    let accepted: &[&str] = match status {
        _ if !codes.is_empty() => &[],
        status if status == StatusCode::CREATED => &[WRITTEN, REPLAYED],
        _ => &[NONE],
    };
    codes.into_iter().flat_map(refused).chain(accepted.iter().map(|outcome| (Cow::Borrowed(NONE), *outcome))).collect()
}
