//! The program: where it is, and whether a preloaded library reaches it.
//!
//! - What cannot be reached is refused with its reason, and `stp forward` is named: it would run, but not over the volume.
//! - A script is judged by its interpreter.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::elf::Elf;
use crate::CliError;

/// Interpreters of interpreters, as the kernel allows them.
const SCRIPTS_MAX: usize = 5;
/// The longest first line of a script.
const LINE_MAX: usize = 256;

/// The file that `name` means, as the shell finds it.
pub(super) fn find(name: &OsStr) -> Result<PathBuf, CliError> {
    let missing = || {
        CliError::new(format_args!("{}: no such program", name.display()))
            .remedy("check the name, or give its path")
    };
    if name.as_bytes().contains(&b'/') {
        let path = PathBuf::from(name);
        return match std::fs::metadata(&path) {
            Ok(found) if found.is_file() => Ok(path),
            Ok(_) => Err(CliError::new(format_args!(
                "{} is no program",
                path.display()
            ))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing()),
            Err(error) => Err(CliError::new(format_args!("{}: {error}", path.display()))),
        };
    }
    in_path(name).ok_or_else(missing)
}

fn in_path(name: &OsStr) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file() && access(file, Access::EXEC_OK).is_ok())
}

/// Refuses a program that a preloaded library does not reach.
pub(super) fn examine(program: &Path) -> Result<(), CliError> {
    let mut file = program.to_owned();
    for _ in 0..SCRIPTS_MAX {
        let why = match look(&file) {
            Ok(Kind::Dynamic) => return Ok(()),
            Ok(Kind::Script(interpreter)) => {
                file = interpreter;
                continue;
            }
            // The kernel will say what is wrong with it.
            Ok(Kind::Other) | Err(_) => return Ok(()),
            Ok(Kind::Unreachable(why)) => why,
        };
        let of = if file == program {
            String::new()
        } else {
            format!(" (it runs {})", program.display())
        };
        return Err(CliError::new(format_args!(
            "{}{of} {why}: `stp run` cannot reach its sockets",
            file.display()
        ))
        .remedy("connect it with `stp forward`"));
    }
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// The loader loads it, and what is preloaded.
    Dynamic,
    /// Another program runs it.
    Script(PathBuf),
    Unreachable(String),
    Other,
}

fn look(path: &Path) -> io::Result<Kind> {
    let file = File::open(path)?;
    let found = file.metadata()?;
    let mut head = [0; LINE_MAX];
    let count = file.read_at(&mut head, 0)?;
    let head = &head[..count];
    if let Some(line) = head.strip_prefix(b"#!") {
        return Ok(interpreter(line).map_or(Kind::Other, Kind::Script));
    }
    if !head.starts_with(b"\x7fELF") {
        return Ok(Kind::Other);
    }
    if let Some(why) = privileged(path, &found) {
        return Ok(Kind::Unreachable(why));
    }
    Ok(Elf::read(&file, head)?.map_or(Kind::Other, |elf| kind(&elf)))
}

/// The loader preloads nothing into a program that runs with more rights than its caller's.
fn privileged(path: &Path, found: &std::fs::Metadata) -> Option<String> {
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    if found.mode() & 0o4000 != 0 && found.uid() != uid.as_raw() {
        return Some(format!("is setuid to user {}", found.uid()));
    }
    if found.mode() & 0o2010 == 0o2010 && found.gid() != gid.as_raw() {
        return Some(format!("is setgid to group {}", found.gid()));
    }
    let mut space = [0_u8; 64];
    let capabilities = rustix::fs::getxattr(path, "security.capability", &mut space[..]);
    (capabilities.is_ok() && !uid.is_root()).then(|| "has file capabilities".to_owned())
}

/// What runs a script: the first word of its line, or what `env` looks for.
fn interpreter(line: &[u8]) -> Option<PathBuf> {
    let line = line.split(|b| *b == b'\n').next()?;
    let mut words = line
        .split(|b| b.is_ascii_whitespace())
        .filter(|word| !word.is_empty());
    let interpreter = Path::new(OsStr::from_bytes(words.next()?));
    if interpreter.file_name() == Some(OsStr::new("env")) {
        let mut words = words.filter(|word| !word.starts_with(b"-") && !word.contains(&b'='));
        if let Some(found) = words
            .next()
            .and_then(|word| in_path(OsStr::from_bytes(word)))
        {
            return Some(found);
        }
    }
    Some(interpreter.to_owned())
}

/// Whether the loader loads it, and what is preloaded.
fn kind(elf: &Elf) -> Kind {
    let why = if !elf.native {
        "is for another kind of machine than this `stp`"
    } else if elf.has(b".go.buildinfo") || elf.has(b".note.go.buildid") {
        "is a Go program, which calls the kernel itself"
    } else {
        match &elf.loader {
            None => "is linked statically",
            Some(loader) if loader.windows(7).any(|part| part == b"ld-musl") => {
                "is linked to another C library (musl)"
            }
            Some(_) => return Kind::Dynamic,
        }
    };
    Kind::Unreachable(why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::elf::Section;

    #[test]
    fn this_test_is_dynamic_and_a_script_leads_to_its_interpreter() {
        let own = std::env::current_exe().unwrap();
        assert_eq!(look(&own).unwrap(), Kind::Dynamic);
        let line = |text: &str| interpreter(text.as_bytes());
        assert_eq!(line(" /bin/sh -e\nrest"), Some("/bin/sh".into()));
        assert_eq!(line("/usr/bin/env sh\n"), in_path(OsStr::new("sh")));
        assert_eq!(
            line("/usr/bin/env -S A=b sh -e\n"),
            in_path(OsStr::new("sh"))
        );
        assert_eq!(line("\n"), None);
    }

    #[test]
    fn what_cannot_be_reached_is_told_apart() {
        let elf = |native, loader: Option<&str>, sections: &[&str]| Elf {
            native,
            loader: loader.map(|loader| loader.as_bytes().to_vec()),
            sections: sections
                .iter()
                .map(|name| Section {
                    name: name.as_bytes().to_vec(),
                    at: 0,
                    len: 0,
                })
                .collect(),
        };
        let glibc = Some("/lib64/ld-linux-x86-64.so.2\0");
        assert_eq!(kind(&elf(true, glibc, &[".text"])), Kind::Dynamic);
        for (elf, word) in [
            (elf(true, None, &[]), "statically"),
            (elf(true, glibc, &[".go.buildinfo"]), "Go"),
            (elf(true, Some("/lib/ld-musl-x86_64.so.1\0"), &[]), "musl"),
            (elf(false, glibc, &[]), "machine"),
        ] {
            match kind(&elf) {
                Kind::Unreachable(why) => assert!(why.contains(word), "{why}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn damaged_files_are_left_to_the_kernel() {
        let folder = tempfile::tempdir().unwrap();
        let whole = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let path = folder.path().join("cut");
        for count in [0, 1, 4, 5, 20, 60, 64, 100, 500] {
            std::fs::write(&path, &whole[..count]).unwrap();
            let _ = look(&path).unwrap();
        }
        let mut wild = whole[..4096].to_vec();
        for at in 24..64 {
            wild[at] = 0xff;
            std::fs::write(&path, &wild).unwrap();
            let _ = look(&path);
        }
    }
}
