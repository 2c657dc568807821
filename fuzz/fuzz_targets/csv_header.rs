//! A CSV's header.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rowlock::storage::fuzzing::csv_header(data));
