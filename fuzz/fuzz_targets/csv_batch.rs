//! A body of `/append/batch` as CSV.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rowlock::http::testing::fuzz::csv_batch(data));
