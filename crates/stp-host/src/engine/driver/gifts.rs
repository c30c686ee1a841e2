//! Giving and taking: a stream's program's end passes from one program to another.
//!
//! - Bytes that wait in the local socket stay where they are: the taker goes on at the exact byte.
//! - The taker gets a new token, so what the giver still says under the old one reaches nobody's stream.

use stp_core::{StreamId, Time};
use stp_format::ProcessName;
use stp_medium::Medium;

use super::{Driver, Phase};
use crate::control::{GiftId, Offer, Outcome, Taken};
use crate::engine::clock::Clock;
use crate::engine::command::Reply;
use crate::engine::gifts::{
    CONFIRM_MAX, Confirmed, GIFTS_MAX, Gift, GiftError, HandedEnd, Held, TAKERS_MAX, Taker,
};
use crate::engine::local::LocalSide;
use crate::engine::moves::MOVE_MAX;

impl<M: Medium + ?Sized, C: Clock, L: LocalSide> Driver<M, C, L> {
    pub(super) fn give(
        &mut self,
        now: Time,
        offer: Offer,
        end: L::Handle,
        outcome: Reply<Outcome>,
        reply: Reply<Result<GiftId, GiftError>>,
    ) {
        if !matches!(self.phase, Phase::Running) {
            return; // dropping the replies says it
        }
        let stream = self.id_of(offer.token);
        let refused = if self.gifts.standing.len() >= GIFTS_MAX {
            Some(GiftError::TooMany)
        } else if !self.verdicts.is_known(offer.token) {
            Some(GiftError::Over)
        } else if self
            .gifts
            .standing
            .values()
            .any(|gift| gift.token == offer.token)
        {
            Some(GiftError::Twice)
        } else if offer.to != self.system {
            self.may_move(stream, &offer.to).err()
        } else {
            None
        };
        if let Some(why) = refused {
            self.local.drop_handle(end);
            return reply.send(Err(why));
        }
        let id = self.gifts.next_id();
        let gift = Gift {
            stream,
            token: offer.token,
            offer,
            end,
            deadline: now + offer.wait,
            held: Held::Giver,
            offers: Vec::new(),
            outcome,
        };
        self.gifts.standing.insert(id, gift);
        reply.send(Ok(id));
        if offer.to == self.system {
            self.match_takers(now, &offer.name);
        }
        self.offer_gifts(now);
    }

    pub(super) fn take(
        &mut self,
        now: Time,
        ticket: u64,
        name: ProcessName,
        reply: Reply<Result<HandedEnd<L::Handle>, GiftError>>,
    ) {
        if !matches!(self.phase, Phase::Running) {
            return; // dropping the reply says it
        }
        if self.gifts.takers.len() >= TAKERS_MAX {
            return reply.send(Err(GiftError::TooMany));
        }
        let taker = Taker {
            ticket,
            late: false,
            name,
            reply,
        };
        self.gifts.takers.push_back(taker);
        self.match_takers(now, &name);
    }

    /// Hands free gifts to those who wait for them, both in the order in which they came.
    pub(super) fn match_takers(&mut self, now: Time, name: &ProcessName) {
        while let Some(at) = self.gifts.takers.iter().position(|t| t.name == *name)
            && let Some(id) = self.gifts.free(&self.system, name)
            && let Some(gift) = self.gifts.standing.get_mut(&id)
        {
            let Some(taker) = self.gifts.takers.remove(at) else {
                return;
            };
            match self.local.copy_handle(&gift.end) {
                Ok(end) => {
                    gift.held = Held::Taker(now + CONFIRM_MAX);
                    taker.reply.send(Ok(HandedEnd { gift: id, end }));
                }
                Err(error) => taker.reply.send(Err(GiftError::Socket(error.to_string()))),
            }
        }
        self.want_offers(now, name);
    }

    pub(super) fn cancel_take(&mut self, ticket: u64) {
        let found = self.gifts.takers.iter().position(|t| t.ticket == ticket);
        if let Some(taker) = found.and_then(|at| self.gifts.takers.get_mut(at)) {
            taker.late = true;
            let name = taker.name;
            self.answer_late(&name);
        }
    }

