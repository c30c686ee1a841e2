//! The examples of the C library, run between two systems without a network.

mod support;

use stp_tests::{Kind, Lab, Net, make_file};
use support::{How, compile, has, here};

fn example(name: &str, compiler: &str) -> std::path::PathBuf {
    let how = How {
        compiler,
        standard: "c99",
        ..How::default()
    };
    let source = here().join(format!("examples/{name}.c"));
    compile(&source, &format!("{name}-{compiler}"), how)
}

#[test]
fn echo_across_two_systems_and_within_one() {
    let Some(lab) = Lab::with("echo in C", Kind::File, &["alpha", "beta"], Net::None) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    let compilers: Vec<&str> = ["gcc", "clang"].into_iter().filter(|c| has(c)).collect();
    let input = make_file(&lab.folder().join("hosts/alpha/input"), 7, 3_000_001);
    let here_too = make_file(&lab.folder().join("hosts/beta/input"), 7, 3_000_001);
    for compiler in compilers {
        let mut server = beta
            .cmd(example("echo_server", compiler))
            .args(["0", "2"])
            .spawn();
        let address = server.wait_out("its address", |out| {
            let line = out
                .lines()
                .find_map(|line| line.strip_prefix("listening on "))?;
            Some(line.to_owned())
        });
        assert!(address.starts_with("lab/beta:"), "{address}");
        let client = example("echo_client", compiler);
        let ran = alpha.cmd(&client).arg(&address).stdin_file(&input).ok();
        assert!(
            ran.out == std::fs::read(&input).unwrap(),
            "{compiler}: not what was sent"
        );
        let ran = beta.cmd(&client).arg(&address).stdin_file(&here_too).ok();
        assert!(
            ran.out == std::fs::read(&input).unwrap(),
            "{compiler}: not what was sent"
        );
        let server = server.ok();
        assert!(server.text().contains("connection from alpha:"), "{server}");
        assert!(server.text().contains("connection from beta:"), "{server}");
        // Nobody is there any more: the error names whom, and what to do.
        let ran = alpha.cmd(&client).arg(&address).stdin_file(&input).run();
        assert_eq!(ran.code(), 1, "{ran}");
        let expected = "none of its engines is alive; start one there";
        assert!(ran.err.contains(expected), "{ran}");
    }
    lab.prove();
}
