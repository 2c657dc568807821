//! The contract, openapi.yaml, which is generated from the code. Each operation and type is described beside its handler or struct.

pub(crate) mod document;
pub(crate) mod parameters;
pub(crate) mod refusals;

use serde::de::DeserializeOwned;
use serde_json::Value;
use utoipa::openapi::{Ref, RefOr};

/// A part of the document that no derive can express.
pub(crate) fn from_json<T: DeserializeOwned>(written: Value) -> T {
    serde_json::from_value(written).expect("a part of OpenAPI, as the tests check")
}

fn reference<T>(kind: &str, name: &str) -> RefOr<T> {
    RefOr::Ref(Ref::new(format!("#/components/{kind}/{name}")))
}
