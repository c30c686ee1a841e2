//! Who drives, and who wakes whom (`stp_host::engine::helm`): nothing that happened is slept over, whichever thread
//! saw it, and however loans, the engine's staying away and its being called back fall together.
//!
//! - One lock lets one thread drive: that is the mutex's doing. What can go wrong is what a thread knows when it lets
//!   go: events that it collected and did not use, a deadline that nobody waits for.
//! - The kernel reports an event once, to whoever collects first. The engine's thread may collect and find the node
//!   lent: it leaves notes. A wait's time-out is its thread's own, for the deadline that it knew when it let go.
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
    /// The step is done; letting go is next.
    Stepped,
    /// In the kernel, without the lock.
    Asleep,
    /// It has collected this, and no lock.
    Collected {
        socket: bool,
    },
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

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    engine: Engine,
    programs: Vec<Program>,
    caller: Caller,
    /// Reported by the kernel and not collected.
    edge: bool,
    kick: bool,
    /// The engine's wait ends at the deadline.
    timeout: bool,
    /// What the node has to do at a time: nobody has done it.
    deadline: bool,
    /// The time has come.
    due: bool,
    /// A socket had something, and no step has known of it.
    happened: bool,
    /// Told to the core, done by its next step.
    known: bool,
    notes: bool,
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
}

impl Helm {
    fn sound(programs: usize, loans: u8, events: u8) -> Self {
        Self {
            programs,
            loans,
            events,
            no_kick: false,
            drops_notes: false,
        }
    }

    /// A step: everything known is done, and what is due.
    fn step(world: &mut World) {
        if std::mem::take(&mut world.known) {
            world.happened = false;
        }
        if world.due {
            (world.due, world.deadline) = (false, false);
            // Who waits for the one that is done does not wait for the next.
            world.timeout = false;
            // The next one: a node always has one.
            if world.deadlines_left > 0 {
                world.deadlines_left -= 1;
                world.deadline = true;
            }
        }
    }

    fn take_notes(world: &mut World) {
        if std::mem::take(&mut world.has_notes) {
            world.known |= std::mem::take(&mut world.notes);
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
                Self::take_notes(world);
                Self::step(world);
                Engine::Stepped
            }
            Engine::Stepped => match world.deadline && world.due {
                // It came while it stepped: no wait.
                true => Engine::Looking,
                false => {
                    world.timeout = world.deadline;
                    Engine::Asleep
                }
            },
            Engine::Asleep => {
                (world.kick, world.timeout) = (false, false);
                let socket = std::mem::take(&mut world.edge);
                Engine::Collected { socket }
            }
            Engine::Collected { socket } => {
                match self.drops_notes && world.lent {
                    true => {}
                    false => world.notes |= socket,
                }
                match socket {
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
                world.known |= std::mem::take(&mut world.edge);
                world.commands = 0;
                Program::Turning
            }
            Program::Turning => {
                Self::take_notes(world);
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
            edge: false,
            kick: false,
            timeout: false,
            deadline: true,
            due: false,
            happened: false,
            known: false,
            notes: false,
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
            Engine::Asleep if !is_woken(world) => {}
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
                (next.edge, next.happened) = (true, true);
            }
            Act::TimeComes => next.due = true,
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing is slept over", |_, world: &World| {
                let left = world.commands > 0 || world.happened || world.notes || world.due;
                !(is_settled(world) && left)
            }),
            Property::always("a deadline is waited for", |_, world: &World| {
                let covered = !world.deadline || world.due || world.timeout;
                covered || !is_settled(world)
            }),
            Property::sometimes(REST, |helm: &Self, world| {
                is_settled(world) && helm.loans > 0 && world.loans_left == 0
            }),
        ]
    }
}

/// Something ends the engine's wait.
fn is_woken(world: &World) -> bool {
    world.kick || world.edge || (world.timeout && world.due)
}

/// Every thread rests and nothing is on its way that would wake one.
fn is_settled(world: &World) -> bool {
    let rest = world
        .programs
        .iter()
        .all(|program| *program == Program::Idle);
    let asleep = world.engine == Engine::Asleep && !is_woken(world);
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
