//! Fuzzes damaged journals, CSVs and keys files.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rowlock::storage::testing::fuzz::journal(data));
