//! The house rules: this checkout keeps them, and each rule finds its breach.

use std::path::Path;

use xtask::tidy;

#[test]
fn this_checkout_is_tidy() {
    let findings = tidy::check(
        &xtask::repo::root(),
        Some(&xtask::repo::metadata().unwrap()),
    )
    .unwrap();
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

/// Findings in a folder that holds only `text` at `path`.
fn findings(path: &str, text: &str) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join(path);
    std::fs::create_dir_all(place.parent().unwrap()).unwrap();
    std::fs::write(place, text).unwrap();
    let all = tidy::check(folder.path(), None).unwrap();
    all.into_iter()
        .filter(|finding| finding.contains(path))
        .collect()
}

fn finds(path: &str, text: &str, word: &str) {
    let findings = findings(path, text);
    assert!(
        findings.iter().any(|finding| finding.contains(word)),
        "{path}: {word:?} not in {findings:?}"
    );
}

#[test]
fn a_clean_file_has_no_findings() {
    let text = "//! A noun.\n\nfn safe() {\n    let text = \"unsafe { }\";\n}\n";
    assert_eq!(
        findings("crates/stp/src/noun.rs", text),
        Vec::<String>::new()
    );
}

#[test]
fn unsafe_at_the_wrong_address_and_without_a_reason_is_found() {
    let text = "//! A noun.\nfn f() {\n    unsafe { g() }\n}\n";
    finds("crates/stp/src/noun.rs", text, "outside its addresses");
    finds("crates/stp/src/noun.rs", text, "without a SAFETY");
}

#[test]
fn impure_core_is_found() {
    finds(
        "crates/stp-core/src/lib.rs",
        "//! Core.\n#![no_std]\n",
        "forbid(unsafe_code)",
    );
    let text = "//! Core.\n#![no_std]\n#![forbid(unsafe_code)]\nuse std::time::Duration;\n";
    finds("crates/stp-core/src/lib.rs", text, "pure crate");
}

#[test]
fn unfinished_work_and_foreign_words_are_found() {
    finds(
        "src/a.rs",
        &format!("//! A.\n// FIX{}: later\n", "ME"),
        "finish it",
    );
    finds(
        "src/a.rs",
        &format!("//! A.\nfn f() {{ to{}!() }}\n", "do"),
        "finish it",
    );
    finds(
        "docs/a.md",
        &format!("see /wo{}/main\n", "rk"),
        "one machine",
    );
}

#[test]
fn long_files_and_files_without_an_opening_are_found() {
    finds(
        "src/a.rs",
        &format!("//! A.\n{}", "\n".repeat(801)),
        "lines",
    );
    finds("src/a.rs", "use x;\n", "opens without");
    let text = format!(
        "//! A: long because one table is one table.\n{}",
        "\n".repeat(801)
    );
    assert_eq!(findings("src/a.rs", &text), Vec::<String>::new());
}

#[test]
fn tables_without_a_test_are_found() {
    finds(
        "docs/FORMAT.md",
        "<!-- table: superblock -->\n| a |\n<!-- end -->\n",
        "no test",
    );
    finds("docs/FORMAT.md", "<!-- end -->\n", "did not begin");
}

#[test]
fn what_must_be_there_is_missed() {
    let folder = tempfile::tempdir().unwrap();
    let all = tidy::check(folder.path(), None).unwrap();
    assert!(
        all.iter()
            .any(|finding| finding == "LICENSE-MIT is missing"),
        "{all:?}"
    );
    assert!(Path::new(folder.path()).exists());
}

#[test]
fn an_arrow_upwards_is_found() {
    let metadata = serde_json::json!({
        "workspace_members": ["a"],
        "packages": [{ "id": "a", "name": "stp-core", "publish": [], "dependencies": [{ "name": "stp-host", "kind": null }] }],
    });
    assert!(
        tidy::floors(&metadata)
            .iter()
            .any(|finding| finding.contains("no arrow"))
    );
}
