//! The lane: a writer without room waits for the bell, and bytes of two ways keep their order.

use std::collections::VecDeque;
use std::sync::Arc;

use loom::thread;

use crate::bell::Bell;
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Mutex, Ordering, futex};
use crate::{every_order, is_found};

trait Rings: Default + Send + Sync + 'static {
    fn ticket(&self) -> u32;
    fn ring(&self);
    fn wait(&self, ticket: u32);
}

impl Rings for Bell {
    fn ticket(&self) -> u32 {
        Bell::ticket(self)
    }

    fn ring(&self) {
        Bell::ring(self);
    }

    fn wait(&self, ticket: u32) {
        let _ = Bell::wait(self, ticket, None);
    }
}

/// A bell that tells nothing but that it rang.
#[derive(Default)]
struct Dull(AtomicU32);

impl Rings for Dull {
    fn ticket(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    fn ring(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
        futex::wake_all(&self.0);
    }

    fn wait(&self, ticket: u32) {
        let _ = futex::wait(&self.0, ticket, None);
    }
}

/// A writer that asks for room under the helm's lock, and an engine that makes some.
fn writer_gets_room(ticket_under_lock: bool) {
    let shared = Arc::new((Mutex::new(false), Bell::default()));
    let engine = thread::spawn({
        let shared = Arc::clone(&shared);
        move || {
            *shared.0.lock().unwrap() = true;
            shared.1.ring();
        }
    });
    let (room, bell) = &*shared;
    loop {
        let ticket = {
            let room = room.lock().unwrap();
            if *room {
                break;
            }
            ticket_under_lock.then(|| bell.ticket())
        };
        let ticket = ticket.unwrap_or_else(|| bell.ticket());
        let _ = bell.wait(ticket, None);
    }
    engine.join().unwrap();
}

/// A writer that waits while another thread shows the descriptor to others.
fn writer_learns_of_others<B: Rings>() {
    let shared = Arc::new((AtomicBool::new(false), B::default()));
    let other = thread::spawn({
        let shared = Arc::clone(&shared);
        move || {
            shared.0.swap(true, Ordering::AcqRel);
            shared.1.ring();
        }
    });
    let (public, bell) = &*shared;
    loop {
        let ticket = bell.ticket();
        if public.load(Ordering::Acquire) {
            break;
        }
        bell.wait(ticket);
    }
    other.join().unwrap();
}

#[test]
fn no_ring_is_lost() {
    every_order(|| writer_gets_room(true));
    every_order(writer_learns_of_others::<Bell>);
}

#[test]
fn a_ticket_that_is_drawn_too_late_is_found() {
    is_found(|| writer_gets_room(false));
}

#[test]
fn a_bell_that_does_not_release_is_found() {
    is_found(writer_learns_of_others::<Dull>);
}

/// The engine's side of a stream's order, as `driver/lane.rs` has it, without everything else.
#[derive(Default)]
struct Engine {
    drained_at: Option<u64>,
    sent: Vec<u8>,
}

/// A program's end: its socket, and how often it was written into.
struct Stream {
    socket: Mutex<VecDeque<u8>>,
    written: AtomicU64,
    engine: Mutex<Engine>,
    counts_first: bool,
}

impl Stream {
    fn new(counts_first: bool) -> Self {
        Self {
            socket: Mutex::new(VecDeque::new()),
            written: AtomicU64::new(0),
            engine: Mutex::new(Engine::default()),
            counts_first,
        }
    }

    fn by_socket(&self, byte: u8) {
        if self.counts_first {
            self.written.fetch_add(1, Ordering::AcqRel);
        }
        self.socket.lock().unwrap().push_back(byte);
        if !self.counts_first {
            self.written.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn by_lane(&self, byte: u8) {
        let written = self.written.load(Ordering::Acquire);
        let mut engine = self.engine.lock().unwrap();
        if engine.drained_at != Some(written) {
            engine.sent.extend(self.socket.lock().unwrap().drain(..));
            engine.drained_at = Some(written);
        }
        engine.sent.push(byte);
    }

    fn pull(&self) {
        let mut engine = self.engine.lock().unwrap();
        engine.sent.extend(self.socket.lock().unwrap().drain(..));
    }
}

/// One thread writes by the socket, then by the lane; another writes by the lane meanwhile.
fn order_is_kept(counts_first: bool) {
    let stream = Arc::new(Stream::new(counts_first));
    let other = thread::spawn({
        let stream = Arc::clone(&stream);
        move || stream.by_lane(b'x')
    });
    stream.by_socket(b'a');
    stream.by_lane(b'b');
    other.join().unwrap();
    stream.pull();
    let mut sent = stream.engine.lock().unwrap().sent.clone();
    sent.retain(|byte| *byte != b'x');
    assert_eq!(sent, b"ab");
}

#[test]
fn bytes_of_one_thread_keep_their_order_both_ways() {
    every_order(|| order_is_kept(false));
}

#[test]
fn a_write_that_is_counted_before_it_is_done_is_found() {
    is_found(|| order_is_kept(true));
}
