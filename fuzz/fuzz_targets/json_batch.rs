//! Fuzzes bodies of `/append/batch` as JSON lines and as a JSON array.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rowlock::http::testing::fuzz::json_batch(data));
