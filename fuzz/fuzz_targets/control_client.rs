//! libFuzzer's door to the harness `control_client`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (stp_fuzz::find("control_client").expect("a target").run)(data));
