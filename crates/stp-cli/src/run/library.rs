//! The preloaded library: where it is, and what else is preloaded.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use stp_host::run::{RELEASE, RELEASE_SECTION};

use super::elf;
use crate::CliError;

const NAME: &str = "libstp_preload.so";

/// Names another place for the library.
const VARIABLE: &str = "STP_PRELOAD";

/// Finds it: where [`VARIABLE`] says, beside this program, in `../lib` of it, or where a build leaves it.
pub(super) fn find() -> Result<PathBuf, CliError> {
    let looked = match std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        Some(path) => vec![PathBuf::from(path)],
        None => {
            let here = std::env::current_exe()
                .map_err(|error| CliError::new(format_args!("/proc/self/exe: {error}")))?;
            let here = here.parent().unwrap_or(Path::new("/"));
            let places = [".", "../lib", "../lib/stp", "../lib64/stp", "..", "deps"];
            places
                .iter()
                .map(|place| here.join(place).join(NAME))
                .collect()
        }
    };
    let Some(found) = looked.iter().find_map(|path| path.canonicalize().ok()) else {
        let looked: Vec<String> = looked
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        return Err(CliError::new(format_args!(
            "{NAME} is missing, looked at {}",
            looked.join(", ")
        ))
        .remedy(format_args!(
            "install it beside `stp`, or name it with {VARIABLE}"
        )));
    };
    // The loader takes these for the end of a name.
    if found
        .as_os_str()
        .as_bytes()
        .iter()
        .any(|b| b" :\t\n".contains(b))
    {
        return Err(CliError::new(format_args!(
            "{}: the loader takes no library whose path has a space or a colon",
            found.display()
        ))
        .remedy("install it elsewhere"));
    }
    Ok(found)
}

/// Refuses one of another release: what it says to the engine would not be understood.
pub(super) fn check(library: &Path) -> Result<(), CliError> {
    let failed = |why: String| {
        CliError::new(format_args!("{}: {why}", library.display())).remedy(format_args!(
            "install `stp` and {NAME} of one release, or name that library with {VARIABLE}"
        ))
    };
    match elf::section(library, RELEASE_SECTION) {
        Ok(Some(found)) if found == RELEASE.as_bytes() => Ok(()),
        Ok(Some(found)) => Err(failed(format!(
            "it is of stp {}, this is stp {RELEASE}",
            String::from_utf8_lossy(&found)
        ))),
        Ok(None) => Err(failed(format!(
            "it does not say of which release it is, this is stp {RELEASE}"
        ))),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// The value of `LD_PRELOAD`: ours first, then what is there already.
pub(super) fn with_others(library: &Path) -> OsString {
    let others = std::env::var_os("LD_PRELOAD").unwrap_or_default();
    let mut value = library.as_os_str().to_owned();
    for other in others.as_bytes().split(|b| b" :\t\n".contains(b)) {
        if !other.is_empty() && other != library.as_os_str().as_bytes() {
            value.push(":");
            value.push(std::ffi::OsStr::from_bytes(other));
        }
    }
    value
}
