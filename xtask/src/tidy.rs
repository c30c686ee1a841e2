//! `cargo xtask tidy`: the house rules that a machine can keep, each a function that returns its findings.
//!
//! - A finding names the file, the line where there is one, and the remedy.
//! - Rules look at what git would commit, so that a build folder is never read.
//! - `tests/tidy.rs` runs the rules on this checkout and shows each of them a breach that it must find.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::repo::{self, Error};

/// Which crate may use which: arrows point down only. A crate that is not listed is a finding.
const FLOORS: &[(&str, &[&str])] = &[
    ("stp-format", &[]),
    ("stp-core", &["stp-format"]),
    ("stp-medium", &["stp-format"]),
    ("stp-host", &["stp-format", "stp-core", "stp-medium"]),
    (
        "stp-sim",
        &["stp-format", "stp-core", "stp-medium", "stp-host"],
    ),
    ("stp", &["stp-format", "stp-core", "stp-medium", "stp-host"]),
    (
        "stp-posix",
        &["stp-format", "stp-core", "stp-medium", "stp-host", "stp"],
    ),
    (
        "stp-cli",
        &["stp-format", "stp-core", "stp-medium", "stp-host", "stp"],
    ),
    ("stp-capi", &["stp-posix", "stp", "stp-host", "stp-format"]),
    (
        "stp-preload",
        &["stp-posix", "stp", "stp-host", "stp-format"],
    ),
    (
        "stp-fuzz",
        &[
            "stp-format",
            "stp-core",
            "stp-medium",
            "stp-host",
            "stp",
            "stp-cli",
        ],
    ),
    (
        "stp-tests",
        &["stp-format", "stp-core", "stp-medium", "stp-host", "stp"],
    ),
    ("xtask", &["stp-format"]),
];

/// Crates that know neither clock, nor thread, nor file, nor `unsafe`.
const PURE: &[&str] = &["crates/stp-format", "crates/stp-core"];

/// Files, or folders ending in `/`, that may hold `unsafe`.
const UNSAFE_ADDRESSES: &[&str] = &[
    "crates/stp-capi/src/",
    "crates/stp-cli/src/sys.rs",
    "crates/stp-host/src/run/fd.rs",
    "crates/stp-host/src/run/namespace.rs",
    "crates/stp-host/src/run/sys.rs",
    "crates/stp-host/src/engine/board.rs",
    "crates/stp-host/src/engine/clock.rs",
    "crates/stp-host/src/forks.rs",
    "crates/stp-medium/src/mapped.rs",
    "crates/stp-medium/src/slab.rs",
    "crates/stp-medium/src/sys.rs",
    "crates/stp-medium/src/uring.rs",
    "crates/stp-posix/src/",
    "crates/stp-preload/src/",
    "crates/stp-tests/src/spawn.rs",
];

/// Lines a file may have before its first line must say why it is long.
const LINES_MAX: usize = 800;

