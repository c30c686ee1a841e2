//! Whole systems that share nothing but a volume: real programs, real engines, every byte checked.
//!
//! - One test binary, so that tests that wait run beside each other.
//! - Each story is told once, as a function of the volume's kind, and run on a file and on loop devices.

mod files;
mod gifts;
mod golden;
mod input;
mod life;
mod lun;
mod services;
mod streams;

use stp_tests::{Host, Lab, Proc, Ran};

/// Runs a story on a regular file and on loop devices: `stories! { story_name, ... }`.
macro_rules! stories {
    ($($story:ident),* $(,)?) => {
        $(mod $story {
            #[test]
            fn file() {
                super::$story(stp_tests::Kind::File);
            }

            #[test]
            fn loop_device() {
                super::$story(stp_tests::Kind::Loop);
            }
        })*
    };
}
pub(crate) use stories;

/// Starts `stp-load serve` and waits until it listens.
fn serve(host: &Host, args: &str) -> Proc {
    let mut server = host.load(&format!("serve {args}")).spawn();
    server.wait_out("a listening line", |out| {
        out.contains("listening").then_some(())
    });
    server
}

/// How many of a load generator's streams were whole.
fn whole(text: &str) -> usize {
    text.lines().filter(|line| line.ends_with(" whole")).count()
}

/// The number after `name=` in the first line that begins with `head`.
fn number(text: &str, head: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(head))?;
    let field = line
        .split_whitespace()
        .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))?;
    field.parse().ok()
}

/// The stream of this line ended as by a crash: neither whole nor a clean end.
fn was_reset(text: &str, head: &str) -> bool {
    text.lines()
        .any(|line| line.starts_with(head) && line.contains("kind=ConnectionReset"))
}

/// The end of every story: no packet flowed, and every record of the volume is sound.
fn end(lab: &Lab) {
    lab.prove();
    let [alpha] = lab.hosts();
    alpha.stp(["check"]).arg(lab.volume().path(0)).ok();
}

/// A command failed as commands fail: exit code 1 and one line that holds `words`, and says after the last colon or
/// semicolon what to do.
fn failed_well(ran: &Ran, words: &[&str]) {
    assert_eq!(ran.code(), 1, "{ran}");
    assert_eq!(
        ran.err.trim_end().lines().count(),
        1,
        "more or less than one line: {ran}"
    );
    let line = ran.err.to_lowercase();
    for word in words {
        assert!(line.contains(&word.to_lowercase()), "no {word:?} in: {ran}");
    }
    let remedy = line
        .trim_end()
        .rsplit([';', ':'])
        .next()
        .unwrap_or_default();
    assert!(
        remedy.split_whitespace().count() >= 3,
        "no remedy in: {ran}"
    );
}
