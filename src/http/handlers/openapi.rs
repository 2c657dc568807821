//! `GET /openapi.yaml`: the contract.

use axum::{extract::State, response::Response};

use crate::http::{
    app::App,
    contract::{parameters::IfNoneMatch, refusals::ContentRefused},
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
        ContentRefused,
    ),
)]
pub(crate) async fn openapi(State(app): State<App>) -> Response {
    app.contract.answer()
}