/// Licences that a dependency may offer (one of an `OR` is enough).
const LICENCES: &[&str] = &[
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates that may be there in two versions because dependencies disagree; keep it short.
const DUPLICATES: &[&str] = &[
    // Derive macros of zerocopy and serde, at build time only.
    "syn",
    // Of the models' explorer (stateright), in tests only.
    "getrandom",
    "hashbrown",
    "rand",
    "rand_core",
];

/// Files that must be there, and a word that each must hold.
const REQUIRED: &[(&str, &str)] = &[
    ("LICENSE-MIT", "Permission is hereby granted"),
    ("LICENSE-APACHE", "Version 2.0, January 2004"),
    ("CHANGELOG.md", "Unreleased"),
    ("README.md", "cargo xtask test"),
    ("deny.toml", "[licenses]"),
    (".ci/run", "cargo"),
    ("docs/TESTING.md", "cargo xtask test"),
    ("docs/OPERATIONS.md", "stp engine"),
];

/// Words that say a thing is unfinished. Spelled in halves so that this file does not hold them.
fn unfinished() -> [String; 6] {
    [
        "FIX|ME",
        "XX|X",
        "TO|DO",
        "to|do!(",
        "unimpl|emented!(",
        "db|g!(",
    ]
    .map(|word| word.replace('|', ""))
}

/// Words that belong to one machine or to another vocabulary, with what to write instead.
fn foreign() -> Vec<(String, &'static str)> {
    [
        (
            "/wo|rk/",
            "a path of one machine: name the place relative to the checkout or a temporary folder",
        ),
        (
            "/ro|ot/",
            "a path of one machine: name the place relative to the checkout or a temporary folder",
        ),
        (
            "/tmp/w|t/",
            "a path of one machine: name the place relative to the checkout or a temporary folder",
        ),
        (
            "/tmp/targe|t-",
            "a path of one machine: name the place relative to the checkout or a temporary folder",
        ),
        (
            "index.crates|.io",
            "the host of a registry: tools know it themselves",
        ),
        (
            "static.crates|.io",
            "the host of a registry: tools know it themselves",
        ),
        (
            "deb.deb|ian.org",
            "the host of a registry: take it from the machine's own configuration",
        ),
        (
            "pypi|.org",
            "the host of a registry: tools know it themselves",
        ),
        (
            "proxy.golang|.org",
            "the host of a registry: tools know it themselves",
        ),
    ]
    .into_iter()
    .map(|(word, remedy)| (word.replace('|', ""), remedy))
    .collect()
}

/// Runs every rule on this checkout and prints the findings.
///
/// # Errors
/// When the checkout or cargo's metadata cannot be read.
pub fn run(_args: &[String]) -> Result<bool, Error> {
    let findings = check(&repo::root(), Some(&repo::metadata()?))?;
    for finding in &findings {
        println!("tidy: {finding}");
    }
    println!("tidy: {} findings", findings.len());
    Ok(findings.is_empty())
}

/// The findings of all rules in the checkout at `root`.
///
/// # Errors
/// When a file cannot be read.
pub fn check(root: &Path, metadata: Option<&Value>) -> Result<Vec<String>, Error> {
    let files = repo::files(root)?;
    let mut texts = BTreeMap::new();
    for path in files {
        // Binary files (golden bytes) are nobody's prose.
        if path.file_name().is_some_and(|name| name != "Cargo.lock")
            && let Ok(text) = std::fs::read_to_string(root.join(&path))
        {
            texts.insert(path, text);
        }
    }
    let mut findings = Vec::new();
    if let Some(metadata) = metadata {
        findings.extend(floors(metadata));
        findings.extend(dependencies(metadata));
    }
    findings.extend(required(&texts));
    findings.extend(pure(&texts));
    findings.extend(tables(&texts));
    for (path, text) in &texts {
        if path.extension().is_some_and(|extension| extension == "rs") {
            findings.extend(unsafe_addresses(path, text));
            findings.extend(length(path, text));
            findings.extend(opening(path, text));
        }
        findings.extend(words(path, text));
    }
    Ok(findings)
}

/// Arrows between our crates, from cargo's own metadata.
#[must_use]
pub fn floors(metadata: &Value) -> Vec<String> {
    let mut findings = Vec::new();
    let members = members(metadata);
    for package in packages(metadata).filter(|package| members.contains(id(package))) {
        let name = name(package);
        let Some((_, allowed)) = FLOORS.iter().find(|(floor, _)| *floor == name) else {
            findings.push(format!(
                "crate {name} stands on no floor: add it to FLOORS in xtask/src/tidy.rs"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let target = dependency["name"].as_str().unwrap_or_default();
            let ours = FLOORS.iter().any(|(floor, _)| *floor == target);
            // A test may look at any floor; only what is built into the crate is an arrow.
            if ours && dependency["kind"] != "dev" && !allowed.contains(&target) {
                findings.push(format!("crate {name} uses {target}: no arrow points that way (FLOORS in xtask/src/tidy.rs)"));
            }
        }
        if package["publish"].is_null() {
            findings.push(format!(
                "crate {name} can be published: say `publish.workspace = true`"
            ));
        }
    }
    findings
}

/// Licences and duplicates of what is built for this platform; `deny.toml` says the same to cargo-deny.
#[must_use]
pub fn dependencies(metadata: &Value) -> Vec<String> {
    let mut findings = Vec::new();
    let nodes = metadata["resolve"]["nodes"]
        .as_array()
        .into_iter()
        .flatten();
    let used: BTreeSet<&str> = nodes.filter_map(|node| node["id"].as_str()).collect();
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages(metadata).filter(|package| used.contains(id(package))) {
        let name = name(package);
        versions
            .entry(name)
            .or_default()
            .insert(package["version"].as_str().unwrap_or_default());
        let licence = package["license"].as_str().unwrap_or_default();
        if !licence_is_allowed(licence) {
            findings.push(format!("dependency {name}: licence {licence:?} is not in LICENCES (xtask/src/tidy.rs, deny.toml)"));
        }
        if let Some(source) = package["source"].as_str()
            && !source.starts_with("registry+")
        {
            findings.push(format!(
                "dependency {name} comes from {source}: take a released version"
            ));
        }
    }
    for (name, versions) in versions {
        if versions.len() > 1 && !DUPLICATES.contains(&name) {
            let list = versions.into_iter().collect::<Vec<_>>().join(", ");
            findings.push(format!("dependency {name} is there {list}: unite them, or add it to DUPLICATES with the reason"));
        }
    }
    findings
}

/// `A OR B`, `A AND B`, `A/B`, with brackets: enough of SPDX for what crates write.
fn licence_is_allowed(expression: &str) -> bool {
    let flat = expression.replace(['(', ')'], "").replace('/', " OR ");
    // `AND` binds tighter, but a bracketed `(A OR B) AND C` must hold C too: both readings must be satisfied.
    let any_of_all = flat.split(" OR ").any(|part| {
        part.split(" AND ")
            .all(|name| LICENCES.contains(&name.trim()))
    });
    let all_of_any = flat.split(" AND ").all(|part| {
        part.split(" OR ")
            .any(|name| LICENCES.contains(&name.trim()))
    });
    any_of_all && all_of_any
}

fn required(texts: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let mut findings = Vec::new();
    for (name, word) in REQUIRED {
        match texts.get(Path::new(name)) {
            None => findings.push(format!("{name} is missing")),
            Some(text) if !text.contains(word) => {
                findings.push(format!("{name} does not hold {word:?}"))
            }
            Some(_) => {}
        }
    }
    findings
}

/// The format and the core stay free of the world.
fn pure(texts: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let mut findings = Vec::new();
    for folder in PURE {
        let top = Path::new(folder).join("src/lib.rs");
        let Some(lib) = texts.get(&top) else { continue };
        let attribute = |word: &str| {
            lib.lines()
                .any(|line| line.trim_start().starts_with("#!") && line.contains(word))
        };
        for word in ["no_std", "forbid(unsafe_code)"] {
            if !attribute(word) {
                findings.push(format!("{}: the crate must say #![{word}]", top.display()));
            }
        }
        for (path, text) in texts
            .iter()
            .filter(|(path, _)| path.starts_with(Path::new(folder).join("src")))
        {
            let mut in_tests = false;
            for (number, line) in text.lines().enumerate() {
                in_tests |= line.contains("#[cfg(test)]");
                let code = line.split("//").next().unwrap_or_default();
                if in_tests || code.trim().is_empty() {
                    continue;
                }
                for word in [
                    "std::",
                    "extern crate std",
                    "Instant::",
                    "SystemTime",
                    "thread::",
                ] {
                    let found = code.match_indices(word).any(|(at, _)| {
                        !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
                    });
                    if found {
                        findings.push(format!(
                            "{}:{}: `{word}` in a pure crate: time and I/O are arguments",
                            path.display(),
                            number + 1
                        ));
                    }
                }
            }
        }
    }
    findings
}

/// `unsafe` lives at known addresses, and every block says why it is sound.
fn unsafe_addresses(path: &Path, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let shown = path.display().to_string();
    let allowed = UNSAFE_ADDRESSES
        .iter()
        .any(|address| shown == *address || (address.ends_with('/') && shown.starts_with(address)));
    let lines: Vec<&str> = text.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        let code = without_strings(line.split("//").next().unwrap_or_default());
        let is_unsafe = [
            "unsafe {",
            "unsafe fn",
            "unsafe impl",
            "unsafe extern",
            "unsafe(",
            "unsafe trait",
        ]
        .iter()
        .flat_map(|word| code.match_indices(word))
        .any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'));
        if !is_unsafe {
            continue;
        }
        if !allowed {
            findings.push(format!("{shown}:{}: `unsafe` outside its addresses (UNSAFE_ADDRESSES in xtask/src/tidy.rs)", number + 1));
        }
        let explained = code.contains("unsafe fn")
            || code.contains("unsafe extern")
            || code.contains("unsafe trait")
            || lines[number.saturating_sub(12)..=number]
                .iter()
                .any(|line| line.contains("SAFETY:"));
        if !explained {
            findings.push(format!(
                "{shown}:{}: `unsafe` without a SAFETY comment above it",
                number + 1
            ));
        }
    }
    findings
}

/// The line with the insides of its string literals blanked.
fn without_strings(line: &str) -> String {
    line.split('"')
        .enumerate()
        .filter(|(index, _)| index % 2 == 0)
        .map(|(_, part)| part)
        .collect::<Vec<_>>()
        .join("\"\"")
}

fn length(path: &Path, text: &str) -> Option<String> {
    let count = text.lines().count();
    let explained = text
        .lines()
        .next()
        .is_some_and(|line| line.contains("long because"));
    (count > LINES_MAX && !explained).then(|| {
        format!(
            "{}: {count} lines: split it, or let its first line say \"long because ...\"",
            path.display()
        )
    })
}

/// A file opens with its noun.
fn opening(path: &Path, text: &str) -> Option<String> {
    let first = text
        .lines()
        .find(|line| !line.is_empty() && !line.starts_with("#!"))
        .unwrap_or_default();
    let example = path.components().any(|part| part.as_os_str() == "fixtures");
    (!first.starts_with("//!") && !example).then(|| {
        format!(
            "{}: opens without `//!`: say what it is and what always holds",
            path.display()
        )
    })
}

fn words(path: &Path, text: &str) -> Vec<String> {
    let mut findings = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for word in unfinished() {
            let whole = line.match_indices(&word).any(|(at, _)| {
                let before = line[..at]
                    .chars()
                    .next_back()
                    .is_some_and(char::is_alphanumeric);
                let after = line[at + word.len()..]
                    .chars()
                    .next()
                    .is_some_and(char::is_alphanumeric);
                (!after || word.ends_with('(')) && !before
            });
            if whole {
                findings.push(format!(
                    "{}:{}: `{word}`: finish it or open an issue",
                    path.display(),
                    number + 1
                ));
            }
        }
        let lower = line.to_lowercase();
        for (word, remedy) in foreign() {
            // A path stands at the beginning of its word: `/proc/1/ro|ot/` is none of these.
            let found = lower.match_indices(&word).any(|(at, _)| {
                let before = lower[..at].chars().next_back();
                !word.starts_with('/')
                    || before.is_none_or(|c| c.is_whitespace() || "\"'`(<=:".contains(c))
            });
            if found {
                findings.push(format!(
                    "{}:{}: `{word}`: {remedy}",
                    path.display(),
                    number + 1
                ));
            }
        }
    }
    findings
}

/// Tables in the documents between `<!-- table: NAME -->` and `<!-- end -->` are compared with the code by a test of
/// the crate that owns the layout; this rule keeps the markers in pairs and each named by such a test.
fn tables(texts: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let mut findings = Vec::new();
    for (path, text) in texts
        .iter()
        .filter(|(path, _)| path.starts_with("docs") && path.extension().is_some_and(|e| e == "md"))
    {
        let mut open: Option<String> = None;
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if let Some(name) = line
                .strip_prefix("<!-- table: ")
                .and_then(|rest| rest.strip_suffix(" -->"))
            {
                if open.is_some() {
                    findings.push(format!(
                        "{}:{}: a table begins inside another",
                        path.display(),
                        number + 1
                    ));
                }
                let claimed = texts.iter().any(|(source, text)| {
                    source.starts_with("crates")
                        && source.extension().is_some_and(|e| e == "rs")
                        && text.contains(&format!("\"{name}\""))
                });
                if !claimed {
                    findings.push(format!(
                        "{}:{}: no test in crates/ compares table {name:?} with the code",
                        path.display(),
                        number + 1
                    ));
                }
                open = Some(name.to_owned());
            } else if line == "<!-- end -->" && open.take().is_none() {
                findings.push(format!(
                    "{}:{}: a table ends that did not begin",
                    path.display(),
                    number + 1
                ));
            }
        }
        if let Some(name) = open {
            findings.push(format!("{}: table {name:?} does not end", path.display()));
        }
    }
    findings
}

fn members(metadata: &Value) -> BTreeSet<&str> {
    metadata["workspace_members"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}

fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata["packages"].as_array().into_iter().flatten()
}

fn id(package: &Value) -> &str {
    package["id"].as_str().unwrap_or_default()
}

fn name(package: &Value) -> &str {
    package["name"].as_str().unwrap_or_default()
}
