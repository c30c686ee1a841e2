//! Gifts: streams that programs give to other programs, on their own system and on others, while bytes flow both ways.
//!
//! - A side of a connection has one owner. Who takes it has it; its giver has it back if the gift expires, is withdrawn
//!   or cannot be moved; never both, and never two takers.
//! - The taker goes on at the very byte: what it is handed and what it sends is held against the pattern.
//! - Once it is taken, nothing that befalls the giver excuses a reset; while it is on its way, both engines' fates do.
//! - A giver that hears that its engine is gone, or the stream, cannot know whether a taker has it: it touches nothing
//!   before the takers have their answers.
//! - Every gift is settled, and every taker answered.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use stp_format::ProcessName;
use stp_host::control::{EndName, GiftId, Offer, Outcome, StreamToken, Taken};
use stp_host::engine::{Command, GiftError, HandedEnd, Reply};

use crate::local::Host;
use crate::mutation::Mutation;
use crate::world::{MS, Phase, SECOND, State, Task, US, World};

/// An engine may lawfully end a stream whose move took so long (`HELD_MAX`, `ADOPT_MAX`).
const HELD_LONG: u64 = 100 * SECOND;

/// One offer of one side of a connection.
#[derive(Debug)]
pub(crate) struct Gift {
    pub(crate) connection: usize,
    pub(crate) side: usize,
    /// The giver's socket.
    end: usize,
    node: usize,
    name: ProcessName,
    id: Option<GiftId>,
    pub(crate) at: u64,
    /// The program that gives is there, and holds its socket.
    giver: bool,
    /// What the giver's engine said; `Some(None)`: it went without a word.
    settled: Option<Option<Outcome>>,
    taken: bool,
    takers: Vec<usize>,
    /// When the side had a program again, or none any more.
    over_at: Option<u64>,
}

/// A program that waits for a gift.
#[derive(Debug)]
pub(crate) struct Taker {
    gift: usize,
    node: usize,
    life: usize,
    stage: Stage,
    /// It ends as soon as the stream is its own.
    dies: bool,
    /// So long it means to wait.
    until: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Coming,
    Waiting,
    Handed { end: usize, gift: GiftId },
    Confirming { end: usize },
    Over,
}

/// What is to be done about a gift or by a taker.
#[derive(Clone, Copy, Debug)]
pub(crate) enum GiftTask {
    Withdraw(usize),
    GiverDies(usize),
    Take(usize),
    CancelTake(usize),
    Decide(usize),
}

/// What engines answered.
pub(crate) enum News {
    Stands(usize, Option<Result<GiftId, GiftError>>),
    Settled(usize, Option<Outcome>),
    Handed(usize, Option<Result<(GiftId, usize), GiftError>>),
    Taken(usize, Option<Result<Succession, GiftError>>),
}

/// A side of a connection that has another socket, or the same for another program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Succession {
    side: (usize, usize),
    old: usize,
}

/// Gifts, takers, and what was said to them.
#[derive(Default)]
pub(crate) struct Gifts {
    pub(crate) all: Vec<Gift>,
    takers: Vec<Taker>,
    news: Arc<Mutex<Vec<News>>>,
    /// Taken within an engine, and by another node's; given back.
    pub(crate) handed: u64,
    pub(crate) moved: u64,
    pub(crate) returned: u64,
}

impl Gifts {
    /// A reply that becomes news.
    fn reply<T: 'static>(&self, tell: impl FnOnce(Option<T>) -> News + Send + 'static) -> Reply<T> {
        let news = Arc::clone(&self.news);
        Reply::new(move |answer| {
            let told = tell(answer);
            let mut news = news.lock().unwrap_or_else(PoisonError::into_inner);
            news.push(told);
        })
    }

    /// Whether a side of this connection has been on its way for so long that an engine may have ended it.
    pub(crate) fn held_long(&self, connection: usize, now: u64) -> bool {
        let held = |gift: &Gift| gift.over_at.unwrap_or(now) - gift.at > HELD_LONG;
        let mut gifts = self.all.iter();
        gifts.any(|gift| gift.connection == connection && held(gift))
    }

    /// Whether a taker may have a gift yet.
    fn is_awaited(&self, gift: &Gift) -> bool {
        let mut stages = gift.takers.iter().map(|taker| self.takers[*taker].stage);
        stages.any(|stage| !matches!(stage, Stage::Coming | Stage::Over))
    }

    /// A gift that is not settled, or a taker who was not answered in time: some come late, and wait for a gift that is over.
    pub(crate) fn left_over(&self, now: u64) -> Option<String> {
        let gift = self
            .all
            .iter()
            .find(|gift| gift.settled.is_none() || gift.over_at.is_none());
        let overdue = |taker: &&Taker| match taker.stage {
            Stage::Over => false,
            Stage::Coming | Stage::Waiting => taker.until < now,
            Stage::Handed { .. } | Stage::Confirming { .. } => true,
        };
        let taker = self.takers.iter().find(overdue);
        let gift = gift.map(|gift| format!("a gift is not settled: {gift:?}"));
        gift.or_else(|| taker.map(|taker| format!("a taker was not answered: {taker:?}")))
    }
}

