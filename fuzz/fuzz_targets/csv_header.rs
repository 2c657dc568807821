//! Fuzzes the header of a CSV.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rowlock::storage::testing::fuzz::csv_header(data));
