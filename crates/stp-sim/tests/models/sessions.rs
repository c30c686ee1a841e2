//! Sessions between two nodes (`stp_core` link.rs, peers.rs): whoever ends them and however often, both agree on new ones.
//!
//! - A node shows its number and the peer's that it is with (0: waits) in its record, when it comes to that; its peer
//!   reads what stands there, when it comes to that. Nothing is assumed of time.
//! - Streams end with the session that they were opened in. A number of the peer's is followed once only: nothing that a
//!   node opened in a session can have been ended by the peer while that node keeps it.

use stateright::{Model, Property};

use crate::explore;

/// What a record shows of a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Entry {
    epoch: u8,
    acked: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Node {
    mine: u8,
    /// The peer's number that it is with; 0: it waits.
    peer: u8,
    floor: u8,
    /// The peer's record as it was last read.
    read: Entry,
    /// How often it may yet end the session by itself.
    ends: u8,
    followed: u8,
    followed_twice: bool,
}

impl Node {
    fn entry(self) -> Entry {
        Entry {
            epoch: self.mine,
            acked: self.peer,
        }
    }

    fn follow(&mut self, epoch: u8) {
        self.followed_twice |= epoch <= self.followed;
        self.followed = self.followed.max(epoch);
        self.peer = epoch;
    }

    /// `Node::end_link`.
    fn end(&mut self, rules: Rules) {
        self.floor = self.floor.max(self.peer);
        self.peer = 0;
        self.mine += 1;
        self.sync(rules);
    }

    /// `Node::sync_link`.
    fn sync(&mut self, rules: Rules) {
        let Entry { epoch, acked } = self.read;
        if epoch == 0 {
            return;
        }
        self.mine = self.mine.max(1);
        if self.peer != 0 && epoch > self.peer {
            if acked == 0 || !rules.knows_answers {
                self.mine += 1;
            }
            self.peer = 0;
            self.floor = epoch - 1;
        }
        let is_meant = acked == 0 || acked == self.mine || !rules.waits_for_its_own;
        if self.peer == 0 && epoch > self.floor && is_meant {
            self.follow(epoch);
        }
        let unaware = self.peer == 0 && epoch <= self.floor && acked == self.mine;
        if unaware {
            self.end(rules);
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Rules {
    /// A rise beside this node's own number is an answer and is not answered.
    knows_answers: bool,
    /// A peer that is with an earlier number of this node's is waited for.
    waits_for_its_own: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    nodes: [Node; 2],
    records: [Entry; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Write(usize),
    Read(usize),
    End(usize),
}

struct Sessions {
    ends: [u8; 2],
    rules: Rules,
}

impl Sessions {
    /// What changes something.
    fn moves(&self, world: &World) -> Vec<Act> {
        let mut moves = Vec::new();
        for number in 0..2 {
            let node = world.nodes[number];
            if node.entry() != world.records[number] {
                moves.push(Act::Write(number));
            }
            let mut reader = node;
            reader.read = world.records[1 - number];
            reader.sync(self.rules);
            if reader != node {
                moves.push(Act::Read(number));
            }
        }
        moves
    }
}

impl Model for Sessions {
    type State = World;
    type Action = Act;

    fn init_states(&self) -> Vec<World> {
        let nodes = self.ends.map(|ends| Node {
            ends,
            ..Node::default()
        });
        // One opens a stream, or both at the same moment.
        let opened = |both: bool| {
            let mut nodes = nodes;
            nodes[0].mine = 1;
            nodes[1].mine = u8::from(both);
            World {
                nodes,
                records: [Entry::default(); 2],
            }
        };
        vec![opened(false), opened(true)]
    }

    fn actions(&self, world: &World, acts: &mut Vec<Act>) {
        acts.extend(self.moves(world));
        for (number, node) in world.nodes.iter().enumerate() {
            if node.ends > 0 && node.mine > 0 {
                acts.push(Act::End(number));
            }
        }
    }

    fn next_state(&self, world: &World, act: Act) -> Option<World> {
        let mut next = world.clone();
        match act {
            Act::Write(number) => next.records[number] = next.nodes[number].entry(),
            Act::Read(number) => {
                next.nodes[number].read = next.records[1 - number];
                next.nodes[number].sync(self.rules);
            }
            Act::End(number) => {
                next.nodes[number].ends -= 1;
                next.nodes[number].end(self.rules);
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("numbers stay small", |model: &Self, world: &World| {
                let most = 3 + 2 * model.ends.iter().sum::<u8>();
                world.nodes.iter().all(|node| node.mine <= most)
            }),
            Property::always("no session is followed twice", |_, world: &World| {
                !world.nodes.iter().any(|node| node.followed_twice)
            }),
            Property::always("at rest both agree", |model: &Self, world: &World| {
                let [one, other] = world.nodes;
                let agree = one.peer == other.mine && other.peer == one.mine;
                agree || !model.moves(world).is_empty()
            }),
        ]
    }

    fn within_boundary(&self, world: &World) -> bool {
        world.nodes.iter().all(|node| node.mine < 40)
    }
}

const RULES: Rules = Rules {
    knows_answers: true,
    waits_for_its_own: true,
};

#[test]
fn nodes_agree_on_sessions_however_often_they_end_them() {
    for ends in [[1, 0], [1, 1], [3, 2]] {
        let sessions = Sessions { ends, rules: RULES };
        assert!(explore(&format!("sessions, ends {ends:?}"), sessions).is_empty());
    }
}

/// The rules as they were: two nodes answered each other's answers, without end, and every stream between them broke,
/// every 20 ms. One node that ended its session once was enough, if its peer had just begun.
#[test]
fn answers_that_are_answered_are_found() {
    let rules = Rules {
        knows_answers: false,
        waits_for_its_own: false,
    };
    for ends in [[1, 0], [2, 1]] {
        let found = explore("sessions, answered", Sessions { ends, rules });
        assert!(!found.is_empty(), "ends {ends:?}");
    }
}
