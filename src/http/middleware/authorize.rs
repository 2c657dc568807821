//! At the door: who comes, whether its share is used up, and whether it may do what it asks for.

use std::{net::SocketAddr, panic::AssertUnwindSafe};

use axum::{
    Router,
    extract::Request,
    http::{HeaderValue, header::CACHE_CONTROL},
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use tower::ServiceExt;

use crate::commit::{AppendError, Outcome};
use crate::http::{
    app::App,
    body::read,
    error::ApiError,
    middleware::tokens::{Caller, Role},
};

/// Lets a request in to the router, or refuses it before any of it is parsed.
pub(crate) async fn door(app: &App, peer: SocketAddr, mut request: Request, router: Router) -> Response {
    let needed = Role::needed(request.method(), request.uri().path());
    let caller = app.access.caller(request.headers());
    let token = caller.as_ref().ok().and_then(|caller| caller.token);
    let counts = !is_probe(request.uri().path());
    let (share, used_up) = match app.shares.as_ref().filter(|_| counts).map(|shares| shares.take(token, peer)) {
        None => (None, None),
        Some(Ok(share)) => (Some(share), None),
        Some(Err((share, wait))) => (Some(share), Some(ApiError::RateLimited(wait))),
    };
    let admitted = match (needed, caller) {
        // What is open is not refused for a token that is none of ours.
        (None, caller) => Ok(caller.unwrap_or(Caller::NOBODY)),
        (Some(_), Err(e)) => Err(e),
        // guard: role_reaches
        (Some(role), Ok(caller)) if caller.may(role) => Ok(caller),
        (Some(_), Ok(caller)) if caller.token.is_none() => Err(ApiError::Unauthorized { unknown_token: false }),
        (Some(role), Ok(_)) => Err(ApiError::Forbidden(role.name())),
    };
    let mut response = match used_up.map_or(admitted, Err) {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            // Nothing that a handler leaves half done is looked at again: the response is all there is of it.
            match AssertUnwindSafe(router.oneshot(request)).catch_unwind().await {
                Ok(Ok(response)) => response,
                Err(_) => ApiError::Append(AppendError::Internal(Outcome::Unknown)).into_response(),
            }
        }
        Err(e) => refuse(request, e).await,
    };
    // Who may keep what is said by who knows that it stays the same.
    response.headers_mut().entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    if let Some(share) = share {
        share.tell(response.headers_mut());
    }
    response
}

/// A probe is never one too many.
pub(crate) fn is_probe(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz")
}

async fn refuse(request: Request, with: ApiError) -> Response {
    let (head, body) = request.into_parts();
    read::refuse(&head.headers, body, with).await.into_response()
}
