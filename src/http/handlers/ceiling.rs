//! `POST /nothing`, only in builds with the feature `ceiling`: a handler that does nothing, behind the same layers as `/append`. `make
//! bench` measures with it how many requests a server of this kind can answer at most.

use axum::{
    Router,
    body::Bytes,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::post,
};

use crate::http::app::App;

/// As long as an answer of `/append`.
const ANSWER: &str = concat!(
    r#"{"offset":123456789,"bytes":66,"token":1234567,"replica":"bench-0","waited_ms":0,"held_ms":1,"released":true}"#,
    "\n",
);

async fn nothing(_body: Bytes) -> impl IntoResponse {
    (StatusCode::CREATED, [(header::CONTENT_TYPE, "application/json")], ANSWER)
}

pub(crate) fn add(router: Router<App>) -> Router<App> {
    router.route("/nothing", post(nothing))
}
