//! Interruptions: what has arrived is not sent again, and only if it is right.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::time::Duration;

use stp_cli::files::client::Options;

use crate::support::*;

/// What a cut may cost: what the socket holds and the block being written.
const IN_FLIGHT: u64 = 1 << 20;

fn random(state: &mut u64, below: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % below
}

#[test]
fn a_cut_anywhere_is_continued_by_itself_both_ways() {
    const SIZE: u64 = 24 << 20;
    let seed = u64::from(std::process::id()) | 1;
    println!("seed {seed}");
    let mut state = seed;
    for _ in 0..4 {
        let two = Two::new();
        fs::create_dir(two.local("src")).unwrap();
        fs::write(two.local("src/big"), noise(SIZE as usize, seed)).unwrap();
        for i in 0..50 {
            fs::write(two.local(&format!("src/{i}")), noise(5000, i)).unwrap();
        }
        let line = line(&two.served());
        let options = Options { retries: 3, ..TREE };
        let cuts: Vec<i64> = (0..6)
            .map(|_| 200 + random(&mut state, 8 << 20) as i64)
            .collect();
        *line.cuts.lock().unwrap() = cuts.clone();
        let there = cp(&line, options, &[&two.local("src"), &"beta:dst"]).unwrap();
        assert_same(&two.local("src"), &two.served().join("dst"));
        let slack = (there.connections - 1) * IN_FLIGHT + 250_000;
        println!(
            "cuts {cuts:?}: {there:?}, sent again {}",
            there.moved - SIZE - 250_000
        );
        assert!(
            there.connections > 1 && there.moved <= SIZE + 250_000 + slack,
            "{there:?}"
        );

        *line.cuts.lock().unwrap() = cuts.clone();
        let back = cp(&line, options, &[&"beta:dst", &two.local("back")]).unwrap();
        assert_same(&two.local("src"), &two.local("back"));
        println!(
            "cuts {cuts:?}: {back:?}, sent again {}",
            back.moved as i64 - SIZE as i64 - 250_000
        );
        assert!(
            back.connections > 1 && back.moved <= SIZE + 250_000 + slack,
            "{back:?}"
        );
    }
}

#[test]
fn a_transfer_given_up_is_continued_by_the_next_command() {
    const SIZE: u64 = 16 << 20;
    let two = Two::new();
    fs::write(two.local("f"), noise(SIZE as usize, 9)).unwrap();
    let line = line(&two.served());
    line.cuts.lock().unwrap().push(9 << 20);
    let error = cp(&line, PLAIN, &[&two.local("f"), &"beta:f"])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("connection lost") && error.contains("run the same command again"),
        "{error}"
    );
    assert!(!two.served().join("f").exists());
    let rest = cp(&line, PLAIN, &[&two.local("f"), &"beta:f"]).unwrap();
    assert!(rest.moved < SIZE - (7 << 20), "{rest:?}");
    assert_eq!(names(&two.served()), ["f"]);
    same_contents(&two.local("f"), &two.served().join("f"));

    line.cuts.lock().unwrap().push(9 << 20);
    cp(&line, PLAIN, &[&"beta:f", &two.local("g")]).unwrap_err();
    assert!(!two.local("g").exists() && two.local(".g.stp-partial").exists());
    let rest = cp(&line, PLAIN, &[&"beta:f", &two.local("g")]).unwrap();
    assert!(rest.moved < SIZE - (7 << 20), "{rest:?}");
    assert_eq!(names(two.local("g").parent().unwrap()), ["f", "g"]);
    same_contents(&two.local("f"), &two.local("g"));
}

#[test]
fn a_damaged_or_foreign_partial_file_is_not_continued() {
    const SIZE: usize = 8 << 20;
    let two = Two::new();
    fs::write(two.local("f"), noise(SIZE, 10)).unwrap();
    let line = line(&two.served());
    let partial = two.served().join(".f.stp-partial");
    let interrupt = || {
        line.cuts.lock().unwrap().push(5 << 20);
        cp(&line, PLAIN, &[&two.local("f"), &"beta:f"]).unwrap_err();
        while fs::metadata(&partial).unwrap().len() < 1 << 20 {
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    interrupt();
    let mut file = File::options().write(true).open(&partial).unwrap();
    file.seek(SeekFrom::Start(100_000)).unwrap();
    file.write_all(b"damage").unwrap();
    drop(file);
    assert_eq!(
        cp(&line, PLAIN, &[&two.local("f"), &"beta:f"])
            .unwrap()
            .moved,
        SIZE as u64
    );
    same_contents(&two.local("f"), &two.served().join("f"));
    fs::remove_file(two.served().join("f")).unwrap();
    interrupt();
    fs::write(two.local("f"), noise(SIZE, 11)).unwrap();
    assert_eq!(
        cp(&line, PLAIN, &[&two.local("f"), &"beta:f"])
            .unwrap()
            .moved,
        SIZE as u64
    );
    same_contents(&two.local("f"), &two.served().join("f"));
    assert_eq!(names(&two.served()), ["f"]);
}
