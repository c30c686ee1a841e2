//! The opening and the end of one stream between two nodes (`stp_core::node`), each program doing what it likes.
//!
//! - The link below is what `link.rs` promises: frames arrive once and in order, or the session ends and none does.
//! - A fin's acknowledgement travels on its own: by a segment or by the seat record, at any time after it was taken in.
//! - No time is assumed: every step may come late. The orphan rule, which is a time-out, may strike once a
//!   program has closed and its fin is acknowledged.

use std::collections::VecDeque;

use stateright::{Model, Property};

use crate::explore;

/// Bytes that each program may send, at most; the credit is one.
const BYTES: u8 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Frame {
    Open,
    Accept,
    Data(u8),
    Credit(u8),
    Fin(u8),
    Reset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    None,
    Opening,
    Offered,
    Open,
    Gone,
}

/// What a program was told of its stream's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Told {
    Nothing,
    Clean(u8),
    Reset,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct End {
    phase: Phase,
    sent: u8,
    limit: u8,
    fin_sent: bool,
    fin_acked: bool,
    received: u8,
    taken: u8,
    fin_received: bool,
    released: bool,
    told: Told,
    /// Bytes after which the program finished.
    total: Option<u8>,
    broken: bool,
    /// The node ended the stream before both sides had.
    reset: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    ends: [End; 2],
    /// By sender.
    wires: [VecDeque<Frame>; 2],
    /// A fin of this side was taken in, and it does not know yet.
    acks: [bool; 2],
    session: bool,
    /// Somebody reset, died, gave up, or the session ended: a reset may be told.
    disturbed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Arrive(usize),
    Ack(usize),
    Accept,
    Refuse,
    Send(usize),
    Take(usize),
    Finish(usize),
    Abort(usize),
    Release(usize),
    Orphan(usize),
    /// Both nodes end the session; what was under way is gone.
    SessionEnds,
}

/// What is broken in it, to show that it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    None,
    /// The end of a session is told as an end of file.
    FalseEnd,
    /// A stream is closed as soon as its own fin is acknowledged.
    EarlyClose,
    /// Who resets a stream does not say so.
    SilentReset,
}

struct Streams {
    flaw: Flaw,
    sessions_end: bool,
}

impl Streams {
    fn reset(&self, world: &mut World, side: usize) {
        let end = &mut world.ends[side];
        if !matches!(end.phase, Phase::None | Phase::Gone) {
            end.phase = Phase::Gone;
            if self.flaw != Flaw::SilentReset {
                world.wires[side].push_back(Frame::Reset);
            }
        }
        world.disturbed = true;
    }

    /// The stream is over for the program, behind what had arrived.
    fn end(&self, world: &mut World, side: usize) {
        let end = &mut world.ends[side];
        if matches!(end.phase, Phase::None | Phase::Gone) {
            return;
        }
        end.phase = Phase::Gone;
        end.reset = true;
        if !end.released && end.told == Told::Nothing {
            end.taken = end.received;
            end.told = match end.fin_received || self.flaw == Flaw::FalseEnd {
                true => Told::Clean(end.taken),
                false => Told::Reset,
            };
        }
    }

    fn close_if_done(&self, world: &mut World, side: usize) {
        let end = &mut world.ends[side];
        if end.phase != Phase::Open {
            return;
        }
        if end.fin_received
            && end.taken == end.received
            && end.told == Told::Nothing
            && !end.released
        {
            end.told = Told::Clean(end.taken);
        }
        let both = end.fin_received || self.flaw == Flaw::EarlyClose;
        let read = end.taken == end.received && (end.told != Told::Nothing || end.released);
        if end.fin_acked && both && (read || self.flaw == Flaw::EarlyClose) {
            end.phase = Phase::Gone;
        }
    }

