//! The library as a user gets it: its symbols, its header in two languages and two compilers, its pkg-config file.

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use support::{How, compile, has, here, ok, prefix};

fn header() -> String {
    std::fs::read_to_string(here().join("include/stp.h")).unwrap()
}

/// The calls that `stp/translate.h` puts in place of others.
fn translated() -> BTreeSet<String> {
    let header = std::fs::read_to_string(here().join("include/stp/translate.h")).unwrap();
    let pragmas = header
        .lines()
        .filter_map(|line| line.strip_prefix("#pragma redefine_extname "));
    pragmas
        .filter_map(|names| names.split_once(' '))
        .map(|(_, name)| name.to_owned())
        .collect()
}

/// The calls that the header declares.
fn declared() -> BTreeSet<String> {
    let header = header();
    let words = header.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '(');
    words
        .filter_map(|word| word.split_once('('))
        .map(|(name, _)| name.to_owned())
        .filter(|name| {
            name.strip_prefix("STP")
                .is_some_and(|rest| rest.starts_with(char::is_lowercase))
        })
        .collect()
}

#[test]
fn the_header_the_map_and_the_library_name_the_same_calls() {
    let map = std::fs::read_to_string(here().join("stp.map")).unwrap();
    let mapped: BTreeSet<String> = xtask::install::exports(&map)
        .into_iter()
        .map(str::to_owned)
        .collect();
    let named: BTreeSet<String> = declared().union(&translated()).cloned().collect();
    assert_eq!(named, mapped, "the headers against stp.map");
    assert!(mapped.len() > 25, "{mapped:?}");
    let library = prefix().join("lib/libstp.so");
    let said = Command::new("nm")
        .args(["-D", "--defined-only"])
        .arg(&library)
        .output();
    let said = ok(&said.expect("nm"));
    let exported: BTreeSet<String> = said
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .filter(|name| *name != "STP_0.1")
        .map(|name| {
            let (name, version) = name.split_once("@@").unwrap_or((name, ""));
            assert_eq!(version, "STP_0.1", "{name} has no version");
            name.to_owned()
        })
        .collect();
    assert_eq!(exported, mapped, "libstp.so against stp.map");
    let said = Command::new("readelf").arg("-d").arg(&library).output();
    assert!(ok(&said.expect("readelf")).contains("soname: [libstp.so.0]"));
}

/// Every constant of the header, with its value as the compiler has it, is what the library means.
#[test]
fn the_headers_numbers_are_the_librarys() {
    use stp_posix::calls::{ADDRESS_BYTES, AF_STP, CODES, SOL_STP, number};
    let source = Path::new(env!("CARGO_TARGET_TMPDIR")).join("numbers.c");
    let header = header();
    let names: Vec<&str> = header
        .lines()
        .filter_map(|line| line.strip_prefix("#define "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "STP_H")
        .collect();
    let mut program = "#include <stdio.h>\n#include <stp.h>\nint main(void) {\n".to_owned();
    for name in &names {
        program += &format!("printf(\"{name} %ld\\n\", (long)({name}));\n");
    }
    program += "printf(\"size %ld\\n\", (long)sizeof(struct sockaddr_stp));\n";
    program += "printf(\"port %ld\\n\", (long)offsetof(struct sockaddr_stp, sstp_port));\n";
    program += "printf(\"group %ld\\n\", (long)offsetof(struct sockaddr_stp, sstp_group));\nreturn 0;\n}\n";
    std::fs::write(&source, program).unwrap();
    let program = compile(&source, "numbers", How::default());
    let said = ok(&Command::new(program).output().unwrap());
    let value = |name: &str| -> i64 {
        let found = said
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name} ")));
        found
            .unwrap_or_else(|| panic!("no {name}"))
            .parse()
            .unwrap()
    };
    assert_eq!(value("size"), ADDRESS_BYTES as i64);
    assert_eq!((value("port"), value("group")), (2, 68));
    for name in ["AF_STP", "PF_STP"] {
        assert_eq!(value(name), i64::from(AF_STP));
    }
    assert_eq!(value("SOL_STP"), i64::from(SOL_STP));
    let options = [
        ("STP_OPT_VOLUME", number::VOLUME),
        ("STP_OPT_SYSTEM", number::SYSTEM),
        ("STP_OPT_RUN_DIR", number::RUN_DIR),
        ("STP_OPT_GROUP", number::GROUP),
        ("STP_OPT_ENGINE", number::ENGINE),
        ("STP_OPT_POLL_US", number::POLL_US),
        ("STP_OPT_POLL_IOPS", number::POLL_IOPS),
        ("STP_OPT_WINDOW", number::WINDOW),
        ("STP_OPT_RING", number::RING),
        ("STP_OPT_DEAD_MS", number::DEAD_MS),
        ("STP_OPT_CONNECT_MS", number::CONNECT_MS),
        ("STP_OPT_TCP_END", number::TCP_END),
        ("STP_OPT_GIFT_FD", number::GIFT_FD),
    ];
    for (name, number) in options {
        assert_eq!(value(name), i64::from(number), "{name}");
    }
    let in_header = names
        .iter()
        .filter(|name| name.starts_with("STP_OPT_"))
        .count();
    assert_eq!(in_header, options.len());
    let errors: Vec<&&str> = names
        .iter()
        .filter(|name| name.starts_with("STP_E") && !name.starts_with("STP_ENGINE"))
        .collect();
    assert_eq!(errors.len() + 1, CODES.len());
    for (number, name) in errors.iter().enumerate() {
        assert_eq!(value(name), number as i64 + 1, "{name}");
    }
}

#[test]
fn constants_collide_with_nothing_that_linux_has() {
    let source = Path::new(env!("CARGO_TARGET_TMPDIR")).join("families.c");
    let program = "#include <sys/socket.h>\n#include <stp.h>\n\
        _Static_assert(AF_STP > AF_MAX && PF_STP > PF_MAX, \"family\");\n\
        int main(void) { return socket(AF_STP, SOCK_STREAM, 0) >= 0; }\n";
    std::fs::write(&source, program).unwrap();
    let how = How {
        standard: "gnu11",
        ..How::default()
    };
    ok(&Command::new(compile(&source, "families", how))
        .output()
        .unwrap());
}

#[test]
fn the_header_stands_alone_in_c99_and_cpp17_with_gcc_and_clang() {
    let source = Path::new(env!("CARGO_TARGET_TMPDIR")).join("alone.c");
    let program = "#include <stp.h>\n#include <stp.h>\n\
        int main(void) { struct sockaddr_stp a; return STPaddr(&a, \"beta:7\") != 0 || a.sstp_family != AF_STP \
        || STPerror() != STP_OK || STPstrerror(STP_ERESET)[0] == 0; }\n";
    std::fs::write(&source, program).unwrap();
    for (compiler, standard) in [
        ("gcc", "c99"),
        ("gcc", "c17"),
        ("g++", "c++17"),
        ("clang", "c99"),
        ("clang++", "c++17"),
    ] {
        if !has(compiler) {
            stp_tests::skip_part(&format!("stp.h with {compiler}"), "not installed");
            continue;
        }
        for fixed in [false, true] {
            let how = How {
                compiler,
                standard,
                fixed,
                flags: &["-pedantic"],
                ..How::default()
            };
            let program = compile(&source, &format!("alone-{compiler}-{standard}"), how);
            ok(&Command::new(program).output().unwrap());
        }
    }
}
