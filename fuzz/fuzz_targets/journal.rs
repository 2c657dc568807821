//! A journal, its CSV and its keys, damaged.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rowlock::storage::testing::fuzz::journal(data));
