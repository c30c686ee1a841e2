//! libFuzzer's door to the harness `records`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (stp_fuzz::find("records").expect("a target").run)(data));
