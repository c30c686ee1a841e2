//! The command queue and its eventfd (`stp_host::engine::handle`): a command never waits while the engine sleeps.
//!
//! - The queue itself is behind a mutex, nothing there is lock-free: what can go wrong is the order of lock, kick
//!   and sleep. A handle kicks after it unlocked, and only if the queue had been empty.
//! - The engine watches the eventfd by its edges and never reads it: an edge is used up by the wait that tells it.

use stateright::{Model, Property};

use crate::explore;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Engine {
    /// About to take all commands.
    Taking,
    /// Has taken them; about to wait.
    Stepping,
    Asleep,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    /// Commands that each handle has still to push.
    left: Vec<u8>,
    /// It unlocked, and will kick.
    kicks: Vec<bool>,
    queue: u8,
    edge: bool,
    engine: Engine,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Push(usize),
    Kick(usize),
    Take,
    Wait,
    Wake,
}

struct Queue {
    handles: usize,
    commands: u8,
    /// The engine uses the edge up after it took the commands, as one does who drains the eventfd too late.
    drains_late: bool,
}

impl Model for Queue {
    type State = World;
    type Action = Act;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            left: vec![self.commands; self.handles],
            kicks: vec![false; self.handles],
            queue: 0,
            edge: false,
            engine: Engine::Taking,
        }]
    }

    fn actions(&self, world: &World, acts: &mut Vec<Act>) {
        for handle in 0..self.handles {
            match world.kicks[handle] {
                true => acts.push(Act::Kick(handle)),
                false if world.left[handle] > 0 => acts.push(Act::Push(handle)),
                false => {}
            }
        }
        match world.engine {
            Engine::Taking => acts.push(Act::Take),
            Engine::Stepping => acts.push(Act::Wait),
            Engine::Asleep if world.edge => acts.push(Act::Wake),
            Engine::Asleep => {}
        }
    }

    fn next_state(&self, world: &World, act: Act) -> Option<World> {
        let mut next = world.clone();
        match act {
            Act::Push(handle) => {
                next.left[handle] -= 1;
                next.queue += 1;
                next.kicks[handle] = next.queue == 1;
            }
            Act::Kick(handle) => {
                next.kicks[handle] = false;
                next.edge = true;
            }
            Act::Take => {
                next.queue = 0;
                next.engine = Engine::Stepping;
            }
            Act::Wait => {
                if self.drains_late {
                    next.edge = false;
                }
                next.engine = Engine::Asleep;
            }
            Act::Wake => {
                next.edge = false;
                next.engine = Engine::Taking;
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always(
            "no command is slept over",
            |_, world: &World| {
                let coming = world.edge || world.kicks.contains(&true);
                world.queue == 0 || world.engine != Engine::Asleep || coming
            },
        )]
    }
}

#[test]
fn no_command_waits_while_the_engine_sleeps() {
    let queue = Queue {
        handles: 3,
        commands: 4,
        drains_late: false,
    };
    assert!(explore("command queue", queue).is_empty());
}

#[test]
fn an_engine_that_drains_late_is_found() {
    let queue = Queue {
        handles: 2,
        commands: 2,
        drains_late: true,
    };
    assert!(!explore("command queue, drained late", queue).is_empty());
}
