//! The translation for a program that is linked with the C library instead of being preloaded.
//!
//! - The way to the engine is the one that `stp run` handed down, else it is found by `STP_VOLUME`, `STP_SYSTEM` and
//!   `STP_RUN_DIR`. Without a volume every call is the kernel's.
//! - It is found once, by the first call that is translated.

use std::sync::OnceLock;

use libc::{
    addrinfo, c_char, c_int, c_void, hostent, msghdr, size_t, sockaddr, socklen_t, ssize_t,
};
use stp_format::SystemName;
use stp_host::rendezvous::RunDir;
use stp_host::run::{Way, env};

use super::{Inet, Map, Next};

macro_rules! of_the_c_library {
    ($($abi:literal fn $name:ident($($argument:ident: $type:ty),* $(,)?) -> $result:ty;)*) => {
        $(unsafe extern $abi {
            fn $name($($argument: $type),*) -> $result;
        })*

        /// The C library's own calls.
        pub const LIBC: Next = Next { $($name),* };
    };
}

crate::translated_calls!(of_the_c_library);

/// This process's translation; `None`: its environment names no volume that can be used.
pub fn of_environment() -> Option<&'static Inet> {
    static INET: OnceLock<Option<Inet>> = OnceLock::new();
    INET.get_or_init(|| {
        let variable = |name: &str| {
            let value = std::env::var_os(name)?;
            // Once a process.
            let bytes: &'static [u8] = std::os::unix::ffi::OsStringExt::into_vec(value).leak();
            (!bytes.is_empty()).then_some(bytes)
        };
        Inet::from_env(variable).or_else(by_volume)
    })
    .as_ref()
}

fn by_volume() -> Option<Inet> {
    let text = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
    let spec = text(env::VOLUME)?.parse().ok()?;
    let volume = stp_host::volume::open_read_only(&spec).ok()?;
    let volume = volume.superblock().volume;
    let system: SystemName = match text(env::SYSTEM) {
        Some(system) => system.parse().ok()?,
        None => rustix::system::uname()
            .nodename()
            .to_str()
            .ok()?
            .parse()
            .ok()?,
    };
    let dir = RunDir::open_default(None).ok()?;
    let dir = dir.system(volume, &system).ok()?;
    let client = Way::of(&dir).ok()?.client().ok()?;
    let map = Map::parse(&text(env::RUN_MAP).unwrap_or_default());
    Some(Inet::new(client, volume, system, map))
}
