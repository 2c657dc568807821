//! Request parameters that several operations share, or that no type describes.

/// Defines a type for each parameter, to be listed in `params` of an operation.
macro_rules! parameters {
    ($($name:ident: $written:tt;)+) => {$(
        pub(crate) struct $name;

        impl utoipa::IntoParams for $name {
            fn into_params(
                _: impl Fn() -> Option<utoipa::openapi::path::ParameterIn>,
            ) -> Vec<utoipa::openapi::path::Parameter> {
                vec![$crate::http::contract::from_json(serde_json::json!($written))]
            }
        }
    )+};
}
pub(crate) use parameters;

parameters! {
    IdempotencyKey: {
        "name": "Idempotency-Key", "in": "header", "required": false, "schema": {"type": "string", "pattern": r#"^([!#-~]([ -~]{0,253}[!-~])?|"([ !#-\[\]-~]|\\["\\]){1,255}")$"#},
        "description": "A name for this request, 1 to 255 printable ASCII characters, bare or in double quotes. Repeating the request with it writes the row once, as long as the key is among the newest ROWLOCK_IDEMPOTENCY_KEYS. Refusals are not remembered.",
        "example": "order-17",
    };
    IfNoneMatch: {
        "name": "If-None-Match", "in": "header", "required": false, "schema": {"type": "string"},
        "description": "The `ETag`s of the client's copies, or `*`. 304 if the content has one of them.",
    };
    BodyEncoding: {
        "name": "Content-Encoding", "in": "header", "required": false, "schema": {"type": "string", "enum": ["gzip", "zstd"]},
        "description": "The compression of the body, if any. Limits of size count decoded bytes.",
    };
    Verbose: {
        "name": "verbose", "in": "query", "required": false, "schema": {"type": "string"},
        "description": "List the checks. The value is ignored.",
    };
}
