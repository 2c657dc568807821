//! A journal's headers and records.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rowlock::storage::fuzzing::journal_record(data));
