//! Code that only tests and fuzzers use.

pub mod fuzz;
#[cfg(test)]
mod simulation;
