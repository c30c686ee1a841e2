//! libFuzzer's door to the harness `control`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (stp_fuzz::find("control").expect("a target").run)(data));
