//! `GET /openapi.yaml`: the contract.

use axum::{extract::State, response::Response};

use crate::http::{
    app::App,
    contract::{parameters::IfNoneMatch, refusals::ContentRefused},
};

/// Browsers show this type, while they download `application/yaml`. Tools go by the content.
pub(crate) const TYPE: &str = "text/plain; charset=utf-8";

/// This contract
///
/// OpenAPI 3.1 as YAML. It is generated from the code of this version.
#[utoipa::path(
    get,
    path = "/openapi.yaml",
    tag = "contract",
    operation_id = "openapi",
    params(IfNoneMatch),
    responses(
        (status = OK, description = "OpenAPI 3.1.", content_type = "text/plain", body = String,
            headers(("ETag" = String, description = "Changes with the contract."))),
        (status = NOT_MODIFIED, description = "The client's copy is current.",
            headers(("ETag" = String, description = "Changes with the contract."))),
        ContentRefused,
    ),
)]
pub(crate) async fn openapi(State(app): State<App>) -> Response {
    app.contract.answer()
}
