//! libFuzzer's door to the harness `text`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (stp_fuzz::find("text").expect("a target").run)(data));
