//! Code that only tests and fuzzers use.

mod csv_grammar;
pub mod fuzz;
