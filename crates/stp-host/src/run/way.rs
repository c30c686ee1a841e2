//! The way between programs and the engine of a system: two sockets and a key.
//!
//! - It follows from the run directory alone, so that programs outlive their engine and find the next one.
//! - The key is made once, and anew when a shared run directory becomes private: whoever can read the run directory, and
//!   whoever `stp run` hands it to, has it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use super::client::Client;
use super::wire::Key;
use crate::rendezvous::{SystemDir, shared_as_its_folder};

/// Rounds of reading and making the key: each failure means that another process was faster.
const TRIES_MAX: usize = 8;

/// Where programs and their engine meet for the calls of `stp run`.
#[derive(Clone, Debug)]
pub struct Way {
    name: String,
    path: PathBuf,
    key: Key,
}

impl Way {
    /// That of `dir`. Makes its key if it has none yet.
    pub fn of(dir: &SystemDir) -> io::Result<Self> {
        let file = dir.path().join("run.key");
        let named =
            |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", file.display()));
        let mut key = None;
        for _ in 0..TRIES_MAX {
            match fs::read_to_string(&file) {
                Ok(text) => {
                    key = Some(Key::parse(text.trim_end()).ok_or_else(|| {
                        let what = "does not hold 32 hexadecimal digits: remove it while no engine runs, it is made anew";
                        named(io::Error::new(io::ErrorKind::InvalidData, what))
                    })?);
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    make_key(dir).map_err(named)?;
                }
                Err(error) => return Err(named(error)),
            }
        }
        let key = key.ok_or_else(|| named(io::ErrorKind::NotFound.into()))?;
        // Nobody else knows the key, so nobody else makes a socket of this name first.
        let seed = key.0.iter().chain(dir.path().as_os_str().as_bytes());
        let hash = seed.fold(
            0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128,
            |hash, byte| {
                (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
            },
        );
        Ok(Self {
            name: format!("stp/run/{hash:032x}"),
            path: dir.path().join("run.sock"),
            key,
        })
    }

    /// As [`Way::of`], by the engine: a key that a group could read once does not open one that it does not share.
    pub(super) fn of_engine(dir: &SystemDir) -> io::Result<Self> {
        let file = dir.path().join("run.key");
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

    /// A client that goes this way.
    pub fn client(&self) -> io::Result<Client> {
        Client::new(&self.variable(), &self.key.to_hex())
            .ok_or_else(|| io::Error::other("the way to the engine cannot be told to a program"))
    }
}

/// Writes the key under a name of its own and links it into place: whoever comes first wins.
fn make_key(dir: &SystemDir) -> io::Result<()> {
    let mut random = [0; 24];
    getrandom::fill(&mut random).map_err(io::Error::other)?;
    let (key, unique) = random.split_at(16);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(key);
    let unique: String = unique.iter().map(|b| format!("{b:02x}")).collect();
    let temp = dir.path().join(format!(".run-key-{unique}"));
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temp)
        .and_then(|mut file| writeln!(file, "{}", Key(bytes).to_hex()))
        .and_then(|()| shared_as_its_folder(&temp))
        .and_then(
            |()| match fs::hard_link(&temp, dir.path().join("run.key")) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                linked => linked,
            },
        );
    let _ = fs::remove_file(&temp);
    written
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
        fs::write(alpha.path().join("run.key"), "nonsense").unwrap();
        let error = Way::of(&alpha).unwrap_err().to_string();
        assert!(
            error.contains("run.key") && error.contains("remove it"),
            "{error}"
        );
    }
}