    fn arrive(&self, world: &mut World, side: usize, frame: Frame) {
        let end = &mut world.ends[side];
        if frame == Frame::Open {
            end.phase = Phase::Offered;
            end.limit = 1;
            return;
        }
        if matches!(end.phase, Phase::None | Phase::Gone) {
            let answered = matches!(frame, Frame::Accept | Frame::Data(_) | Frame::Fin(_));
            if answered {
                world.wires[side].push_back(Frame::Reset);
            }
            if matches!(frame, Frame::Fin(_)) {
                world.acks[1 - side] = true;
            }
            return;
        }
        let fits = match frame {
            Frame::Open => false,
            Frame::Accept => {
                let fits = end.phase == Phase::Opening;
                end.phase = Phase::Open;
                end.limit = 1;
                fits
            }
            Frame::Data(offset) => {
                let fits = end.phase == Phase::Open
                    && !end.fin_received
                    && offset == end.received
                    && end.received < end.taken + 1;
                if fits && end.released {
                    return self.reset(world, side);
                }
                end.received += 1;
                fits
            }
            Frame::Credit(limit) => {
                let fits = end.phase == Phase::Open && limit >= end.limit;
                end.limit = limit;
                fits
            }
            Frame::Fin(offset) => {
                let fits = end.phase == Phase::Open && !end.fin_received && offset == end.received;
                end.fin_received = true;
                world.acks[1 - side] = true;
                fits
            }
            Frame::Reset => {
                self.end(world, side);
                return;
            }
        };
        world.ends[side].broken |= !fits;
        self.close_if_done(world, side);
    }
}

impl Model for Streams {
    type State = World;
    type Action = Act;

    fn init_states(&self) -> Vec<World> {
        let end = End {
            phase: Phase::None,
            sent: 0,
            limit: 0,
            fin_sent: false,
            fin_acked: false,
            received: 0,
            taken: 0,
            fin_received: false,
            released: false,
            told: Told::Nothing,
            total: None,
            broken: false,
            reset: false,
        };
        let opener = End {
            phase: Phase::Opening,
            ..end
        };
        vec![World {
            ends: [opener, end],
            wires: [VecDeque::from([Frame::Open]), VecDeque::new()],
            acks: [false; 2],
            session: true,
            disturbed: false,
        }]
    }

    fn actions(&self, world: &World, acts: &mut Vec<Act>) {
        for side in 0..2 {
            let end = &world.ends[side];
            if !world.wires[side].is_empty() {
                acts.push(Act::Arrive(1 - side));
            }
            if world.acks[side] {
                acts.push(Act::Ack(side));
            }
            let open = end.phase == Phase::Open;
            if open && !end.fin_sent && end.sent < end.limit.min(BYTES) {
                acts.push(Act::Send(side));
            }
            if open && !end.released && end.taken < end.received {
                acts.push(Act::Take(side));
            }
            if open && !end.fin_sent {
                acts.push(Act::Finish(side));
            }
            if open && !end.released {
                acts.extend([Act::Abort(side), Act::Release(side)]);
            }
            if open && end.released && end.fin_acked && !end.fin_received {
                acts.push(Act::Orphan(side));
            }
            if end.phase == Phase::Opening {
                acts.push(Act::Abort(side));
            }
        }
        if world.ends[1].phase == Phase::Offered {
            acts.extend([Act::Accept, Act::Refuse]);
        }
        let alive = |end: &End| !matches!(end.phase, Phase::None | Phase::Gone);
        if self.sessions_end && world.session && world.ends.iter().any(alive) {
            acts.push(Act::SessionEnds);
        }
    }

