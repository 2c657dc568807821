//! Fuzzes JSON bodies of `/append`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rowlock::http::testing::fuzz::json_body(data));
