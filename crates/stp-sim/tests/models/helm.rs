//! Who drives, and who wakes whom (`stp_host::engine::helm`): nothing that happened is slept over, whichever thread
//! saw it, and however loans, the engine's staying away and its being called back fall together.
//!
//! - One lock lets one thread drive: that is the mutex's doing. What can go wrong is what a thread knows when it lets
//!   go: events that it collected and did not use, a timer that went off unseen, a deadline that nobody has set a
//!   timer for.
//! - The kernel reports an event once, to whoever collects first. The engine's thread may collect and find the node
//!   lent: it leaves notes. A program's thread that drives sets no timer.
//! - A parked engine looks up at least every `AWAY_MAX`, and stays while it is lent or away: the model lets that
//!   time pass at any moment.

use stateright::{Model, Property};

use crate::explore;

/// Where the engine's thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Engine {
    /// About to look whether it is to stay away.
    Looking,
    /// It saw that it is; about to take its place.
    Parking,
    Parked,
    /// It leaves that place.
    Unparking,
    /// It waits for the lock, or is about to.
    Wanting,
    /// It has the lock and has taken the commands; the notes are next.
    Driving,
    /// The step is done; the timer is next, and letting go.
    Stepped,
    /// In the kernel, without the lock.
    Asleep,
    /// It has collected this, and no lock.
    Collected(Seen),
    /// It has left notes, and will say so.
    Noting,
}

/// Where a program's thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Program {
    Idle,
    /// It lends itself, and waits for the lock.
    Lending,
    /// It has the lock; about to collect.
    Steering,
    /// It has collected, and taken the commands.
    Turning,
    /// Without the lock, about to say whether the engine shall stay away.
    Returning {
        comes_again: bool,
    },
    /// About to end the loan.
    Ending {
        comes_again: bool,
    },
    /// About to call the engine back.
    Calling {
        cleared: bool,
    },
    /// About to look whether the engine needs a kick.
    Checking,
}

/// Where a thread is that gives a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Caller {
    Idle,
    /// It has pushed.
    Pushed {
        first: bool,
    },
    /// It has kicked if it had to; the call back is next.
    Kicked,
    /// `away` is cleared; looks whether the engine is parked.
    Cleared,
}

/// What was reported and collected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Seen {
    socket: bool,
    timer: bool,
}

impl Seen {
    fn any(self) -> bool {
        self.socket || self.timer
    }

