//! libFuzzer's door to the harness `claim`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (stp_fuzz::find("claim").expect("a target").run)(data));
