//! The contract, openapi.yaml.

pub(crate) mod document;
