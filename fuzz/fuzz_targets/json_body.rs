//! A body of `/append` as JSON.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rowlock::http::fuzzing::json_body(data));
