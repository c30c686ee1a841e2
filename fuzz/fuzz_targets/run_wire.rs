//! libFuzzer's door to the harness `run_wire`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (stp_fuzz::find("run_wire").expect("a target").run)(data));
