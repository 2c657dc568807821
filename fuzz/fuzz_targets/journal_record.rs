//! A journal's headers and records.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rowlock::storage::testing::fuzz::journal_record(data));
