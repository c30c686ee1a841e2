//! The simulator: the shipped engine in a world where storage, hosts and clocks fail on purpose.
//!
//! - One seed is one run: every choice comes from it, nothing from a clock, a thread or an address.
//! - Nothing of the engine is replaced but what it stands on: storage, clock, the programs' sockets.
//! - First everything breaks and safety is checked; then the faults end, and progress is demanded.
//! - A checker says what it saw, when, and what it expected; the first finding ends the run.

mod check;
mod claims;
mod clock;
mod disk;
mod fates;
mod figures;
mod gifts;
mod hostile;
mod lane;
mod local;
mod memory;
mod monitor;
mod mutation;
mod options;
mod pattern;
mod programs;
mod rng;
mod spoil;
mod world;

pub use figures::Figures;
pub use mutation::Mutation;
pub use options::{ALL_FAULTS, LANES, MEMORY, MOVES, Options};

/// What a run showed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What happened in it, counted.
    pub figures: Figures,
    /// A hash over every step: equal for equal seeds.
    pub trace: u64,
    /// What a checker found.
    pub finding: Option<String>,
}

/// Runs one seed. `verbose` tells what happens on standard error.
pub fn run(options: &Options, verbose: bool) -> Outcome {
    world::World::new(options, verbose).run()
}
