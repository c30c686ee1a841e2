//! libFuzzer's door to the harness `records_made`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (stp_fuzz::find("records_made").expect("a target").run)(data));