/// The side that a taker was told it has, and its socket until now: at once, since its bytes may follow at once.
fn succeed(host: &Host, end: usize, taken: &Taken) -> Option<Succession> {
    let mut sockets = host.lock();
    let sides = [(taken.local, 0), (taken.peer, 1)];
    let (opener, side) = sides.into_iter().find(|(name, _)| name.port >= 2000)?;
    let asked = sockets.asked.get_mut(&(opener.system, opener.port))?;
    let connection = asked.connection;
    let old = asked.ends[side].replace(end)?;
    sockets.succeed(end, old, taken.token);
    Some(Succession {
        side: (connection, side),
        old,
    })
}

impl World {
    /// A program offers its stream. It waits until the gift is settled.
    pub(crate) fn give(&mut self, end: usize, token: StreamToken) {
        let (connection, side, node) = {
            let sockets = self.host.lock();
            let this = &sockets.ends[end];
            (this.connection, this.side, this.node)
        };
        let number = self.gifts.all.len();
        let far = self.connections[connection].node(1 - side);
        let to = match self.rng.percent(20) {
            true => node,
            // The far system's own programs cannot take it but through another of its nodes.
            false => match self.rng.below(self.nodes.len() as u64) as usize {
                other if other == far && self.rng.percent(90) => node,
                other => other,
            },
        };
        let to = self.nodes[to].system;
        let name: ProcessName = format!("gift-{number}").parse().expect("a good name");
        let wait = self.rng.spread(10, 20_000) * MS;
        self.say(|| {
            format!("gift {number}: side {side} of connection {connection}, node {node}, to {to}")
        });
        self.gifts.all.push(Gift {
            connection,
            side,
            end,
            node,
            name,
            id: None,
            at: self.now,
            giver: true,
            settled: None,
            taken: false,
            takers: Vec::new(),
            over_at: None,
        });
        self.send_takers(number, &to, wait);
        if self.rng.percent(15) {
            let after = self.rng.below(wait + 1);
            self.at(after, Task::Gift(GiftTask::Withdraw(number)));
        }
        if self.rng.percent(15) {
            let after = self.rng.below(wait + 1);
            self.at(after, Task::Gift(GiftTask::GiverDies(number)));
        }
        let [local, peer] = self.connections[connection].names(side);
        let name_of = |(node, port): (usize, u16)| EndName {
            system: self.nodes[node].system,
            port,
        };
        let offer = Box::new(Offer {
            token,
            to,
            name,
            wait: Duration::from_nanos(wait),
            local: name_of(local),
            peer: name_of(peer),
        });
        let mutation = self.options.mutation;
        let outcome = self.gifts.reply(move |outcome| {
            let outcome = match (outcome, mutation) {
                (Some(Outcome::Taken), Some(Mutation::GiftStaysToo)) => Some(Outcome::Expired),
                (outcome, _) => outcome,
            };
            News::Settled(number, outcome)
        });
        let reply = self.gifts.reply(move |answer| News::Stands(number, answer));
        {
            let mut sockets = self.host.lock();
            sockets.copy(end);
            sockets.offered.insert(connection);
        }
        let give = Command::Give {
            offer,
            end,
            outcome,
            reply,
        };
        self.command(node, give);
    }

    /// Nobody, one or two programs of that system want it.
    fn send_takers(&mut self, gift: usize, to: &stp_format::SystemName, wait: u64) {
        let nodes: Vec<usize> = (0..self.nodes.len())
            .filter(|node| self.nodes[*node].system == *to)
            .collect();
        for _ in 0..[0, 1, 1, 1, 2][self.rng.below(5) as usize] {
            let node = nodes[self.rng.below(nodes.len() as u64) as usize];
            let dies = self.rng.percent(10);
            self.gifts.takers.push(Taker {
                gift,
                node,
                life: usize::MAX,
                stage: Stage::Coming,
                dies,
                until: u64::MAX,
            });
            let taker = self.gifts.takers.len() - 1;
            self.gifts.all[gift].takers.push(taker);
            match self.rng.percent(30) {
                true => self.take(taker),
                false => {
                    let after = self.rng.spread(1, wait * 6 / 5);
                    self.at(after, Task::Gift(GiftTask::Take(taker)));
                }
            }
        }
    }

