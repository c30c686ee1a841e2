//! libFuzzer's door to the harness `gift`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (stp_fuzz::find("gift").expect("a target").run)(data));
