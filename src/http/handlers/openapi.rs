//! `GET /openapi.yaml`: the contract.

use axum::{extract::State, http::HeaderMap, response::Response};

use crate::http::{
    app::App,
    contract::{parameters::IfNoneMatch, refusals::NeverRefused},
};

/// This contract
#[utoipa::path(
    get,
    path = "/openapi.yaml",
    tag = "contract",
    operation_id = "openapi",
    params(IfNoneMatch),
    responses(
        (status = OK, description = "OpenAPI 3.1.", content_type = "application/yaml", body = Object,
            headers(("ETag" = String, description = "Changes with the contract."))),
        (status = NOT_MODIFIED, description = "The client's copy is current.",
            headers(("ETag" = String, description = "Changes with the contract."))),
        NeverRefused,
    ),
)]
pub(crate) async fn openapi(State(app): State<App>, headers: HeaderMap) -> Response {
    app.contract.answer(&headers)
}
