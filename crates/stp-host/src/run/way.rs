//! The way between programs and the engine of a system: two sockets and a key.
//!
//! - It follows from the run directory alone, so that programs outlive their engine and find the next one.
//! - The key is made once, and anew when a shared run directory becomes private: whoever can read the run directory, and
//!   whoever `stp run` hands it to, has it.
//! - An abstract socket's name is everybody's to see: it is a random number of its own and tells nothing of the key.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::client::{Client, Users};
use super::wire::Key;
use crate::rendezvous::{Put, SystemDir, put_file, random_hex, read_file};

/// Rounds of reading and making the key: each failure means that another process was faster.
const TRIES_MAX: usize = 8;

const FILE: &str = "run.key";

/// Where programs and their engine meet for the calls of `stp run`.
#[derive(Clone, Debug)]
pub struct Way {
    name: String,
    path: PathBuf,
    key: Key,
    owner: u32,
}

impl Way {
    /// That of `dir`. Makes its key if it has none yet.
    pub fn of(dir: &SystemDir) -> io::Result<Self> {
        let file = dir.path().join(FILE);
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", file.display()));
        let mut found = None;
        for _ in 0..TRIES_MAX {
            match read_file(&file) {
                Ok(text) => {
                    found = Some(parse(&text).ok_or_else(|| {
                        let what = "does not hold a key and a name: remove it while no engine runs, it is made anew";
                        named(io::Error::new(io::ErrorKind::InvalidData, what))
                    })?);
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    make(&file).map_err(named)?;
                }
                Err(error) => return Err(named(error)),
            }
        }
        // Nobody else knows the name before its socket is there, so nobody else makes one of this name first.
        let (key, name) = found.ok_or_else(|| named(io::ErrorKind::NotFound.into()))?;
        Ok(Self {
            name: format!("stp/run/{}", name.to_hex()),
            path: dir.path().join("run.sock"),
            key,
            owner: dir.sharing().owner,
        })
    }

    /// The same under another name: somebody else has that one.
    pub(super) fn renamed(self, dir: &SystemDir) -> io::Result<Self> {
        let text = format!("{}\n{}\n", self.key.to_hex(), random_hex()?);
        put_file(&dir.path().join(FILE), &text, Put::Anew)?;
        Self::of(dir)
    }

    /// As [`Way::of`], by the engine: a key that a group could read once does not open one that it does not share.
    pub(super) fn of_engine(dir: &SystemDir) -> io::Result<Self> {
        let file = dir.path().join(FILE);
        let was_shared = fs::symlink_metadata(&file).is_ok_and(|found| found.mode() & 0o077 != 0);
        if was_shared && dir.sharing().group.is_none() {
            fs::remove_file(&file)?;
        }
        Self::of(dir)
    }

    /// The abstract socket's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The other socket's path.
    pub fn path(&self) -> &PathBuf {
        &self.path
    }

    /// The key.
    pub fn key(&self) -> Key {
        self.key
    }

    /// As [`env::RUN_SOCKET`](super::env::RUN_SOCKET) holds it.
    pub fn variable(&self) -> Vec<u8> {
        [self.name.as_bytes(), b",", self.path.as_os_str().as_bytes()].concat()
    }

    /// As [`env::RUN_USERS`](super::env::RUN_USERS) holds whose the engine may be, for this process and its children.
    pub fn users(&self) -> String {
        Users::new(self.owner).to_string()
    }

    /// A client that goes this way.
    pub fn client(&self) -> io::Result<Client> {
        Client::new(&self.variable(), &self.key.to_hex(), &self.users())
            .ok_or_else(|| io::Error::other("the way to the engine cannot be told to a program"))
    }
}

/// The key and the name's number, a line each.
fn parse(text: &str) -> Option<(Key, Key)> {
    let (key, name) = text.trim_end().split_once('\n')?;
    Some((Key::parse(key)?, Key::parse(name)?))
}

fn make(file: &Path) -> io::Result<()> {
    let text = format!("{}\n{}\n", random_hex()?, random_hex()?);
    put_file(file, &text, Put::First)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rendezvous::RunDir;
    use stp_format::VolumeId;

    #[test]
    fn the_way_stays_and_differs_by_system() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDir::open(&root.path().join("run")).unwrap();
        let system = |name: &str| {
            run.system(VolumeId([1; 16]), &name.parse().unwrap())
                .unwrap()
        };
        let (alpha, beta) = (system("alpha"), system("beta"));
        let first = Way::of(&alpha).unwrap();
        let again = Way::of(&alpha).unwrap();
        assert_eq!((first.name(), first.key()), (again.name(), again.key()));
        assert_ne!(first.name(), Way::of(&beta).unwrap().name());
        assert!(first.client().is_ok());
        // Another key, and nobody who sees the name sees it.
        let text = fs::read_to_string(alpha.path().join("run.key")).unwrap();
        let (name, key) = (first.name().to_owned(), first.key().to_hex());
        let (_, number) = text.trim_end().split_once('\n').unwrap();
        fs::write(
            alpha.path().join("run.key"),
            text.replace(&key, &"7".repeat(32)),
        )
        .unwrap();
        let other = Way::of(&alpha).unwrap();
        assert_eq!(other.name(), name);
        assert_ne!(other.key(), first.key());
        assert!(name.ends_with(number) && number != key);
        let renamed = other.clone().renamed(&alpha).unwrap();
        assert_eq!(renamed.key(), other.key());
        assert_ne!(renamed.name(), name);
        assert_eq!(Way::of(&alpha).unwrap().name(), renamed.name());
        fs::write(alpha.path().join("run.key"), "nonsense").unwrap();
        let error = Way::of(&alpha).unwrap_err().to_string();
        assert!(
            error.contains("run.key") && error.contains("remove it"),
            "{error}"
        );
    }
}
