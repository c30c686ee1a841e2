//! The `stp` command.

fn main() {}