    fn with(self, other: Self) -> Self {
        Self {
            socket: self.socket || other.socket,
            timer: self.timer || other.timer,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    engine: Engine,
    programs: Vec<Program>,
    caller: Caller,
    /// Reported by the kernel and not collected.
    edge: Seen,
    kick: bool,
    /// The timer runs; the core believes so.
    timer_set: bool,
    believed_set: bool,
    /// What the node has to do at a time: nobody has done it.
    deadline: bool,
    /// The time has come.
    due: bool,
    /// Told to the core, done by its next step.
    known: bool,
    notes: Seen,
    has_notes: bool,
    commands: u8,
    lent: bool,
    away: bool,
    parked: bool,
    is_parked: bool,
    /// Left to happen.
    sockets_left: u8,
    deadlines_left: u8,
    commands_left: u8,
    loans_left: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Engine,
    /// Its time is over.
    AwayEnds,
    Program(usize),
    /// What the program waits for is there; or its loan is over.
    Leave(usize, bool),
    Caller,
    Socket,
    TimeComes,
}

struct Helm {
    programs: usize,
    loans: u8,
    events: u8,
    /// A loan ends without the kick for an engine that sleeps.
    no_kick: bool,
    /// What was collected without the lock is dropped if the node is lent.
    drops_notes: bool,
    /// The engine believes in its timer, whoever saw it go off.
    keeps_belief: bool,
}

impl Helm {
    fn sound(programs: usize, loans: u8, events: u8) -> Self {
        Self {
            programs,
            loans,
            events,
            no_kick: false,
            drops_notes: false,
            keeps_belief: false,
        }
    }

    fn note(&self, world: &mut World, seen: Seen) {
        world.known |= seen.socket;
        if seen.timer && !self.keeps_belief {
            world.believed_set = false;
        }
    }

    /// A step: everything known is done, and what is due.
    fn step(world: &mut World) {
        world.known = false;
        if world.due {
            (world.due, world.deadline) = (false, false);
            // The next one: a node always has one.
            if world.deadlines_left > 0 {
                world.deadlines_left -= 1;
                world.deadline = true;
            }
        }
    }

    fn take_notes(&self, world: &mut World) {
        if std::mem::take(&mut world.has_notes) {
            let notes = std::mem::take(&mut world.notes);
            self.note(world, notes);
        }
    }

    fn is_locked(world: &World) -> bool {
        let engine = matches!(world.engine, Engine::Driving | Engine::Stepped);
        let drives = |program: &Program| matches!(program, Program::Steering | Program::Turning);
        engine || world.programs.iter().any(drives)
    }

    fn engine_moves(&self, world: &mut World) {
        world.engine = match world.engine {
            Engine::Looking => match world.lent || world.away {
                true => Engine::Parking,
                false => Engine::Wanting,
            },
            Engine::Parking => {
                (world.parked, world.is_parked) = (true, true);
                Engine::Parked
            }
            Engine::Parked => Engine::Unparking,
            Engine::Unparking => {
                (world.parked, world.is_parked) = (false, false);
                Engine::Wanting
            }
            Engine::Wanting => {
                world.commands = 0;
                Engine::Driving
            }
            Engine::Driving => {
                self.take_notes(world);
                Self::step(world);
                Engine::Stepped
            }
            Engine::Stepped => match world.deadline && world.due {
                // It came while it stepped: no wait.
                true => Engine::Looking,
                false => {
                    if world.deadline && !world.believed_set {
                        (world.timer_set, world.believed_set) = (true, true);
                    }
                    Engine::Asleep
                }
            },
            Engine::Asleep => {
                world.kick = false;
                Engine::Collected(std::mem::take(&mut world.edge))
            }
            Engine::Collected(seen) => {
                match self.drops_notes && world.lent {
                    true => {}
                    false => world.notes = world.notes.with(seen),
                }
                match seen.any() {
                    true => Engine::Noting,
                    false => Engine::Looking,
                }
            }
            Engine::Noting => {
                world.has_notes = true;
                Engine::Looking
            }
        };
    }

    fn program_moves(&self, world: &mut World, at: usize) {
        world.programs[at] = match world.programs[at] {
            Program::Idle => {
                world.loans_left -= 1;
                world.lent = true;
                Program::Lending
            }
            Program::Lending => Program::Steering,
            Program::Steering => {
                world.kick = false;
                let seen = std::mem::take(&mut world.edge);
                self.note(world, seen);
                world.commands = 0;
                Program::Turning
            }
            Program::Turning => {
                self.take_notes(world);
                Self::step(world);
                Program::Steering
            }
            Program::Returning { comes_again } => {
                world.away |= comes_again;
                Program::Ending { comes_again }
            }
            Program::Ending { comes_again } => {
                world.lent = false;
                match comes_again {
                    true => Program::Checking,
                    false => Program::Calling { cleared: false },
                }
            }
            Program::Calling { cleared: false } => {
                world.away = false;
                Program::Calling { cleared: true }
            }
            Program::Calling { cleared: true } => {
                if world.is_parked && !world.lent {
                    world.parked = false;
                }
                Program::Checking
            }
            Program::Checking => {
                if !world.is_parked && !self.no_kick {
                    world.kick = true;
                }
                Program::Idle
            }
        };
    }

    fn caller_moves(world: &mut World) {
        world.caller = match world.caller {
            Caller::Idle => {
                world.commands_left -= 1;
                world.commands += 1;
                Caller::Pushed {
                    first: world.commands == 1,
                }
            }
            Caller::Pushed { first } => {
                world.kick |= first;
                Caller::Kicked
            }
            Caller::Kicked => {
                world.away = false;
                Caller::Cleared
            }
            Caller::Cleared => {
                if world.is_parked && !world.lent {
                    world.parked = false;
                }
                Caller::Idle
            }
        };
    }
}

impl Model for Helm {
    type State = World;
    type Action = Act;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            engine: Engine::Looking,
            programs: vec![Program::Idle; self.programs],
            caller: Caller::Idle,
            edge: Seen::default(),
            kick: false,
            timer_set: false,
            believed_set: false,
            deadline: true,
            due: false,
            known: false,
            notes: Seen::default(),
            has_notes: false,
            commands: 0,
            lent: false,
            away: false,
            parked: false,
            is_parked: false,
            sockets_left: self.events,
            deadlines_left: self.events,
            commands_left: self.events,
            loans_left: self.loans,
        }]
    }

    fn actions(&self, world: &World, acts: &mut Vec<Act>) {
        let locked = Self::is_locked(world);
        match world.engine {
            Engine::Wanting if locked => {}
            Engine::Asleep if !(world.kick || world.edge.any()) => {}
            // Called back, or neither lent nor away any more when it looks up.
            Engine::Parked if world.parked && (world.lent || world.away) => {}
            _ => acts.push(Act::Engine),
        }
        if world.away {
            acts.push(Act::AwayEnds);
        }
        for (at, program) in world.programs.iter().enumerate() {
            match program {
                Program::Idle if world.loans_left == 0 || world.lent => {}
                Program::Lending if locked => {}
                Program::Steering => acts.extend([
                    Act::Program(at),
                    Act::Leave(at, true),
                    Act::Leave(at, false),
                ]),
                _ => acts.push(Act::Program(at)),
            }
        }
        if world.caller != Caller::Idle || world.commands_left > 0 {
            acts.push(Act::Caller);
        }
        if world.sockets_left > 0 {
            acts.push(Act::Socket);
        }
        if world.deadline && !world.due {
            acts.push(Act::TimeComes);
        }
    }

    fn next_state(&self, world: &World, act: Act) -> Option<World> {
        let mut next = world.clone();
        match act {
            Act::Engine => self.engine_moves(&mut next),
            Act::AwayEnds => next.away = false,
            Act::Program(at) => self.program_moves(&mut next, at),
            // At least one step was made: it steers only after that, or has just begun.
            Act::Leave(at, comes_again) => {
                next.programs[at] = Program::Returning { comes_again };
            }
            Act::Caller => Self::caller_moves(&mut next),
            Act::Socket => {
                next.sockets_left -= 1;
                next.edge.socket = true;
            }
            Act::TimeComes => {
                next.due = true;
                if std::mem::take(&mut next.timer_set) {
                    next.edge.timer = true;
                }
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing is slept over", |_, world: &World| {
                let left = world.commands > 0 || world.known || world.notes.any() || world.due;
                !(is_settled(world) && left)
            }),
            Property::always("a deadline has its timer", |_, world: &World| {
                let covered = !world.deadline || world.due || world.timer_set;
                covered || !is_settled(world)
            }),
            Property::sometimes(REST, |helm: &Self, world| {
                is_settled(world) && helm.loans > 0 && world.loans_left == 0
            }),
        ]
    }
}

