//! Orders: calls in random order at both ends, on TCP and across two systems, compared call by call.
//!
//! - A play is made from its seed and from what the calls gave, on TCP first. On the volume each call must give the same,
//!   and after it both ends' sockets must come to the same state: `poll`'s events and the number of bytes that wait.
//! - One difference is known (docs/SOCKETS.md): only `SO_ERROR` and `connect` tell `ECONNREFUSED`. It is asked first.

use std::io::Write as _;

use stp_tests::{Cmd, HANG, Proc, Stage, Transport, wait_for};

const PLAYS: u64 = 12;
const STEPS: usize = 24;

/// A program that obeys.
struct End {
    process: Proc,
    orders: std::process::ChildStdin,
    answers: usize,
}

impl End {
    fn start(command: Cmd) -> Self {
        let agent = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/run/data/agent.py");
        let mut process = command.arg(agent).stdin_pipe().spawn();
        Self {
            orders: process.stdin(),
            process,
            answers: 0,
        }
    }

    fn tell(&mut self, order: &str) {
        writeln!(self.orders, "{order}").expect("the agent lives");
        self.answers += 1;
    }

    /// The answer to the last order.
    fn hear(&mut self) -> String {
        let number = self.answers;
        self.process.wait_out("an answer", |out| {
            let last = out.split_inclusive('\n').nth(number - 1)?;
            last.strip_suffix('\n').map(str::to_owned)
        })
    }
}

/// An order, to the client (0) or the server (1), and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    end: usize,
    order: String,
    said: String,
    states: [String; 2],
}

/// What is ordered next: decided by the seed, and by what came of the orders before.
struct Play {
    random: u64,
    /// The names of the client's and the server's connected sockets.
    names: [Vec<String>; 2],
    listens: bool,
    made: usize,
    queue: Vec<(usize, String)>,
}

impl Play {
    fn new(seed: u64) -> Self {
        Self {
            random: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            names: Default::default(),
            listens: true,
            made: 0,
            // Backwards.
            queue: vec![(1, "listen L PORT".into()), (1, "socket L".into())],
        }
    }

    fn below(&mut self, limit: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 33) as usize % limit
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }

    /// Takes note of what came of an order.
    fn note(&mut self, step: &Step) {
        let words: Vec<&str> = step.order.split(' ').collect();
        match (words[0], step.said.as_str()) {
            ("socket", _) if step.end == 0 => self.names[0].push(words[1].to_owned()),
            ("accept", "ok") => self.names[1].push(words[2].to_owned()),
            ("close" | "abort", _) => self.names[step.end].retain(|name| name != words[1]),
            ("connect", _) => self.queue.push((0, format!("error {}", words[1]))),
            _ => {}
        }
    }

    fn next(&mut self) -> (usize, String) {
        if let Some(order) = self.queue.pop() {
            return order;
        }
        let end = self.below(2);
        let what = self.below(20);
        if what < 3 {
            let name = format!("c{}", self.made);
            self.made += 1;
            self.queue.push((0, format!("connect {name} HOST PORT")));
            if what == 0 {
                self.queue.push((0, format!("bind {name}")));
            }
            return (0, format!("socket {name}"));
        }
        if what < 7 && self.listens {
            if self.below(20) == 0 {
                self.listens = false;
                return (1, "close L".into());
            }
            self.made += 1;
            return (1, format!("accept L s{}", self.made));
        }
        if self.names[end].is_empty() {
            return (0, "states".into());
        }
        let choice = self.below(self.names[end].len());
        let name = self.names[end][choice].clone();
        let verbs = [
            "send x 1",
            "send y 10",
            "send z 1000",
            "send w 30000",
            "recv 1",
            "recv 7",
            "recv 100000",
            "recv 100000",
            "peek 7",
            "peek 100000",
            "shutdown 0",
            "shutdown 1",
            "shutdown 1",
            "shutdown 2",
            "close",
            "abort",
            "urgent U",
            "urgent V",
            "oob",
            "inline",
            "mark",
            "error",
            "peer",
            "disconnect",
        ];
        let verb = self.one(&verbs);
        let (verb, rest) = verb.split_once(' ').unwrap_or((verb, ""));
        (end, format!("{verb} {name} {rest}").trim_end().to_owned())
    }
}

/// The steps of a play; `known` are TCP's, which the states are waited for.
fn perform(stage: &Stage, ends: &mut [End; 2], seed: u64, known: Option<&[Step]>) -> Vec<Step> {
    let port = stage.port().to_string();
    let mut play = Play::new(seed);
    let mut steps: Vec<Step> = Vec::new();
    for number in 0..STEPS {
        let (end, order) = play.next();
        let words = order
            .replace("PORT", &port)
            .replace("HOST", stage.server_name());
        ends[end].tell(&words);
        let said = ends[end].hear();
        let mut last = None;
        let what = format!("play {seed}: the end of `{order}` (told {said}) after {steps:#?}");
        let states = wait_for(&what, HANG, || {
            ends.iter_mut().for_each(|end| end.tell("states"));
            let states = ends.each_mut().map(|end| end.hear());
            // TCP over loopback has come to its end when it has the same state twice.
            let settled = match known {
                Some(known) => {
                    let wanted = &known[number];
                    assert_eq!((&order, &said), (&wanted.order, &wanted.said), "{what}");
                    states == wanted.states
                }
                None => last.as_ref() == Some(&states),
            };
            last = Some(states.clone());
            settled.then_some(states)
        });
        let step = Step {
            end,
            order,
            said,
            states,
        };
        play.note(&step);
        steps.push(step);
    }
    for end in ends {
        end.tell("clear");
        end.hear();
    }
    steps
}

/// Whatever two programs call, and in what order: they are told what TCP tells.
#[test]
fn any_order_of_calls_is_answered_as_by_tcp() {
    let mut known: Vec<Vec<Step>> = Vec::new();
    for transport in [Transport::Plain, Transport::Stp] {
        let Some(stage) = Stage::open("orders", transport, &["python3"]) else {
            return;
        };
        let mut ends = [stage.client("python3"), stage.server("python3")].map(End::start);
        for seed in 0..PLAYS {
            let steps = perform(
                &stage,
                &mut ends,
                seed,
                known.get(seed as usize).map(Vec::as_slice),
            );
            if transport == Transport::Plain {
                known.push(steps);
            }
        }
        drop(ends);
        stage.end();
    }
}
