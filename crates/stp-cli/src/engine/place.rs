//! The volume's place: whether its path still leads to what the engine has open.
//!
//! - An engine goes on with a file that was deleted or replaced under it, as the kernel lets it; but programs and
//!   systems that start later find nothing there, or another group. Nothing else would say so.
//! - The path is looked at by a thread of its own: where the storage is away, that look may hang.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::out::say;

/// How often the path is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// What a path leads to: a device by its number, anything else by its place in a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Device(u64),
    File { device: u64, inode: u64 },
}

/// What a look has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Same,
    Other,
    Nothing,
}

/// Says from now on what becomes of `volume`, for as long as the process lives. To be called when it is open.
pub(super) fn watch(volume: &Path, system: impl std::fmt::Display) -> io::Result<()> {
    let place = Place {
        path: volume.to_owned(),
        opened: target_of(&volume.metadata()?),
        last: Found::Same,
    };
    let engine = format!("engine of {system}");
    let body = move || watch_for_ever(place, &engine);
    thread::Builder::new()
        .name("volume-place".to_owned())
        .spawn(body)
        .map(drop)
}

fn watch_for_ever(mut place: Place, engine: &str) {
    loop {
        thread::sleep(LOOK);
        if let Some(news) = place.look() {
            say(format_args!("{engine}: {news}"));
        }
    }
}

struct Place {
    path: PathBuf,
    opened: Target,
    last: Found,
}

impl Place {
    /// What there is to say, if the look found something else than the last one.
    fn look(&mut self) -> Option<String> {
        let found = match self.path.metadata() {
            Ok(metadata) if target_of(&metadata) == self.opened => Found::Same,
            Ok(_) => Found::Other,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Found::Nothing,
            // The storage is away: the engine's own transfers tell.
            Err(_) => return None,
        };
        if found == self.last {
            return None;
        }
        self.last = found;
        let path = self.path.display();
        Some(match found {
            Found::Same => format!("{path} leads to its volume again"),
            Found::Other => format!(
                "{path} was replaced: it leads to another volume than the one in use, where programs that start now do not meet this engine; \
                 start it again, or put the old one back"
            ),
            Found::Nothing => format!(
                "{path} is gone (deleted, moved, unmounted): what is open goes on, but programs and systems that start now do not find it; \
                 put it back, or stop this engine"
            ),
        })
    }
}

fn target_of(metadata: &Metadata) -> Target {
    if metadata.file_type().is_block_device() {
        return Target::Device(metadata.rdev());
    }
    Target::File {
        device: metadata.dev(),
        inode: metadata.ino(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn each_change_of_place_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lab.stp");
        let aside = dir.path().join("aside");
        fs::write(&path, b"first").unwrap();
        let mut place = Place {
            opened: target_of(&path.metadata().unwrap()),
            path: path.clone(),
            last: Found::Same,
        };
        assert_eq!(place.look(), None);

        fs::rename(&path, &aside).unwrap();
        assert!(place.look().unwrap().contains("is gone"));
        assert_eq!(place.look(), None);

        fs::write(&path, b"second").unwrap();
        assert!(place.look().unwrap().contains("was replaced"));
        assert_eq!(place.look(), None);

        fs::rename(&aside, &path).unwrap();
        assert!(place.look().unwrap().contains("again"));
        assert_eq!(place.look(), None);
    }

    #[test]
    fn written_in_place_it_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lab.stp");
        fs::write(&path, b"first").unwrap();
        let before = target_of(&path.metadata().unwrap());
        fs::write(&path, b"second, and longer").unwrap();
        assert_eq!(target_of(&path.metadata().unwrap()), before);
    }
}