/// Every thread rests and nothing is on its way that would wake one.
fn is_settled(world: &World) -> bool {
    let rest = world
        .programs
        .iter()
        .all(|program| *program == Program::Idle);
    let asleep = world.engine == Engine::Asleep && !world.kick && !world.edge.any();
    rest && asleep && world.caller == Caller::Idle
}

const REST: &str = "the engine sleeps after loans";

fn faults(name: &str, helm: Helm) -> Vec<&'static str> {
    let mut found = explore(name, helm);
    found.retain(|property| *property != REST);
    found
}

#[test]
fn nothing_is_slept_over_whoever_drives() {
    assert_eq!(explore("helm, one program", Helm::sound(1, 2, 2)), [REST]);
    assert_eq!(explore("helm, two programs", Helm::sound(2, 2, 1)), [REST]);
}

#[test]
#[ignore = "six million states: a minute"]
fn nothing_is_slept_over_in_three_loans() {
    assert_eq!(explore("helm, one program", Helm::sound(1, 3, 2)), [REST]);
    assert_eq!(explore("helm, two programs", Helm::sound(2, 3, 1)), [REST]);
}

#[test]
fn a_loan_that_ends_without_a_kick_is_found() {
    let helm = Helm {
        no_kick: true,
        ..Helm::sound(1, 2, 1)
    };
    assert!(!faults("helm, no kick", helm).is_empty());
}

#[test]
fn events_that_are_dropped_are_found() {
    let helm = Helm {
        drops_notes: true,
        ..Helm::sound(1, 2, 1)
    };
    assert!(!faults("helm, notes dropped", helm).is_empty());
}

#[test]
fn a_timer_that_went_off_unseen_is_found() {
    let helm = Helm {
        keeps_belief: true,
        ..Helm::sound(1, 2, 1)
    };
    assert!(!faults("helm, timer unseen", helm).is_empty());
}
