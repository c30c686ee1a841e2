//! The files that the demo sends, and whether they arrived.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::CliError;

/// What of a tree is sent at the most.
pub(super) const TREE_MIB_MAX: u64 = 64;
const TREE_FILES_MAX: usize = 10_000;
const TREE_DEPTH_MAX: usize = 32;
/// Folders to take a tree from where the project's own sources are not at hand.
const TREES: &[&str] = &["/usr/share/doc", "/usr/include", "/etc"];
/// Bytes that are made, read and hashed at once.
const PIECE_BYTES: usize = 1 << 20;

/// What was made.
pub(super) struct Staged {
    pub(super) tree_from: PathBuf,
    pub(super) tree_files: usize,
    pub(super) big_hash: String,
}

/// What was compared.
pub(super) struct Compared {
    pub(super) files: usize,
    pub(super) bytes: u64,
}

pub(super) fn check_space(folder: &Path, needed: u64) -> Result<(), CliError> {
    let Ok(found) = rustix::fs::statvfs(folder) else {
        return Ok(());
    };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    if free >= needed {
        return Ok(());
    }
    Err(CliError::new(format_args!(
        "{}: {} MiB are free, the demo needs {}",
        folder.display(),
        free >> 20,
        needed >> 20
    ))
    .remedy("name another place with --dir, or a smaller file with --mib"))
}

/// Makes `tree` and `big.bin` in `folder`.
pub(super) fn stage(
    folder: &Path,
    mib: u64,
    is_over: impl Fn() -> bool,
) -> Result<Staged, CliError> {
    let tree_from = tree();
    let mut copier = Copier {
        files: 0,
        bytes: 0,
        is_over: &is_over,
    };
    let tree = folder.join("tree");
    copier
        .copy(&tree_from, &tree, 0)
        .map_err(|error| failed("copying", &tree_from, error))?;
    let big = folder.join("big.bin");
    let big_hash = noise(&big, mib, &is_over).map_err(|error| failed("writing", &big, error))?;
    Ok(Staged {
        tree_from,
        tree_files: copier.files,
        big_hash,
    })
}

/// Whether every file of `source` is in `target` with the same bytes, and nothing else.
pub(super) fn compare(
    source: &Path,
    target: &Path,
    is_over: impl Fn() -> bool,
) -> Result<Compared, CliError> {
    let sent = hashes(source, &is_over)?;
    let received = hashes(target, &is_over)?;
    for (name, (_, hash)) in &sent {
        match received.get(name) {
            Some((_, found)) if found == hash => {}
            Some(_) => return Err(differs(name, "arrived with other bytes")),
            None => return Err(differs(name, "did not arrive")),
        }
    }
    if let Some(name) = received.keys().find(|name| !sent.contains_key(*name)) {
        return Err(differs(name, "was never sent"));
    }
    Ok(Compared {
        files: sent.len(),
        bytes: sent.values().map(|(bytes, _)| bytes).sum(),
    })
}

fn differs(name: &Path, how: &str) -> CliError {
    CliError::new(format_args!("{}: {how}", name.display()))
        .remedy("this should never happen: please report it, with `stp demo --keep -vv`")
}

fn failed(what: &str, path: &Path, error: io::Error) -> CliError {
    if error.kind() == io::ErrorKind::Interrupted {
        return CliError::silent();
    }
    CliError::new(format_args!("{what} {}: {error}", path.display()))
}

/// The project's own sources if we are in a checkout of it, else documents or headers of this host.
fn tree() -> PathBuf {
    let here = std::env::current_dir().unwrap_or_default();
    for folder in here.ancestors() {
        if folder.join("crates/stp-format/src").is_dir() {
            return folder.join("crates");
        }
    }
    let found = TREES.iter().map(Path::new).find(|path| path.is_dir());
    found.unwrap_or(Path::new("/etc")).to_owned()
}

