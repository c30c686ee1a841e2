//! The run directory: where the programs and engines of one host meet.
//!
//! - It belongs to one user and is closed to everybody else (0700), or shared with one group (2770, by its owner's
//!   will); anything else is refused.
//! - `<run-dir>/host-id` identifies the host, made once.
//! - `<run-dir>/<volume>/<system>/` holds `engine.sock`, `engine.lock`, `run.key`, `ports/`, `seats/` and `gifts/`.
//! - What a crashed process leaves behind is told from what is alive by the kernel alone: a lock that
//!   can be taken, or a socket that nobody holds. Nothing here trusts a process id or a time.
//! - A path too long for a socket address is reached through its directory's descriptor.

pub mod direct;
mod files;
mod gifts;
mod lock;
mod names;
mod path;
mod ports;
mod run_dir;
mod told;

pub(crate) use files::{Put, put_file, random_hex, read_file, shared_as_its_folder};
pub use gifts::{GiftSocket, Offered, Passed, take_gift};
pub use lock::FileLock;
pub use names::{PeerName, PeerNameKind};
pub use path::SocketPath;
pub use ports::{EPHEMERAL_PORTS, PortFile, PortSocket, Reservation};
pub use run_dir::{RunDir, RunDirError, Sharing, SystemDir};