    pub(super) fn confirm_gift(&mut self, now: Time, id: GiftId, reply: Reply<Confirmed>) {
        let handed = |gift: &Gift<L::Handle>| matches!(gift.held, Held::Taker(_));
        if !self.gifts.standing.get(&id).is_some_and(handed) {
            return self.adopt(now, id, reply);
        }
        let Some(gift) = self.gifts.standing.remove(&id) else {
            return;
        };
        let token = Self::next_token(&mut self.last_token);
        let stream = gift.stream.and_then(|id| self.streams.get_mut(&id));
        // The giver's word that its bytes have ended holds only if they have.
        let ended = match &stream {
            Some(stream) => stream.finished || self.local.is_write_shut(&stream.socket),
            None => true,
        };
        self.verdicts.hand_over(gift.token, token, ended);
        if let Some(stream) = stream {
            stream.token = token;
            stream.lane.pass_on();
            self.by_token.remove(&gift.token);
            self.by_token.extend(gift.stream.map(|id| (token, id)));
        }
        let Offer { local, peer, .. } = gift.offer;
        self.withdraw_offers(now, gift.offers);
        gift.outcome.send(Outcome::Taken);
        self.local.drop_handle(gift.end);
        reply.send(Ok(Taken { token, local, peer }));
    }

    pub(super) fn put_back(&mut self, now: Time, id: GiftId) {
        if self.release_handed(now, id) {
            return;
        }
        let Some(gift) = self.gifts.standing.get_mut(&id) else {
            return;
        };
        if matches!(gift.held, Held::Taker(_)) {
            gift.held = Held::Giver;
            let name = gift.offer.name;
            self.match_takers(now, &name);
        }
    }

    pub(super) fn withdraw_gift(&mut self, now: Time, id: GiftId) {
        match self.gifts.standing.get(&id).map(|gift| &gift.held) {
            Some(Held::Moving { .. }) => self.begin_return(now, id, Some(Outcome::Withdrawn)),
            _ => self.end_gift(now, id, Outcome::Withdrawn),
        }
    }

    /// Every gift that is still its giver's goes back.
    pub(super) fn withdraw_gifts(&mut self, now: Time) {
        let ids: Vec<_> = self.gifts.standing.keys().copied().collect();
        for id in ids {
            self.withdraw_gift(now, id);
        }
    }

    /// A gift is settled.
    pub(super) fn end_gift(&mut self, now: Time, id: GiftId, outcome: Outcome) {
        if let Some(gift) = self.gifts.standing.remove(&id) {
            self.withdraw_offers(now, gift.offers);
            gift.outcome.send(outcome);
            // If the giver has gone meanwhile, this is the stream's end.
            self.local.drop_handle(gift.end);
        }
    }

    /// Gives up what has waited too long.
    pub(super) fn expire_gifts(&mut self, now: Time) {
        while self.gifts.poll_timeout().is_some_and(|at| at <= now) {
            let overdue = |gift: &Gift<L::Handle>| match gift.held {
                Held::Giver => gift.deadline <= now,
                Held::Taker(until) | Held::Moving { until, .. } => until <= now,
            };
            let gifts = self.gifts.standing.iter();
            let found = gifts.filter(|(_, gift)| overdue(gift));
            let found: Vec<_> = found.map(|(id, _)| *id).collect();
            for id in found {
                let Some(gift) = self.gifts.standing.get_mut(&id) else {
                    continue;
                };
                match &mut gift.held {
                    Held::Giver => self.end_gift(now, id, Outcome::Expired),
                    Held::Taker(_) => self.put_back(now, id),
                    Held::Moving { until, .. } => {
                        // The far node answers, or its death does: there is nothing else to wait for.
                        *until = now + MOVE_MAX;
                        self.begin_return(now, id, None);
                    }
                }
            }
        }
    }

    /// The node is done with a stream. What is left in its socket can still be taken here.
    pub(super) fn forget_in_gifts(&mut self, now: Time, id: StreamId) {
        let mut gifts = self.gifts.standing.iter_mut();
        let Some((gift_id, gift)) = gifts.find(|(_, gift)| gift.stream == Some(id)) else {
            return;
        };
        gift.stream = None;
        // One that is on its way may be another engine's already: then so are the bytes in the socket.
        let moving = matches!(gift.held, Held::Moving { .. });
        if moving || gift.offer.to != self.system {
            let gift_id = *gift_id;
            return self.end_gift(now, gift_id, Outcome::Broken);
        }
        let offers = std::mem::take(&mut gift.offers);
        self.withdraw_offers(now, offers);
    }
}