struct Copier<'a> {
    files: usize,
    bytes: u64,
    is_over: &'a dyn Fn() -> bool,
}

impl Copier<'_> {
    /// Folders and regular files, as far as they can be read and within the limits.
    fn copy(&mut self, from: &Path, to: &Path, depth: usize) -> io::Result<()> {
        fs::create_dir(to)?;
        let Ok(entries) = fs::read_dir(from) else {
            return Ok(());
        };
        for entry in entries {
            if (self.is_over)() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let entry = entry?;
            let Ok(found) = entry.metadata() else {
                continue;
            };
            let to = to.join(entry.file_name());
            if found.is_dir() && depth < TREE_DEPTH_MAX {
                self.copy(&entry.path(), &to, depth + 1)?;
            } else if found.is_file()
                && self.files < TREE_FILES_MAX
                && self.bytes + found.len() <= TREE_MIB_MAX << 20
                && File::open(entry.path()).is_ok()
            {
                self.bytes += fs::copy(entry.path(), to)?;
                self.files += 1;
            }
        }
        Ok(())
    }
}

/// Writes a file that nothing can compress or make holes of, and returns its hash.
fn noise(path: &Path, mib: u64, is_over: &dyn Fn() -> bool) -> io::Result<String> {
    let mut file = File::create_new(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut piece = vec![0; PIECE_BYTES];
    let mut random = blake3::Hasher::new()
        .update(b"the demo's noise")
        .finalize_xof();
    for _ in 0..mib {
        if is_over() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        random.fill(&mut piece);
        hasher.update(&piece);
        file.write_all(&piece)?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}

type Hashes = BTreeMap<PathBuf, (u64, blake3::Hash)>;

/// Size and hash of every regular file below a folder, by its path there.
fn hashes(folder: &Path, is_over: &dyn Fn() -> bool) -> Result<Hashes, CliError> {
    let mut found = Hashes::new();
    let mut folders = vec![PathBuf::new()];
    let mut piece = vec![0; PIECE_BYTES];
    while let Some(inner) = folders.pop() {
        let path = folder.join(&inner);
        let entries = fs::read_dir(&path).map_err(|error| failed("reading", &path, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| failed("reading", &path, error))?;
            let name = inner.join(entry.file_name());
            let kind = entry
                .file_type()
                .map_err(|error| failed("reading", &name, error))?;
            if kind.is_dir() {
                folders.push(name);
            } else if kind.is_file() {
                let hash = hash(&entry.path(), &mut piece, is_over)
                    .map_err(|error| failed("reading", &entry.path(), error))?;
                found.insert(name, hash);
            }
        }
    }
    Ok(found)
}

fn hash(
    path: &Path,
    piece: &mut [u8],
    is_over: &dyn Fn() -> bool,
) -> io::Result<(u64, blake3::Hash)> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut bytes = 0;
    loop {
        if is_over() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        match file.read(piece) {
            Ok(0) => return Ok((bytes, hasher.finalize())),
            Ok(n) => {
                hasher.update(&piece[..n]);
                bytes += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_found() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for folder in [&one, &two] {
            fs::create_dir(folder.path().join("sub")).unwrap();
            fs::write(folder.path().join("sub/a"), "same").unwrap();
        }
        let compared = compare(one.path(), two.path(), || false).unwrap();
        assert_eq!((compared.files, compared.bytes), (1, 4));
        let check = |what: &str| {
            let Err(error) = compare(one.path(), two.path(), || false) else {
                panic!("{what} was not found");
            };
            assert!(error.to_string().contains(what), "{error}");
        };
        fs::write(two.path().join("more"), "").unwrap();
        check("never sent");
        fs::remove_file(two.path().join("more")).unwrap();
        fs::write(two.path().join("sub/a"), "sane").unwrap();
        check("other bytes");
        fs::remove_file(two.path().join("sub/a")).unwrap();
        check("did not arrive");
    }
}
