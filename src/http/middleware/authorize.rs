//! Decides whether a request reaches the router: its token's role and its client's rate limit.

use std::{net::SocketAddr, panic::AssertUnwindSafe};

use axum::{
    Router,
    extract::Request,
    http::{HeaderValue, Method, header::CACHE_CONTROL},
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use tower::ServiceExt;

use crate::commit::{AppendError, Outcome};
use crate::http::{
    app::App,
    body::read,
    error::ApiError,
    middleware::{
        rate_limit::RateLimitState,
        tokens::{Caller, Role},
    },
};

/// Passes a request to the router, or refuses it before its body is read.
pub(crate) async fn authorize(app: &App, peer: SocketAddr, mut request: Request, router: Router) -> Response {
    let caller = app.access.caller(request.headers());
    let (limit, within_limit) = check_rate_limit(app, peer, &request, &caller);
    let authorized = check_role(request.method(), request.uri().path(), caller);
    let mut response = match within_limit.and(authorized) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            // After a panic nothing of the request is used again, so broken invariants within it do no harm.
            match AssertUnwindSafe(router.oneshot(request)).catch_unwind().await {
                Ok(Ok(response)) => response,
                Err(_) => ApiError::Append(AppendError::Internal(Outcome::Unknown)).into_response(),
            }
        }
        Err(e) => refuse(request, e).await,
    };
    // Only handlers of static content let clients keep a copy.
    response.headers_mut().entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    if let Some(limit) = limit {
        limit.write_headers(response.headers_mut());
    }
    response
}

/// The client's state to report, if there is a rate limit, and whether the request is within it.
fn check_rate_limit(
    app: &App,
    peer: SocketAddr,
    request: &Request,
    caller: &Result<Caller, ApiError>,
) -> (Option<RateLimitState>, Result<(), ApiError>) {
    let Some(limiter) = app.rate_limiter.as_ref().filter(|_| !is_probe(request.uri().path())) else {
        return (None, Ok(()));
    };
    let token = caller.as_ref().ok().and_then(|caller| caller.token);
    match limiter.check(token, peer) {
        Ok(state) => (Some(state), Ok(())),
        Err((state, wait)) => (Some(state), Err(ApiError::RateLimited(wait))),
    }
}

fn check_role(method: &Method, path: &str, caller: Result<Caller, ApiError>) -> Result<Caller, ApiError> {
    match (Role::needed(method, path), caller) {
        // A public path accepts requests with an unknown token, too.
        (None, caller) => Ok(caller.unwrap_or(Caller::NOBODY)),
        (Some(_), Err(e)) => Err(e),
        // guard: role_reaches: a token reaches only what its role allows
        (Some(role), Ok(caller)) if caller.may(role) => Ok(caller),
        (Some(_), Ok(caller)) if caller.token.is_none() => Err(ApiError::Unauthorized { unknown_token: false }),
        (Some(role), Ok(_)) => Err(ApiError::Forbidden(role.name())),
    }
}

/// Probes need no token and count towards no rate limit.
pub(crate) fn is_probe(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz")
}

async fn refuse(request: Request, error: ApiError) -> Response {
    let (head, body) = request.into_parts();
    read::refuse(&head.headers, body, error).await.into_response()
}
