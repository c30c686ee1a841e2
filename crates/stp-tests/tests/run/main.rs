//! Real, unmodified programs on two systems that share nothing but a volume, under `stp run`.
//!
//! - Each story is told once and run on TCP first (`plain`), which shows that the story is right, then on the volume
//!   (`stp`). It checks bytes and results, never only an exit code.
//! - Programs keep everything in their hosts' folders, on ports of the test's own, and end with the test.

mod databases;
mod files;
mod logins;
mod names;
mod orders;
mod promises;
mod runtimes;
mod streams;
mod web;
mod within;

use std::path::Path;

use stp_tests::Host;

/// Runs a story over both transports: `stories! { story_name, ... }`.
macro_rules! stories {
    ($($story:ident),* $(,)?) => {
        $(mod $story {
            #[test]
            fn plain() {
                super::$story(stp_tests::Transport::Plain);
            }

            #[test]
            fn stp() {
                super::$story(stp_tests::Transport::Stp);
            }
        })*
    };
}
pub(crate) use stories;

/// The number at the start of a text.
fn number<T: std::str::FromStr>(text: &str) -> T {
    let word = text.split_whitespace().next().unwrap_or_default();
    let Ok(number) = word.parse() else {
        panic!("not a number: {text:?}")
    };
    number
}

/// Gives a host a user of its own with the password `over storage`, by `passwd` and `shadow` files that only this host sees.
fn add_user(host: &Host, name: &str, number: u32, home: &Path) {
    let script = r#"
        set -e
        mkdir etc
        for file in passwd shadow; do cp -p /etc/$file etc/$file; done
        echo "$1:x:$2:$2::$3:/bin/bash" >> etc/passwd
        hash=$(python3 -W ignore -c 'import crypt; print(crypt.crypt("over storage", crypt.METHOD_SHA256))')
        echo "$1:$hash:19000:0:99999:7:::" >> etc/shadow
        for file in passwd shadow; do mount --bind etc/$file /etc/$file; done
    "#;
    let sh = host.cmd("sh").args(["-c", script, "sh", name]);
    sh.arg(number.to_string()).arg(home).ok();
}
