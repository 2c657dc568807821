//! Only in builds with the feature `ceiling`, for `make bench`: a handler that does nothing, behind all the layers that `/append`
//! stands behind. What a server of this kind could answer at the most.

use axum::{
    Router,
    body::Bytes,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::post,
};

use crate::http::app::App;

/// As long as an answer of `/append`.
const ANSWER: &str =
    r#"{"offset":123456789,"bytes":66,"token":1234567,"replica":"bench-0","waited_ms":0,"held_ms":1,"released":true}"#;

async fn nothing(_body: Bytes) -> impl IntoResponse {
    (StatusCode::CREATED, [(header::CONTENT_TYPE, "application/json")], ANSWER)
}

pub(crate) fn add(router: Router<App>) -> Router<App> {
    router.route("/nothing", post(nothing))
}
