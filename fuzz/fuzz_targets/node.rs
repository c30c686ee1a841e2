//! libFuzzer's door to the harness `node`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (stp_fuzz::find("node").expect("a target").run)(data));
