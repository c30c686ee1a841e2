//! Stream sockets whose bytes travel through shared storage. Reads like `std::net`.
//!
//! - A [`Group`] is a volume opened under a system's name; [`Group::listen`] and [`Group::connect`] are the
//!   doors to [`Listener`] and [`Stream`].
//! - A stream's descriptor is a real kernel socket: `poll`, `epoll` and friends work on it.
//! - A stream that ends in order reads as end of file; one whose program, engine or host died reads as
//!   `ConnectionReset`, after every byte that had arrived. One never looks like the other.
//! - What behaves otherwise than a TCP socket is listed in `docs/SOCKETS.md`.
//!
//! ```no_run
//! use std::io::{Read, Write};
//!
//! let group = stp::Group::open("/dev/mapper/shared")?;
//! let mut stream = group.connect("beta:7000")?;
//! stream.write_all(b"hello")?;
//! stream.shutdown(std::net::Shutdown::Write)?;
//! let mut answer = String::new();
//! stream.read_to_string(&mut answer)?;
//! # Ok::<(), std::io::Error>(())
//! ```
#![forbid(unsafe_code)]

mod addr;
#[doc(hidden)]
pub mod door;
mod error;
mod gift;
mod group;
mod lane;
mod listener;
mod node;
mod stream;
#[cfg(feature = "tokio")]
pub mod tokio;

pub use addr::{Addr, AddrError, ToAddr};
pub use error::Error;
pub use gift::{Gift, TakerName};
pub use group::{Builder, EngineChoice, Group, SystemInfo, SystemState};
pub use listener::{Incoming, Listener};
pub use stp_format::{GroupName, NameError, SystemName, VolumeId};
pub use stream::Stream;
