//! The STP calls of C, in Rust: descriptors and addresses of the program in, a result or a [`Fault`] out.
//!
//! - A descriptor is a kernel socket of the program's own; what the kernel does not know of it is in `table`.
//! - Nothing here panics on input, and no lock is held while anything blocks: a `fork` at any moment leaves the
//!   child a library that works.
//! - Pointers of the program are followed by the kernel, not by us.

#![allow(
    clippy::not_unsafe_ptr_arg_deref,
    reason = "a program's pointers go to the kernel, which checks them"
)]

mod address;
mod connect;
mod data;
mod fault;
mod give;
mod home;
mod listen;
mod memory;
mod options;
mod socket;
mod table;

pub use address::{ADDRESS_BYTES, AF_STP, SOL_STP, from_text};
pub use connect::connect;
pub use data::{poll, readv, recv, select, send, shutdown, writev};
pub use fault::{CODES, Code, Fault, Outcome};
pub use give::{give, given, take};
pub use listen::{accept, bind, host_by_name, host_name, listen, peer_name};
pub use memory::{text, write};
pub use options::{Kind, SOCKET_OPTIONS, get, get_kernel, number, set, set_kernel};
pub use socket::{close, dup, socket};
