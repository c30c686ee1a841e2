//! libFuzzer's door to the harness `files`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (stp_fuzz::find("files").expect("a target").run)(data));
