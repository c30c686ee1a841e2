//! Harnesses: what must hold whatever bytes come in, as plain functions.
//!
//! - A harness takes bytes and returns, or panics: no input may make it panic, hang, or grow.
//! - libFuzzer drives them (`fuzz/`, `cargo xtask fuzz`); `tests/inputs.rs` drives the same functions with the kept
//!   inputs and some thousands of made ones, so that every test run exercises them.
//! - Bytes that would fail a checksum are given a right one, or no fuzzer would come past it.

pub mod claim;
pub mod control;
pub mod files;
pub mod node;
pub mod records;
pub mod text;
pub mod volume;

/// A harness by its name.
pub struct Target {
    /// As `cargo xtask fuzz` and the folders of inputs call it.
    pub name: &'static str,
    /// What it does with an input.
    pub run: fn(&[u8]),
    /// Bytes of an input that are worth while.
    pub bytes_max: usize,
    /// Made inputs in an ordinary test run.
    pub tests: u32,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    target("records", records::decode, 9000, 4000),
    target("records_made", records::round_trip, 1024, 2000),
    target("segment", records::segment, 9000, 4000),
    target("gift", records::gift, 600, 8000),
    target("node", node::run, 2048, 1500),
    target("claim", claim::run, 1024, 400),
    target("volume", volume::mutated, 512, 600),
    target("text", text::parse, 600, 8000),
    target("files", files::messages, 6000, 8000),
    target("socks", text::socks, 600, 8000),
    target("control", control::engine, 800, 8000),
    target("control_client", control::program, 800, 8000),
    target("run_wire", control::run_messages, 2100, 8000),
];

const fn target(name: &'static str, run: fn(&[u8]), bytes_max: usize, tests: u32) -> Target {
    Target {
        name,
        run,
        bytes_max,
        tests,
    }
}

/// The target of a name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Pseudo-random numbers (xorshift64*), the same for the same seed.
pub struct Rng(u64);

impl Rng {
    /// Starts at a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next one.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below a limit.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.number() % limit.max(1) as u64) as usize
    }

    /// An input: noise, or a kept one with some bytes changed, cut or repeated.
    pub fn input(&mut self, kept: &[Vec<u8>], bytes_max: usize) -> Vec<u8> {
        let base = match kept.len() {
            0 => None,
            count => kept.get(self.below(count + count / 4 + 1)),
        };
        let Some(base) = base else {
            let len = self.below(bytes_max + 1);
            return (0..len).map(|_| self.number() as u8).collect();
        };
        let mut bytes = base.clone();
        for _ in 0..1 + self.below(8) {
            let at = self.below(bytes.len() + 1);
            match self.below(5) {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, self.number() as u8),
                2 if bytes.len() < bytes_max => {
                    let end = (at + self.below(64)).min(bytes.len());
                    let again = bytes[at..end].to_vec();
                    bytes.extend(again);
                }
                3 => {
                    for byte in bytes.iter_mut().skip(at).take(8) {
                        *byte = 0xff;
                    }
                }
                _ => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << self.below(8);
                    }
                }
            }
        }
        bytes.truncate(bytes_max);
        bytes
    }
}
