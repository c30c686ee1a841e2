//! `docs/SUITES.md`: counts and differing cases written by the chore, reasons by hand.
//!
//! - The block between the two marks is written; the last column of its second table is kept from what was there.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use super::Tally;
use crate::repo::{self, Error};

const BEGIN: &str = "<!-- suites: begin (cargo xtask suites; the last column is kept by hand) -->";
const END: &str = "<!-- suites: end -->";

/// What stands where nobody has given a reason yet.
const NO_REASON: &str = "?";

fn place() -> PathBuf {
    repo::root().join("docs/SUITES.md")
}

/// Compares what came out with the reasons that are known, writes the page if asked to, and says whether every difference
/// has its reason.
pub(super) fn settle(tallies: &[Tally], write: bool) -> Result<bool, Error> {
    let page = std::fs::read_to_string(place())?;
    let known = reasons(&page);
    let mut unexplained = 0;
    for tally in tallies {
        println!(
            "{}: {} cases, {} pass on TCP, {} under stp run, {} skipped on both, {} fail on TCP, {} differ",
            tally.title,
            tally.cases,
            tally.tcp,
            tally.stp,
            tally.skipped,
            tally.fail_on_tcp,
            tally.differences.len()
        );
        for difference in &tally.differences {
            let reason = known
                .get(&difference.case)
                .map_or(NO_REASON, String::as_str);
            unexplained += usize::from(reason == NO_REASON);
            println!("  {}: {} ({reason})", difference.case, difference.words);
        }
    }
    if write {
        std::fs::write(place(), rewrite(&page, tallies)?)?;
    }
    if unexplained > 0 {
        println!("{unexplained} without a reason in docs/SUITES.md");
    }
    Ok(unexplained == 0 && tallies.iter().all(|tally| tally.tcp > 0))
}

/// The suite that a title names, without its version.
fn suite(title: &str) -> &str {
    title.split(' ').next().unwrap_or_default()
}

/// The rows of a table's lines, as cells.
fn rows(block: &str) -> impl Iterator<Item = Vec<&str>> {
    block
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |"))
        .map(|line| line.split(" | ").collect())
}

/// The reasons on a page, by case.
fn reasons(page: &str) -> BTreeMap<String, String> {
    let block = page
        .split(BEGIN)
        .nth(1)
        .and_then(|rest| rest.split(END).next());
    rows(block.unwrap_or_default())
        .filter(|cells| cells.len() == 6)
        .map(|cells| (cells[1].trim_matches('`').to_owned(), cells[5].to_owned()))
        .collect()
}

/// The page with its block as the tallies say; what they do not speak of stays.
fn rewrite(page: &str, tallies: &[Tally]) -> Result<String, Error> {
    let wrong = || format!("docs/SUITES.md has no block from {BEGIN} to {END}");
    let (head, rest) = page.split_once(BEGIN).ok_or_else(wrong)?;
    let (block, tail) = rest.split_once(END).ok_or_else(wrong)?;
    let known = reasons(page);
    let speaks_of = |name: &str| {
        tallies
            .iter()
            .any(|tally| suite(&tally.title) == suite(name))
    };
    let mut counts = Vec::new();
    let mut cases = Vec::new();
    for cells in rows(block) {
        let line = format!("| {} |", cells.join(" | "));
        if cells[0] == "suite" || cells[0].starts_with("---") || speaks_of(cells[0]) {
            continue;
        }
        match cells.len() {
            7 => counts.push(line),
            6 => cases.push(line),
            _ => {}
        }
    }
    for tally in tallies {
        counts.push(format!(
            "| {} | {} | {} | {} | {} | {} | {} |",
            tally.title,
            tally.cases,
            tally.tcp,
            tally.stp,
            tally.skipped,
            tally.fail_on_tcp,
            tally.differences.len()
        ));
        for difference in &tally.differences {
            let reason = known
                .get(&difference.case)
                .map_or(NO_REASON, String::as_str);
            let words = difference.words.replace('|', "/");
            cases.push(format!(
                "| {} | `{}` | {}/{} | {}/{} | {} | {reason} |",
                suite(&tally.title),
                difference.case,
                difference.tcp.0,
                difference.tcp.1,
                difference.stp.0,
                difference.stp.1,
                words.trim()
            ));
        }
    }
    counts.sort();
    cases.sort();
    let mut text = format!("{head}{BEGIN}\n");
    text += "| suite | cases | pass on TCP | pass under `stp run` | skip themselves on both | fail on TCP | differ |\n";
    text += "|---|---|---|---|---|---|---|\n";
    for line in counts {
        writeln!(text, "{line}")?;
    }
    text +=
        "\n| suite | case | TCP | `stp run` | what it says | reason |\n|---|---|---|---|---|---|\n";
    for line in cases {
        writeln!(text, "{line}")?;
    }
    Ok(text + END + tail)
}

#[cfg(test)]
mod tests {
    use super::super::Difference;
    use super::*;

    fn tally(case: &str) -> Tally {
        Tally {
            title: "CPython 3".into(),
            cases: 10,
            tcp: 8,
            stp: 7,
            skipped: 1,
            fail_on_tcp: 1,
            differences: vec![Difference {
                case: case.into(),
                tcp: (5, 5),
                stp: (0, 5),
                words: "a | b".into(),
            }],
        }
    }

    #[test]
    fn reasons_and_other_suites_are_kept() {
        let page = format!("head\n{BEGIN}\n{END}\ntail\n");
        let first = rewrite(&page, &[tally("x.y")]).unwrap();
        assert_eq!(reasons(&first)["x.y"], NO_REASON);
        let explained = first.replace("a / b | ? |", "a / b | because of that |");
        let other = Tally {
            title: "libuv 1".into(),
            ..tally("z")
        };
        let second = rewrite(&explained, &[other]).unwrap();
        assert_eq!(reasons(&second)["x.y"], "because of that");
        let third = rewrite(&second, &[tally("x.y")]).unwrap();
        assert_eq!(reasons(&third)["x.y"], "because of that");
        assert_eq!(reasons(&third)["z"], NO_REASON);
        assert!(third.starts_with("head\n") && third.ends_with("\ntail\n"));
        // What passes now has no row any more.
        let mut clean = tally("x.y");
        clean.differences.clear();
        assert!(!reasons(&rewrite(&third, &[clean]).unwrap()).contains_key("x.y"));
    }
}