    fn next_state(&self, world: &World, act: Act) -> Option<World> {
        let mut next = world.clone();
        match act {
            Act::Arrive(side) => {
                let frame = next.wires[1 - side].pop_front()?;
                self.arrive(&mut next, side, frame);
            }
            Act::Ack(side) => {
                next.acks[side] = false;
                next.ends[side].fin_acked = true;
                self.close_if_done(&mut next, side);
            }
            Act::Accept => {
                next.ends[1].phase = Phase::Open;
                next.wires[1].push_back(Frame::Accept);
            }
            Act::Refuse => self.reset(&mut next, 1),
            Act::Send(side) => {
                let end = &mut next.ends[side];
                next.wires[side].push_back(Frame::Data(end.sent));
                end.sent += 1;
            }
            Act::Take(side) => {
                let end = &mut next.ends[side];
                end.taken += 1;
                if !end.fin_received {
                    next.wires[side].push_back(Frame::Credit(end.taken + 1));
                }
                self.close_if_done(&mut next, side);
            }
            Act::Finish(side) => {
                let end = &mut next.ends[side];
                end.fin_sent = true;
                end.total = Some(end.sent);
                next.wires[side].push_back(Frame::Fin(end.sent));
            }
            Act::Abort(side) => self.reset(&mut next, side),
            Act::Release(side) => {
                let end = &mut next.ends[side];
                if end.taken < end.received {
                    self.reset(&mut next, side);
                } else {
                    end.released = true;
                    if !end.fin_sent {
                        end.fin_sent = true;
                        end.total = Some(end.sent);
                        next.wires[side].push_back(Frame::Fin(end.sent));
                    }
                    self.close_if_done(&mut next, side);
                }
            }
            Act::Orphan(side) => self.reset(&mut next, side),
            Act::SessionEnds => {
                next.session = false;
                next.disturbed = true;
                next.wires = Default::default();
                next.acks = [false; 2];
                self.end(&mut next, 0);
                self.end(&mut next, 1);
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "a clean end is the other's clean end, behind every byte",
                |_, world: &World| {
                    (0..2).all(|side| match world.ends[side].told {
                        Told::Clean(bytes) => world.ends[1 - side].total == Some(bytes),
                        _ => true,
                    })
                },
            ),
            Property::always("every frame fits", |_, world: &World| {
                world.ends.iter().all(|end| !end.broken)
            }),
            Property::always("nothing is left", |model: &Self, world: &World| {
                let mut acts = Vec::new();
                model.actions(world, &mut acts);
                // Programs that do not close may wait for ever; nodes alone may not.
                !acts.is_empty()
                    || world
                        .ends
                        .iter()
                        .all(|end| matches!(end.phase, Phase::None | Phase::Gone))
            }),
            Property::always("a reset has a reason", |_, world: &World| {
                world.disturbed
                    || world.ends.iter().any(|end| end.released)
                    || world.ends.iter().all(|end| !end.reset)
            }),
            Property::always("who is left alone knows it", |_, world: &World| {
                let still = world.wires.iter().all(VecDeque::is_empty) && world.acks == [false; 2];
                (0..2).all(|side| {
                    let end = &world.ends[side];
                    let alone =
                        end.phase == Phase::Open && world.ends[1 - side].phase == Phase::Gone;
                    !(still && alone) || end.fin_received
                })
            }),
            Property::sometimes("both end cleanly", |_, world: &World| {
                world.ends.iter().all(|end| {
                    end.phase == Phase::Gone && end.told == Told::Clean(BYTES) && end.taken == BYTES
                })
            }),
        ]
    }
}

fn found(name: &str, flaw: Flaw, sessions_end: bool) -> Vec<&'static str> {
    let found = explore(name, Streams { flaw, sessions_end });
    let wanted = "both end cleanly";
    assert!(
        flaw != Flaw::None || found.contains(&wanted),
        "{wanted}: never"
    );
    found.into_iter().filter(|name| *name != wanted).collect()
}

#[test]
fn every_order_of_opening_and_closing_ends_well() {
    assert_eq!(
        found("open and close", Flaw::None, false),
        Vec::<&str>::new()
    );
    let name = "open and close, sessions end";
    assert_eq!(found(name, Flaw::None, true), Vec::<&str>::new());
}

#[test]
fn flaws_are_found() {
    assert!(!found("flaw: false end", Flaw::FalseEnd, true).is_empty());
    assert!(!found("flaw: closes early", Flaw::EarlyClose, false).is_empty());
    assert!(!found("flaw: silent reset", Flaw::SilentReset, false).is_empty());
}
