//! Fuzzes form bodies of `/append`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rowlock::http::testing::fuzz::form_body(data));
