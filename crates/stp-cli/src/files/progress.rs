//! What the user of `stp cp` sees: a bar on a terminal, a line every few seconds elsewhere, failures as they come, a summary.
//!
//! - An entry counts once, over however many connections its transfer took; the same for its failure.

use std::collections::HashSet;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};

use super::paths;
use super::report::Report;
use super::wire::{Code, Fault, Kind};

/// How often a line is written when standard error is not a terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// How many entries are remembered as in place, for the next connection; more are only checked again.
const REMEMBERED_MAX: usize = 1 << 20;

/// How a session's entries are called by the user.
#[derive(Default)]
pub struct Naming {
    /// Name at the target -> what the user called it.
    pub names: Vec<(Vec<u8>, String)>,
    /// What the user called the folder whose contents are copied.
    pub contents: Option<String>,
}

impl Naming {
    fn shown(&self, key: &[u8]) -> String {
        let at = key.iter().position(|&b| b == b'/').unwrap_or(key.len());
        let (first, rest) = key.split_at(at);
        if let Ok(found) = self
            .names
            .binary_search_by(|(name, _)| name.as_slice().cmp(first))
        {
            return format!("{}{}", self.names[found].1, paths::show(rest));
        }
        match &self.contents {
            Some(folder) if key.is_empty() => folder.clone(),
            Some(folder) => format!("{}/{}", folder.trim_end_matches('/'), paths::show(key)),
            None => paths::show(key),
        }
    }
}

#[derive(Default)]
struct State {
    naming: Naming,
    session: u64,
    done: HashSet<[u8; 16]>,
    told: HashSet<[u8; 16]>,
    files: u64,
    failed: u64,
    skipped: u64,
    /// Failures and skips of the running session: forgotten when it starts over.
    session_failed: u64,
    session_skipped: u64,
    total_before: u64,
    session_total: u64,
}

/// Counts and shows.
pub struct Progress {
    state: Mutex<State>,
    shared: Arc<Shared>,
    started: Instant,
    quiet: bool,
    ticker: Option<JoinHandle<()>>,
}

struct Shared {
    bar: ProgressBar,
    position: AtomicU64,
    done_bytes: AtomicU64,
    moved: AtomicU64,
    holes: AtomicU64,
    total: AtomicU64,
    activity: AtomicU64,
    ended: (Mutex<bool>, Condvar),
    /// A line was shown, so a last one is due.
    lines: AtomicBool,
}

/// Bytes for people.
pub fn bytes(n: u64) -> String {
    BinaryBytes(n).to_string()
}

impl Progress {
    /// Starts to show.
    pub fn start(quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if quiet || !terminal {
            ProgressBar::hidden()
        } else {
            ProgressBar::new(0)
        };
        let template = "{wide_msg} [{bar:24}] {binary_bytes:>10}/{binary_total_bytes:<10} {binary_bytes_per_sec:>12} ETA {eta:>4}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        let shared = Arc::new(Shared {
            bar,
            position: AtomicU64::new(0),
            done_bytes: AtomicU64::new(0),
            moved: AtomicU64::new(0),
            holes: AtomicU64::new(0),
            total: AtomicU64::new(0),
            activity: AtomicU64::new(0),
            ended: (Mutex::new(false), Condvar::new()),
            lines: AtomicBool::new(false),
        });
        let ticker = (!quiet).then(|| {
            let shared = Arc::clone(&shared);
            let every = if terminal {
                Duration::from_millis(100)
            } else {
                LINE_EVERY
            };
            std::thread::spawn(move || shared.tick(every, terminal))
        });
        Self {
            state: Mutex::default(),
            shared,
            started: Instant::now(),
            quiet,
            ticker,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session begins, or begins again after a lost connection.
    pub fn begin(&self, session: u64, naming: Naming) {
        let mut state = self.state();
        if state.session != session {
            state.total_before += state.session_total;
        }
        state.session = session;
        state.naming = naming;
        state.session_failed = 0;
        state.session_skipped = 0;
        state.session_total = 0;
        self.shared.position.store(
            self.shared.done_bytes.load(Ordering::Relaxed),
            Ordering::Relaxed,
        );
    }

    /// A session ended: what it reported is final.
    pub fn end(&self) {
        let mut state = self.state();
        state.failed += std::mem::take(&mut state.session_failed);
        state.skipped += std::mem::take(&mut state.session_skipped);
    }

    /// A number that grows whenever something was achieved.
    pub fn activity(&self) -> u64 {
        self.shared.activity.load(Ordering::Relaxed)
    }

    /// Bytes that went over connections.
    pub fn moved_bytes(&self) -> u64 {
        self.shared.moved.load(Ordering::Relaxed)
    }

    /// Says a line without disturbing the bar.
    pub fn say(&self, line: &str) {
        self.shared.bar.suspend(|| crate::out::say(line));
    }

    /// A whole source failed.
    pub fn fail_source(&self, line: &str) {
        self.state().failed += 1;
        self.say(line);
    }

    /// Ends the display, says the summary, tells how many failed.
    pub fn finish(mut self) -> u64 {
        self.stop();
        let state = self.state();
        let failed = state.failed + state.session_failed;
        let skipped = state.skipped + state.session_skipped;
        // One failure and nothing else was said already.
        if !self.quiet && (state.files, skipped, failed) != (0, 0, 1) {
            let moved = self.moved_bytes();
            let done = self.shared.done_bytes.load(Ordering::Relaxed);
            let holes = self.shared.holes.load(Ordering::Relaxed);
            // In place without having been sent, by this command or at all.
            let present = done.saturating_sub(moved).saturating_sub(holes);
            let seconds = self.started.elapsed().as_secs_f64();
            let rate = bytes((moved as f64 / seconds.max(1e-3)) as u64);
            let plural = if state.files == 1 { "" } else { "s" };
            let again = (moved + holes).saturating_sub(done);
            let done = bytes(done);
            let mut line = format!(
                "{} file{plural} copied, {done} in {seconds:.1} s ({rate}/s)",
                state.files
            );
            if present > 0 {
                line.push_str(&format!(", {} were there already", bytes(present)));
            }
            if again > 0 && failed == 0 {
                line.push_str(&format!(", {} sent again", bytes(again)));
            }
            if skipped > 0 {
                line.push_str(&format!(", {skipped} skipped"));
            }
            if failed > 0 {
                line.push_str(&format!(", {failed} failed"));
            }
            crate::out::say(line);
        }
        failed
    }

    fn stop(&mut self) {
        *self
            .shared
            .ended
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.ended.1.notify_all();
        if let Some(ticker) = self.ticker.take() {
            let _ = ticker.join();
        }
        self.shared.bar.finish_and_clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn tick(&self, every: Duration, terminal: bool) {
        let mut ended = self.ended.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut before, mut since) = (0, Instant::now());
        loop {
            ended = self
                .ended
                .1
                .wait_timeout(ended, every)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            if *ended {
                return;
            }
            let position = self.position.load(Ordering::Relaxed);
            let total = self.total.load(Ordering::Relaxed).max(position);
            if terminal {
                self.bar.set_length(total);
                self.bar.set_position(position);
                continue;
            }
            if since.elapsed() < every {
                continue;
            }
            let moved = self.moved.load(Ordering::Relaxed);
            let rate = (moved - before) as f64 / since.elapsed().as_secs_f64().max(1e-3);
            (before, since) = (moved, Instant::now());
            let percent = (position * 100).checked_div(total).unwrap_or(100);
            let eta = if rate >= 1.0 {
                format!("{:.0} s", (total - position) as f64 / rate)
            } else {
                "unknown".into()
            };
            self.lines.store(true, Ordering::Relaxed);
            crate::out::say(format_args!(
                "{percent} %, {} of {}, {}/s, ETA {eta}",
                bytes(position),
                bytes(total),
                bytes(rate as u64)
            ));
        }
    }
}

