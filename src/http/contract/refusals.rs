//! The codes that each operation may refuse with.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use serde_json::json;
use utoipa::{
    IntoResponses,
    openapi::{ContentBuilder, Ref, RefOr, Response as Answer, ResponseBuilder, extensions::ExtensionsBuilder},
};

use crate::http::{
    contract::{from_json, reference},
    error::Code,
};

/// Defines a type for each list of codes, to be listed in `responses` of an operation.
macro_rules! refusals {
    ($($operation:ident: $($code:ident)+;)+) => {$(
        pub(crate) struct $operation;

        impl IntoResponses for $operation {
            fn responses() -> BTreeMap<String, RefOr<Answer>> {
                refusals(&[$(Code::$code),+])
            }
        }
    )+};
}

// Every operation lists `internal`: any handler may panic.
refusals! {
    AppendRefused:
        BrokenBody BadKey SimulationOff BodyTimeout KeyInFlight BodyTooLarge BatchTooLarge UnsupportedMediaType InvalidField
        KeyReused SyncFailed Internal QueueFull WaitTimeout RedisUnavailable RedisRejected LockLost FileBusy FileReplaced Draining DiskFull;
    BatchRefused:
        BrokenBody BadKey BodyTimeout KeyInFlight BatchTooLarge UnsupportedMediaType InvalidField KeyReused SyncFailed
        Internal QueueFull WaitTimeout RedisUnavailable RedisRejected LockLost FileBusy FileReplaced Draining DiskFull;
    RowsRefused: InvalidField NotARowStart Internal QueueFull FileBusy FileReplaced;
    FileRefused: PreconditionFailed InvalidField RangeNotSatisfiable Internal QueueFull FileBusy FileReplaced;
    EventsRefused: InvalidField Internal QueueFull FileBusy FileReplaced;
    LockRefused: RedisUnavailable RedisRejected FileBusy Internal;
    ReleaseRefused: SyncFailed Internal RedisUnavailable RedisRejected LockLost FileBusy FileReplaced Draining DiskFull;
    AssetRefused: NotFound Internal QueueFull;
    ContentRefused: Internal QueueFull;
    NeverRefused: Internal;
}

/// One response per status. It lists its codes in the description and, for programs, in `x-codes`.
pub(super) fn refusals(codes: &[Code]) -> BTreeMap<String, RefOr<Answer>> {
    let mut by_status = BTreeMap::<StatusCode, Vec<Code>>::new();
    for &code in codes {
        by_status.entry(code.facts().status).or_default().push(code);
    }
    let response = |(status, codes): (StatusCode, Vec<Code>)| {
        let meanings: Vec<_> = codes.iter().map(|code| format!("`{code}`: {}.", code.facts().title)).collect();
        let mut response = ResponseBuilder::new()
            .description(meanings.join(" "))
            .content(
                "application/problem+json",
                ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build(),
            )
            .extensions(Some(ExtensionsBuilder::new().add("x-codes", json!(codes)).build()))
            .build();
        if codes.iter().any(|code| code.facts().retry_after_secs.is_some()) {
            response.headers.insert("Retry-After".to_owned(), reference("headers", "RetryAfter"));
        }
        if status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
            response.headers.insert("Accept".to_owned(), reference("headers", "Accepted"));
            response.headers.insert("Accept-Encoding".to_owned(), reference("headers", "AcceptedEncoding"));
        }
        (status.as_str().to_owned(), RefOr::T(response))
    };
    by_status.into_iter().map(response).collect()
}

/// The codes that a response lists.
pub(super) fn codes_of(response: &RefOr<Answer>) -> Vec<Code> {
    let RefOr::T(response) = response else { return Vec::new() };
    let listed = response.extensions.as_ref().and_then(|extensions| extensions.get("x-codes"));
    listed.map(|codes| from_json(codes.clone())).unwrap_or_default()
}
