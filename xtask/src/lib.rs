//! The repository's chores, one module each.
//!
//! - A chore works from any folder of a checkout and needs nothing but cargo to start.
//! - A chore that cannot do its whole job says by name what it left out.

pub mod fuzz;
pub mod install;
pub mod instructions;
pub mod needs;
pub mod repo;
pub mod soak;
pub mod suites;
pub mod test;
pub mod tidy;
pub mod vm;
