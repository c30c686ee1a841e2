//! The file service over socket pairs: every kind of entry, interruptions, hostile peers, full disks.
//!
//! Connections are pairs of Unix sockets with a wrapper on the client's side that counts bytes and can cut the line after any
//! number of them, so that the tests choose where a transfer is interrupted.

#![allow(unreachable_pub, missing_docs)]

mod faults;
mod group;
mod hostile;
mod resume;
mod support;
mod trees;