    pub(crate) fn perform_gift(&mut self, task: GiftTask) {
        match task {
            GiftTask::Withdraw(gift) => {
                let Gift {
                    id, node, settled, ..
                } = self.gifts.all[gift];
                if let (Some(id), None) = (id, settled) {
                    self.command(node, Command::Withdraw { gift: id });
                }
            }
            GiftTask::GiverDies(gift) => self.giver_dies(gift),
            GiftTask::Take(taker) => self.take(taker),
            GiftTask::CancelTake(taker) => {
                let Taker {
                    node, life, stage, ..
                } = self.gifts.takers[taker];
                if stage == Stage::Waiting && self.nodes[node].life == life {
                    let ticket = taker as u64;
                    self.command(node, Command::CancelTake { ticket });
                }
            }
            GiftTask::Decide(taker) => self.decide(taker),
        }
    }

    fn giver_dies(&mut self, number: usize) {
        let gift = &mut self.gifts.all[number];
        if gift.settled.is_none() && !gift.taken && std::mem::take(&mut gift.giver) {
            let end = gift.end;
            self.host.lock().release(end);
        }
    }

    fn take(&mut self, number: usize) {
        let taker = &mut self.gifts.takers[number];
        let node = taker.node;
        if self.nodes[node].leaving || !matches!(self.nodes[node].state, State::Up(_)) {
            taker.stage = Stage::Over;
            return;
        }
        taker.life = self.nodes[node].life;
        taker.stage = Stage::Waiting;
        let name = self.gifts.all[taker.gift].name;
        let host = self.host.clone();
        let reply = self
            .gifts
            .reply(move |answer: Option<Result<HandedEnd<usize>, _>>| {
                let handed = |HandedEnd { gift, end }| {
                    host.lock().hand_out(end);
                    (gift, end)
                };
                News::Handed(number, answer.map(|answer| answer.map(handed)))
            });
        let after = self.rng.spread(MS, 10 * SECOND);
        self.gifts.takers[number].until = self.now + after;
        self.at(after, Task::Gift(GiftTask::CancelTake(number)));
        let ticket = number as u64;
        self.command(
            node,
            Command::Take {
                ticket,
                name,
                reply,
            },
        );
    }

    /// A taker has looked at what it was handed.
    fn decide(&mut self, number: usize) {
        let taker = &mut self.gifts.takers[number];
        let Stage::Handed { end, gift: id } = taker.stage else {
            return;
        };
        let (node, life, gift) = (taker.node, taker.life, taker.gift);
        let wanted = self.phase != Phase::Breaking || self.rng.percent(85);
        if self.nodes[node].life != life || !wanted {
            self.gifts.takers[number].stage = Stage::Over;
            self.host.lock().release(end);
            if self.nodes[node].life == life {
                self.command(node, Command::PutBack { gift: id });
            }
            return self.settle(gift);
        }
        self.gifts.takers[number].stage = Stage::Confirming { end };
        let Gift {
            connection, side, ..
        } = self.gifts.all[gift];
        self.connections[connection].candidates[side].push(life);
        let host = self.host.clone();
        let reply = self.gifts.reply(move |answer: Option<Result<Taken, _>>| {
            let answer = answer.map(|answer| {
                let taken: Taken = answer?;
                succeed(&host, end, &taken).ok_or(GiftError::Over)
            });
            News::Taken(number, answer)
        });
        self.command(node, Command::Confirm { gift: id, reply });
    }

