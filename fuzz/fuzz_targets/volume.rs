//! libFuzzer's door to the harness `volume`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| (stp_fuzz::find("volume").expect("a target").run)(data));
