//! Fuzzes CSV bodies of `/append/batch`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rowlock::http::testing::fuzz::csv_batch(data));
