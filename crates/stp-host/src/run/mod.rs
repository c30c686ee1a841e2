//! `stp run`: what the preloaded library and the engine say to each other about a program's own sockets.
//!
//! - A program's descriptor is its own kernel TCP socket from beginning to end. Here only names and openings are
//!   settled; no byte of a stream passes.
//! - Every call is one short exchange over a fresh connection: no thread, no kept descriptor, no state in the
//!   program. So `fork`, `exec`, passed descriptors and closed ones need no care, and a call works again as soon as an
//!   engine is back.
//! - The way to the engine survives `chroot` and `setuid`: an abstract socket, and a key that `stp run` hands down.
//!   Processes of the engine's own user need no key.
//!
//! [`client`]: the program's side. [`wire`]: the messages. [`Way`]: where the two meet. [`Server`]: the engine's side, with
//! the door through which connections to other systems come about.

#![allow(
    clippy::result_large_err,
    clippy::large_enum_variant,
    reason = "errors and messages carry their text themselves: the program's side has no heap"
)]

mod attempts;
pub mod client;
mod door;
mod fd;
mod listeners;
pub mod namespace;
mod places;
mod relay;
mod server;
pub(crate) mod sys;
mod way;
pub mod wire;

pub use client::{Client, Error, Users};
pub use fd::Fd;
pub use server::Server;
pub use way::Way;
pub use wire::{Connecting, Hello, Key, Outcome, Peer, SystemEntry, Text, WIRE_VERSION};

/// What `stp run` hands down to the program, and to whatever that starts.
pub mod env {
    /// The volume, as it was given.
    pub const VOLUME: &str = "STP_VOLUME";
    /// The volume's identity, 32 hexadecimal digits: with it, addresses are computed.
    pub const RUN_VOLUME_ID: &str = "STP_RUN_VOLUME_ID";
    /// The name of this system.
    pub const SYSTEM: &str = "STP_SYSTEM";
    /// The run directory.
    pub const RUN_DIR: &str = "STP_RUN_DIR";
    /// The engine's sockets for these calls: an abstract name, a comma, a path.
    pub const RUN_SOCKET: &str = "STP_RUN_SOCKET";
    /// The key, 32 hexadecimal digits.
    pub const RUN_KEY: &str = "STP_RUN_KEY";
    /// Whose the engine may be: the run directory's owner, the user of `stp run`, and the user namespace of these numbers.
    pub const RUN_USERS: &str = "STP_RUN_USERS";
    /// Real addresses that mean systems: `IP=SYSTEM`, separated by commas.
    pub const RUN_MAP: &str = "STP_RUN_MAP";
    /// The release of `stp run`; a preload of another one says so.
    pub const RUN_VERSION: &str = "STP_RUN_VERSION";
}

/// The section of `libstp_preload.so` that holds its release.
pub const RELEASE_SECTION: &[u8] = b".stp.release";

/// The release that this code belongs to.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");
