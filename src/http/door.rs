//! At the door: who comes, whether its share is used up, and whether it may do what it asks for.

use std::net::SocketAddr;

use axum::{
    extract::{ConnectInfo, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{
    App,
    access::{Caller, Role},
    body,
    error::ApiError,
};

/// Lets a request in, or refuses it before any of it is parsed.
pub(super) async fn door(State(app): State<App>, mut request: Request, next: Next) -> Response {
    let needed = Role::needed(request.method(), request.uri().path());
    let caller = app.access.caller(request.headers());
    let token = caller.as_ref().ok().and_then(|caller| caller.token);
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|&ConnectInfo(peer)| peer);
    let counts = !is_probe(request.uri().path());
    let share = match app.shares.as_ref().filter(|_| counts).map(|shares| shares.take(token, peer)) {
        None => None,
        Some(Ok(share)) => Some(share),
        Some(Err((share, wait))) => {
            let mut response = refuse(request, ApiError::RateLimited(wait)).await;
            share.tell(response.headers_mut());
            return response;
        }
    };
    let caller = match (needed, caller) {
        // What is open is not refused for a token that is none of ours.
        (None, caller) => Ok(caller.unwrap_or(Caller::NOBODY)),
        (Some(_), Err(e)) => Err(e),
        // guard: role_reaches
        (Some(role), Ok(caller)) if caller.may(role) => Ok(caller),
        (Some(_), Ok(caller)) if caller.token.is_none() => Err(ApiError::Unauthorized { unknown_token: false }),
        (Some(role), Ok(_)) => Err(ApiError::Forbidden(role.name())),
    };
    let mut response = match caller {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(e) => refuse(request, e).await,
    };
    if let Some(share) = share {
        share.tell(response.headers_mut());
    }
    response
}

/// A probe is never one too many.
pub(super) fn is_probe(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz")
}

async fn refuse(request: Request, with: ApiError) -> Response {
    let (head, body) = request.into_parts();
    body::refuse(&head.headers, body, with).await.into_response()
}
