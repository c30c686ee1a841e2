//! Skips: what a machine does not allow to be tested, told to `cargo xtask test` by a file.
//!
//! - A line is `test|part TAB name TAB reason`, appended whole; without the file it goes to standard error.

use std::io::Write;

/// The whole test cannot run here. The test then returns.
pub fn skip(name: &str, reason: &str) {
    tell("test", name, reason);
}

/// A part of the test cannot run here; the rest does.
pub fn skip_part(name: &str, reason: &str) {
    tell("part", name, reason);
}

fn tell(kind: &str, name: &str, reason: &str) {
    let one_line = |text: &str| text.replace(['\n', '\t'], " ");
    eprintln!("SKIPPED {kind} {name}: {reason}");
    let Some(path) = std::env::var_os("STP_TEST_SKIPS") else {
        return;
    };
    let line = format!("{kind}\t{}\t{}\n", one_line(name), one_line(reason));
    let file = std::fs::File::options()
        .append(true)
        .create(true)
        .open(path);
    if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
        panic!("cannot count a skipped test: {error}");
    }
}
