//! libFuzzer's door to the harness `segment`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (stp_fuzz::find("segment").expect("a target").run)(data));
