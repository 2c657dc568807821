//! Fuzzes headers and records of the journal.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rowlock::storage::testing::fuzz::journal_record(data));
