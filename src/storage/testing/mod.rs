//! Code that only tests and fuzzers use.

pub mod fuzz;
#[cfg(test)]
mod interleaved;
mod memory;
#[cfg(test)]
mod reader_disk;
#[cfg(test)]
mod simulation;
