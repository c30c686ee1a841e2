//! The man pages: every call and constant of the header is in one, nothing else is, and groff has nothing to say.

mod support;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use support::{has, here, prefix};

fn pages() -> Vec<(PathBuf, String)> {
    let folder = std::fs::read_dir(here().join("man")).unwrap();
    let mut pages: Vec<_> = folder
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read_to_string(path).unwrap()))
        .collect();
    pages.sort();
    pages
}

/// Words that look like ours: `STPsend`, `STP_OPT_RING`, `AF_STP`.
fn words(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| {
            let ours = word.starts_with("STP") && word.len() > 3;
            ours || ["AF_STP", "PF_STP", "SOL_STP"].contains(word)
        })
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_pages_and_the_header_name_the_same_calls_and_constants() {
    let header = std::fs::read_to_string(here().join("include/stp.h")).unwrap();
    let mut in_header = words(&header);
    in_header.remove("STP_H");
    let in_pages: BTreeSet<String> = pages().iter().flat_map(|(_, text)| words(text)).collect();
    // Variables of the environment are the pages' own, and the header mentions one.
    let environment: BTreeSet<String> = ["STP_VOLUME", "STP_SYSTEM", "STP_RUN_DIR"]
        .map(str::to_owned)
        .into();
    let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| -> Vec<String> {
        a.difference(b)
            .filter(|word| !environment.contains(*word))
            .cloned()
            .collect()
    };
    assert_eq!(
        only(&in_header, &in_pages),
        Vec::<String>::new(),
        "in stp.h, in no page"
    );
    assert_eq!(
        only(&in_pages, &in_header),
        Vec::<String>::new(),
        "in a page, not in stp.h"
    );
}

#[test]
fn every_call_has_a_page_of_its_name_once_installed() {
    let map = std::fs::read_to_string(here().join("stp.map")).unwrap();
    // What stp/translate.h calls is behind its macros, and no program's to call.
    let mut calls = xtask::install::exports(&map);
    calls.retain(|name| !name.starts_with("stp_translate_"));
    for name in calls {
        let page = prefix().join(format!("share/man/man3/{name}.3"));
        let text = std::fs::read_to_string(&page).unwrap_or_else(|e| panic!("{name}: {e}"));
        if let Some(other) = text.strip_prefix(".so man3/") {
            let whole = prefix().join("share/man/man3").join(other.trim());
            assert!(words(&std::fs::read_to_string(whole).unwrap()).contains(name));
        } else {
            assert!(text.contains(".SH NAME"), "{name}");
        }
    }
    assert!(prefix().join("share/man/man7/stp.7").exists());
}

#[test]
fn the_pages_are_in_form() {
    for (path, text) in pages() {
        let sections: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix(".SH "))
            .collect();
        for needed in ["NAME", "SYNOPSIS", "DESCRIPTION", "SEE ALSO"] {
            assert!(
                sections.contains(&needed),
                "{}: no {needed}",
                path.display()
            );
        }
        if !has("groff") {
            stp_tests::skip_part("man pages read by groff", "not installed");
            return;
        }
        let said = Command::new("groff")
            .args(["-man", "-ww", "-z", "-Tutf8"])
            .arg(&path)
            .output()
            .unwrap();
        let complaints = support::text(&said.stderr);
        assert!(
            said.status.success() && complaints.is_empty(),
            "{complaints}"
        );
    }
}

#[test]
fn the_table_of_options_is_the_codes() {
    use stp_posix::calls::{Kind, SOCKET_OPTIONS};
    let page = std::fs::read_to_string(here().join("../../docs/C.md")).unwrap();
    let (_, rest) = page
        .split_once(&format!(
            "<!-- table: {} -->",
            "socket options of the C library"
        ))
        .unwrap();
    let (table, _) = rest.split_once("<!-- end -->").unwrap();
    let rows: Vec<&str> = table.trim().lines().skip(2).collect();
    let expected: Vec<String> = SOCKET_OPTIONS
        .iter()
        .map(|(name, _, kind)| {
            let kind = match kind {
                Kind::Same => "same",
                Kind::Differs => "differs",
                Kind::Told => "told",
            };
            format!("| `{name}` | {kind} |")
        })
        .collect();
    assert_eq!(rows, expected);
    let man = std::fs::read_to_string(here().join("man/STPgetsockopt.3")).unwrap();
    for (name, ..) in SOCKET_OPTIONS {
        assert!(man.contains(name), "{name} is not in STPgetsockopt(3)");
    }
}