fn mark(session: u64, key: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&session.to_le_bytes());
    hasher.update(key);
    let mut out = [0; 16];
    out.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    out
}

impl Report for Progress {
    fn total(&self, _files: u64, bytes: u64) {
        let mut state = self.state();
        state.session_total = bytes;
        self.shared
            .total
            .store(state.total_before.saturating_add(bytes), Ordering::Relaxed);
    }
    fn started(&self, key: &[u8]) {
        if !self.shared.bar.is_hidden() {
            self.shared.bar.set_message(self.state().naming.shown(key));
        }
    }
    fn moved(&self, bytes: u64) {
        self.shared.moved.fetch_add(bytes, Ordering::Relaxed);
        self.shared.activity.fetch_add(1, Ordering::Relaxed);
        self.shared.position.fetch_add(bytes, Ordering::Relaxed);
    }
    fn hole(&self, bytes: u64) {
        self.shared.holes.fetch_add(bytes, Ordering::Relaxed);
        self.shared.position.fetch_add(bytes, Ordering::Relaxed);
    }
    fn present(&self, bytes: u64) {
        self.shared.position.fetch_add(bytes, Ordering::Relaxed);
    }
    fn undone(&self, bytes: u64) {
        let less = |p: u64| Some(p.saturating_sub(bytes));
        let _ = self
            .shared
            .position
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
    fn done(&self, key: &[u8], kind: Kind, size: u64) {
        if kind == Kind::Folder {
            return;
        }
        let mut state = self.state();
        let mark = mark(state.session, key);
        if state.done.len() < REMEMBERED_MAX && !state.done.insert(mark) {
            return;
        }
        state.files += 1;
        self.shared.activity.fetch_add(1, Ordering::Relaxed);
        self.shared.done_bytes.fetch_add(size, Ordering::Relaxed);
    }
    fn failed(&self, key: &[u8], fault: &Fault) {
        let mut state = self.state();
        state.session_failed += 1;
        let mark = mark(state.session, key);
        let new = state.told.len() >= REMEMBERED_MAX || state.told.insert(mark);
        if new && fault.code != Code::Parent {
            let line = format!(
                "{}: {}",
                state.naming.shown(key),
                paths::show_line(&fault.text)
            );
            drop(state);
            self.say(&line);
        }
    }
    fn skipped(&self, key: &[u8], fault: &Fault) {
        let mut state = self.state();
        state.session_skipped += 1;
        let mark = mark(state.session, key);
        let new = state.told.len() >= REMEMBERED_MAX || state.told.insert(mark);
        if new {
            let line = format!(
                "{}: skipped: {}",
                state.naming.shown(key),
                paths::show_line(&fault.text)
            );
            drop(state);
            self.say(&line);
        }
    }
    fn seen(&self, key: &[u8]) -> bool {
        let state = self.state();
        state.done.contains(&mark(state.session, key))
    }
}
