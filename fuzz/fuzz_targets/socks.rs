//! libFuzzer's door to the harness `socks`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (stp_fuzz::find("socks").expect("a target").run)(data));