    /// Takes in what engines have said.
    pub(crate) fn hear_gifts(&mut self) {
        let news = {
            let mut news = self
                .gifts
                .news
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *news)
        };
        for news in news {
            match news {
                News::Stands(gift, Some(Ok(id))) => self.gifts.all[gift].id = Some(id),
                // Refused: what was to become of it is told at once, by what is dropped.
                News::Stands(gift, refused) => {
                    self.say(|| format!("gift {gift} does not stand: {refused:?}"));
                }
                News::Settled(gift, outcome) => self.gift_settled(gift, outcome),
                News::Handed(taker, Some(Ok((gift, end)))) => {
                    self.gifts.takers[taker].stage = Stage::Handed { end, gift };
                    let most = if self.rng.percent(5) {
                        7 * SECOND
                    } else {
                        SECOND
                    };
                    let after = self.rng.spread(US, most);
                    self.at(after, Task::Gift(GiftTask::Decide(taker)));
                }
                News::Handed(taker, _) => {
                    self.gifts.takers[taker].stage = Stage::Over;
                    self.settle(self.gifts.takers[taker].gift);
                }
                News::Taken(taker, answer) => self.gift_confirmed(taker, answer),
            }
        }
    }

    fn gift_settled(&mut self, number: usize, outcome: Option<Outcome>) {
        if self.options.mutation == Some(Mutation::GiftUnsettled) {
            return;
        }
        self.say(|| format!("gift {number}: {outcome:?}"));
        let gift = &mut self.gifts.all[number];
        if gift.settled.is_some() {
            self.find(format!("gift {number} is settled twice"));
            return;
        }
        gift.settled = Some(outcome);
        self.settle(number);
    }

    fn gift_confirmed(&mut self, taker: usize, answer: Option<Result<Succession, GiftError>>) {
        self.say(|| format!("taker {taker}: {answer:?}"));
        let Stage::Confirming { end } = self.gifts.takers[taker].stage else {
            return;
        };
        self.gifts.takers[taker].stage = Stage::Over;
        let Taker {
            gift: number,
            node,
            life,
            dies,
            ..
        } = self.gifts.takers[taker];
        let gift = &mut self.gifts.all[number];
        let Some(Ok(Succession { side, old })) = answer else {
            self.host.lock().release(end);
            return self.settle(number);
        };
        let expected = (gift.connection, gift.side);
        if gift.taken || gift.returned() || side != expected {
            let what = format!(
                "taker {taker} on node {node} has side {side:?}, which has an owner: {gift:?}"
            );
            return self.find(what);
        }
        (gift.taken, gift.over_at) = (true, Some(self.now));
        let giver = std::mem::take(&mut gift.giver);
        match end == old {
            true => self.gifts.handed += 1,
            false => self.gifts.moved += 1,
        }
        let (connection, side) = side;
        self.connections[connection].pass_on(side, end, node, life);
        if let Some(mut program) = self.programs.remove(&old) {
            program.wake_at = None;
            program.running = true;
            let written = self.host.lock().ends[end].written;
            let consumed = self.host.lock().ends[end].consumed;
            let more = self.next_gift(connection, program.send - written);
            program.gives = more.map(|more| written + consumed + more);
            self.programs.insert(end, program);
            self.renew_lane(end);
        }
        if giver {
            self.host.lock().release(old);
        }
        if dies {
            self.die(end, "the taker died");
        } else {
            self.wake_program(end, US);
        }
    }

    /// Whose the side is now, if that can be said.
    fn settle(&mut self, number: usize) {
        let awaited = self.gifts.is_awaited(&self.gifts.all[number]);
        let gift = &mut self.gifts.all[number];
        let Some(outcome) = gift.settled else {
            return;
        };
        if gift.taken {
            if gift.returned() {
                let what = format!("gift {number} was taken, and its giver hears {outcome:?}");
                self.find(what);
            }
            return;
        }
        // Its giver's engine may be gone, or have heard of the move first: a taker may have it yet.
        let unknown = gift.id.is_some() && !gift.returned();
        if gift.over_at.is_some() || (unknown && awaited) {
            return;
        }
        gift.over_at = Some(self.now);
        let Gift {
            connection,
            side,
            end,
            giver,
            ..
        } = *gift;
        if gift.returned() {
            self.gifts.returned += 1;
            self.connections[connection].candidates[side].clear();
        }
        if outcome == Some(Outcome::Taken) {
            // By somebody who could not be told any more.
            if giver {
                self.host.lock().release(end);
            }
            self.program_done(end);
        } else if giver {
            if let Some(program) = self.programs.get_mut(&end) {
                program.running = true;
                program.gives = None;
            }
            self.wake_program(end, US);
        } else {
            self.died(end, "the giver died, and nobody took its stream");
            self.program_done(end);
        }
    }

    /// A program ends without closing.
    fn die(&mut self, end: usize, why: &'static str) {
        self.died(end, why);
        self.close(end);
    }

    fn died(&mut self, end: usize, why: &'static str) {
        let (connection, side, raw, written) = {
            let sockets = self.host.lock();
            let this = &sockets.ends[end];
            (this.connection, this.side, this.raw, this.written)
        };
        let connection = &mut self.connections[connection];
        connection.excuse.get_or_insert(why);
        if raw {
            connection.totals[side].get_or_insert(written);
        }
    }

    /// After how many more bytes a program that has `left` to send gives its stream away, if it does.
    pub(crate) fn next_gift(&mut self, connection: usize, left: u64) -> Option<u64> {
        let percent = self.options.gives;
        let gives = percent > 0 && self.rng.percent(percent) && !self.connections[connection].probe;
        gives.then(|| self.rng.below(left + 1))
    }
}

impl Gift {
    /// The giver was told that it has its stream again.
    fn returned(&self) -> bool {
        matches!(
            self.settled,
            Some(Some(
                Outcome::Expired | Outcome::Withdrawn | Outcome::Impossible
            ))
        )
    }
}
