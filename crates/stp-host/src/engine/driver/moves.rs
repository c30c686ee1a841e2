//! Streams that move between engines: what the giver's engine and the taker's do, step by step.
//!
//! - The far node decides who has the stream (`stp_core`); the two engines only bring it to that decision and
//!   obey. Until then the giver's engine has everything still, and the taker's owns nothing.
//! - What the giver's program has not read, and what of it was not sent, is copied, not taken out: taking a
//!   stream back changes nothing.

use stp_core::{
    Adoption, ConnectError, HoldError, PeerState, ResetReason, Stillness, StreamId, Time,
};
use stp_format::gift::CARRY_BYTES_MAX;
use stp_format::{GiftMessage, GiftState, MoveToken};
use stp_medium::Medium;

use super::{Driver, Phase};
use crate::control::{EndName, GiftId, Outcome, Taken};
use crate::engine::clock::Clock;
use crate::engine::command::Reply;
use crate::engine::gifts::{CONFIRM_MAX, Confirmed, GiftError, HandedEnd, Held, Step};
use crate::engine::local::LocalSide;
use crate::engine::moves::{
    ADOPT_MAX, Adopting, Coming, MOVE_MAX, OFFERS_MAX, RETRY, Role, SWEEP, Service, Stage,
    TALK_BYTES_MAX,
};
use crate::engine::verdict::Ending;

impl<M: Medium + ?Sized, C: Clock, L: LocalSide> Driver<M, C, L> {
    // --- the engines' own streams

    fn say(&mut self, id: StreamId, message: &GiftMessage) {
        if let Some(service) = self.journeys.services.get_mut(&id) {
            service.say(message);
            self.node.readable(id);
        }
    }

    fn hang_up(&mut self, now: Time, id: StreamId) {
        if self.journeys.services.remove(&id).is_some() {
            self.node.reset(now, id, ResetReason::Aborted);
        }
    }

    pub(super) fn service_incoming(&mut self, now: Time, id: StreamId) {
        let running = matches!(self.phase, Phase::Running);
        let info = self.node.stream(id);
        let Some(info) = info.filter(|_| running && self.journeys.coming.len() < OFFERS_MAX) else {
            self.node.refuse(now, id, ResetReason::TooManyStreams);
            return;
        };
        let service = Service::new(Role::Taker, info.seat, info.incarnation);
        self.journeys.services.insert(id, service);
        self.node.accept(now, id);
    }

    /// Takes in what has come over a service stream.
    pub(super) fn read_messages(&mut self, now: Time, id: StreamId) {
        while let Some(service) = self.journeys.services.get_mut(&id) {
            let role = service.role;
            match GiftMessage::decode(&service.inbox) {
                Ok(None) => {
                    // Only what was asked for may be large.
                    let long = service.inbox.len() > TALK_BYTES_MAX;
                    let stage = self.journeys.coming.get(&id).map(|coming| &coming.stage);
                    if long && !matches!(stage, Some(Stage::Wanted(_))) {
                        return self.break_service(now, id, "a message that nobody asked for");
                    }
                    return;
                }
                Ok(Some((message, length))) => {
                    service.inbox.drain(..length);
                    let proper = match role {
                        Role::Giver(gift) => self.hear_taker(now, id, gift, &message),
                        Role::Taker => self.hear_giver(now, id, message),
                    };
                    if !proper {
                        return self.break_service(now, id, "a message out of turn");
                    }
                }
                Err(_) => return self.break_service(now, id, "a message of impossible form"),
            }
        }
    }

    fn break_service(&mut self, now: Time, id: StreamId, what: &'static str) {
        tracing::warn!(volume = %self.label, what, "another engine's word about a gift is ignored");
        self.node.reset(now, id, ResetReason::Protocol);
        self.service_over(now, id);
    }

    /// A service stream has ended, whoever ended it.
    pub(super) fn service_over(&mut self, now: Time, id: StreamId) {
        let Some(service) = self.journeys.services.remove(&id) else {
            return;
        };
        self.node.reset(now, id, ResetReason::Aborted);
        match service.role {
            Role::Giver(gift) => {
                let Some(gift_now) = self.gifts.standing.get_mut(&gift) else {
                    return;
                };
                gift_now.offers.retain(|offer| *offer != id);
                if matches!(gift_now.held, Held::Moving { service, .. } if service == id) {
                    self.begin_return(now, gift, None);
                }
            }
            Role::Taker => {
                if let Some(coming) = self.journeys.coming.remove(&id) {
                    let name = coming.name;
                    self.drop_handed(coming.stage);
                    self.answer_late(&name);
                }
            }
        }
    }

    fn drop_handed(&mut self, stage: Stage<L>) {
        if let Stage::Handed { end, socket, .. } = stage {
            self.local.close(socket, false);
            self.local.drop_handle(end);
        }
    }

    // --- the giver's side

    /// Whether a stream can go to another system at all, as far as is known now.
    pub(super) fn may_move(
        &self,
        id: Option<StreamId>,
        to: &stp_format::SystemName,
    ) -> Result<(), GiftError> {
        let id = id.ok_or(GiftError::Over)?;
        match self.node.may_hold(id) {
            Ok(()) | Err(HoldError::Busy) => {}
            Err(HoldError::Over) => return Err(GiftError::Over),
            Err(why @ HoldError::OldPeer(_)) => {
                return Err(GiftError::Impossible(why.to_string()));
            }
        }
        let mut there = self.node.peers().filter(|peer| peer.system == *to);
        let alive = |state| matches!(state, PeerState::Up | PeerState::Suspect);
        let mut old = false;
        if there.any(|peer| {
            old |= alive(peer.state) && !peer.moves;
            alive(peer.state) && peer.moves
        }) || !old
        {
            return Ok(());
        }
        Err(GiftError::Impossible(format!(
            "the engine of {to} is of a release that cannot take streams: update it"
        )))
    }

    /// Offers every gift to the nodes that may have takers and have not been told.
    pub(super) fn offer_gifts(&mut self, now: Time) {
        if !matches!(self.phase, Phase::Running) || self.gifts.standing.is_empty() {
            return;
        }
        let peers: Vec<_> = self
            .node
            .peers()
            .filter(|peer| peer.state == PeerState::Up && peer.moves)
            .collect();
        for (gift_id, gift) in &mut self.gifts.standing {
            if gift.stream.is_none() {
                continue;
            }
            for peer in peers.iter().filter(|peer| peer.system == gift.offer.to) {
                let told = |offer: &StreamId| {
                    let service = self.journeys.services.get(offer);
                    service.is_some_and(|service| {
                        (service.seat, service.incarnation) == (peer.seat, peer.incarnation)
                    })
                };
                if gift.offers.iter().any(told) {
                    continue;
                }
                // Whoever cannot be told now is tried again.
                if let Ok(id) = self.node.connect_service(now, peer.seat) {
                    let role = Role::Giver(*gift_id);
                    let mut service = Service::new(role, peer.seat, peer.incarnation);
                    service.say(&GiftMessage::Offer {
                        name: gift.offer.name,
                    });
                    self.journeys.services.insert(id, service);
                    gift.offers.push(id);
                }
            }
        }
    }

    fn hear_taker(
        &mut self,
        now: Time,
        id: StreamId,
        gift_id: GiftId,
        message: &GiftMessage,
    ) -> bool {
        let token = self.next_move();
        let taker = self.journeys.services.get(&id).map(|service| service.seat);
        let Some(gift) = self.gifts.standing.get_mut(&gift_id) else {
            return true; // it is over; the service stream's end is under way
        };
        let far = gift.stream.and_then(|stream| self.node.stream(stream));
        match (message, &gift.held) {
            // A node is not its own peer. Stopping the stream for nothing would keep its other end from moving.
            (GiftMessage::Want, Held::Giver) if far.is_some_and(|far| Some(far.seat) == taker) => {
                self.say(id, &GiftMessage::Busy);
                true
            }
            (GiftMessage::Want, Held::Giver) => {
                let held = match gift.stream {
                    Some(stream) => self.node.hold(now, stream, token),
                    None => Err(HoldError::Over),
                };
                match held {
                    Ok(()) => {
                        gift.held = Held::Moving {
                            service: id,
                            token,
                            step: Step::Stopping,
                            until: now + MOVE_MAX,
                        };
                    }
                    Err(HoldError::Busy) => self.say(id, &GiftMessage::Busy),
                    Err(HoldError::Over) => self.say(id, &GiftMessage::Busy),
                    Err(HoldError::OldPeer(_)) => {
                        self.end_gift(now, gift_id, Outcome::Impossible);
                    }
                }
                true
            }
            (GiftMessage::Want, _) => {
                self.say(id, &GiftMessage::Busy);
                true
            }
            (GiftMessage::Release, Held::Moving { service, .. }) => {
                if *service == id {
                    self.begin_return(now, gift_id, None);
                }
                true
            }
            (GiftMessage::Release, _) => true,
            _ => false,
        }
    }

    /// The stream stays here, unless the far node has decided already; `after`: what becomes of the gift then.
    pub(super) fn begin_return(&mut self, now: Time, gift: GiftId, after: Option<Outcome>) {
        let Some(gift) = self.gifts.standing.get_mut(&gift) else {
            return;
        };
        let Held::Moving { step, .. } = &mut gift.held else {
            return;
        };
        match step {
            Step::Returning(told) => *told = told.or(after),
            _ => {
                *step = Step::Returning(after);
                if let Some(id) = gift.stream {
                    self.node.resume(now, id);
                }
            }
        }
    }

    fn moving(&self, id: StreamId) -> Option<GiftId> {
        let mut gifts = self.gifts.standing.iter();
        let found = gifts
            .find(|(_, gift)| gift.stream == Some(id) && matches!(gift.held, Held::Moving { .. }));
        found.map(|(gift, _)| *gift)
    }

    /// Both ends are still: the taker's engine gets everything it needs.
    pub(super) fn held(&mut self, now: Time, id: StreamId) {
        let Some(gift) = self.moving(id) else {
            self.node.resume(now, id);
            return;
        };
        match self.state_of(id, gift) {
            Ok(Some((service, state))) => self.say(service, &GiftMessage::State(state)),
            Ok(None) => self.begin_return(now, gift, None),
            Err(why) => {
                tracing::warn!(volume = %self.label, why, "a stream cannot be moved");
                self.begin_return(now, gift, Some(Outcome::Impossible));
            }
        }
    }

    /// The state of a stream that is still, and the service stream that it goes to.
    fn state_of(
        &mut self,
        id: StreamId,
        gift: GiftId,
    ) -> Result<Option<(StreamId, Box<GiftState>)>, String> {
        let Some(still) = self.node.stillness(id) else {
            return Ok(None);
        };
        let (Some(gift), Some(stream)) =
            (self.gifts.standing.get_mut(&gift), self.streams.get(&id))
        else {
            return Ok(None);
        };
        let Held::Moving {
            service,
            token,
            step: step @ Step::Stopping,
            ..
        } = &mut gift.held
        else {
            return Ok(None);
        };
        *step = Step::Told;
        let finishes = !stream.finished && self.local.is_write_shut(&stream.socket);
        if finishes && !stream.raw && !self.verdicts.is_marked(stream.token) {
            return Err("the giver's program has shut it down behind the library's back".into());
        }
        let unusable = |error: std::io::Error| format!("its local socket cannot be read: {error}");
        let mut unread = self.local.peek_unread(&gift.end).map_err(unusable)?;
        unread.extend(still.undelivered);
        let mut unsent: Vec<u8> = stream.carry.iter().copied().collect();
        unsent.extend(self.local.peek_unsent(&stream.socket).map_err(unusable)?);
        if unread.len() + unsent.len() > CARRY_BYTES_MAX {
            return Err(format!(
                "more than {CARRY_BYTES_MAX} bytes wait in it: read some"
            ));
        }
        let state = GiftState {
            token: *token,
            peer_seat: still.seat,
            peer_incarnation: still.incarnation,
            key: still.key,
            sent: still.sent,
            received: still.received,
            credit: still.credit,
            local: (gift.offer.local.system, still.local_port),
            peer: (still.peer, still.peer_port),
            finished: still.finished,
            peer_finished: still.peer_finished,
            raw: stream.raw,
            finishes,
            deaf: stream.deaf,
            unread,
            unsent,
        };
        Ok(Some((*service, Box::new(state))))
    }

    /// The far end moves itself and goes first.
    pub(super) fn hold_lost(&mut self, now: Time, id: StreamId) {
        self.stayed(now, id, &GiftMessage::Busy);
    }

    /// The stream has stayed here.
    pub(super) fn resumed(&mut self, now: Time, id: StreamId) {
        self.stayed(now, id, &GiftMessage::Kept);
    }

    fn stayed(&mut self, now: Time, id: StreamId, message: &GiftMessage) {
        let Some(gift_id) = self.moving(id) else {
            return;
        };
        let Some(gift) = self.gifts.standing.get_mut(&gift_id) else {
            return;
        };
        let Held::Moving { service, step, .. } = gift.held else {
            return;
        };
        gift.held = Held::Giver;
        let name = gift.offer.name;
        self.say(service, message);
        if let Step::Returning(Some(outcome)) = step {
            return self.end_gift(now, gift_id, outcome);
        }
        self.match_takers(now, &name);
    }

    /// The far node has decided: the stream is another engine's.
    pub(super) fn moved(&mut self, now: Time, id: StreamId) {
        if let Some(gift_id) = self.moving(id) {
            self.end_gift(now, gift_id, Outcome::Taken);
        }
        self.forget(id, Some(Ending::Reset(ResetReason::NotHeld)));
    }

    /// The stream is over. Its program can read on: what arrived before the end may fill its socket.
    pub(super) fn hold_broken(&mut self, now: Time, id: StreamId) {
        if let Some(gift_id) = self.moving(id) {
            self.end_gift(now, gift_id, Outcome::Broken);
        }
    }

    // --- the taker's side

    fn hear_giver(&mut self, now: Time, id: StreamId, message: GiftMessage) -> bool {
        if let GiftMessage::Offer { name } = message {
            let stage = Stage::Idle(now);
            let fresh = !self.journeys.coming.contains_key(&id);
            if fresh {
                self.journeys.coming.insert(id, Coming { name, stage });
                self.match_takers(now, &name);
            }
            return fresh;
        }
        let Some(coming) = self.journeys.coming.get_mut(&id) else {
            // Its stream is being adopted: the far node's word counts.
            return !matches!(message, GiftMessage::Want | GiftMessage::Release);
        };
        let name = coming.name;
        match message {
            GiftMessage::Busy | GiftMessage::Kept => {
                let stage = std::mem::replace(&mut coming.stage, Stage::Idle(now + RETRY));
                self.drop_handed(stage);
                self.answer_late(&name);
                true
            }
            GiftMessage::State(state) => {
                if !matches!(coming.stage, Stage::Wanted(_)) {
                    self.say(id, &GiftMessage::Release);
                    return true;
                }
                coming.stage = Stage::Idle(now + RETRY);
                self.arrived(now, id, state);
                self.answer_late(&name);
                true
            }
            _ => false,
        }
    }

    /// A stream's state is here: a taker gets its end, and has to confirm.
    fn arrived(&mut self, now: Time, id: StreamId, state: Box<GiftState>) {
        let Some(coming) = self.journeys.coming.get_mut(&id) else {
            return;
        };
        let name = coming.name;
        let waiting = self.gifts.takers.iter().position(|t| t.name == name);
        let Some(taker) = waiting.and_then(|at| self.gifts.takers.remove(at)) else {
            return self.say(id, &GiftMessage::Release);
        };
        let made = self.local.pair().and_then(|(end, socket)| {
            let ended = state.finished || state.finishes;
            self.local.shut_handle(&end, ended, state.deaf);
            let copy = self.local.copy_handle(&end)?;
            Ok((end, socket, copy))
        });
        match made {
            Ok((end, socket, copy)) => {
                let gift = self.gifts.next_id();
                coming.stage = Stage::Handed {
                    gift,
                    until: now + CONFIRM_MAX,
                    end,
                    socket,
                    state,
                };
                taker.reply.send(Ok(HandedEnd { gift, end: copy }));
            }
            Err(error) => {
                taker.reply.send(Err(GiftError::Socket(error.to_string())));
                self.say(id, &GiftMessage::Release);
            }
        }
    }

    /// Asks for offers, as many as programs wait for.
    pub(super) fn want_offers(&mut self, now: Time, name: &stp_format::ProcessName) {
        let waiting = self.gifts.takers.iter().filter(|t| t.name == *name);
        let waiting = waiting.count();
        while self.journeys.wanted(name) < waiting
            && let Some(id) = self.journeys.idle(now, name)
            && let Some(coming) = self.journeys.coming.get_mut(&id)
        {
            coming.stage = Stage::Wanted(now + MOVE_MAX);
            self.say(id, &GiftMessage::Want);
        }
    }

    /// Programs whose time is over wait only while something is under way for them.
    pub(super) fn answer_late(&mut self, name: &stp_format::ProcessName) {
        if self.journeys.wanted(name) > 0 {
            return;
        }
        let late =
            |taker: &crate::engine::gifts::Taker<L::Handle>| taker.late && taker.name == *name;
        while let Some(at) = self.gifts.takers.iter().position(late)
            && let Some(taker) = self.gifts.takers.remove(at)
        {
            taker.reply.send(Err(GiftError::None));
        }
    }

    fn handed(&self, gift: GiftId) -> Option<StreamId> {
        let mut coming = self.journeys.coming.iter();
        let found = coming.find(
            |(_, coming)| matches!(coming.stage, Stage::Handed { gift: it, .. } if it == gift),
        );
        found.map(|(id, _)| *id)
    }

    /// The taker wants the stream that was handed to it: the far node is asked.
    pub(super) fn adopt(&mut self, now: Time, gift: GiftId, reply: Reply<Confirmed>) {
        let Some(service) = self.handed(gift) else {
            return reply.send(Err(GiftError::Gone));
        };
        let giver = self.journeys.services.get(&service);
        let giver = giver.map(|service| (service.seat, service.incarnation));
        let (Some((giver, giver_incarnation)), Some(coming)) =
            (giver, self.journeys.coming.remove(&service))
        else {
            return reply.send(Err(GiftError::Gone));
        };
        let name = coming.name;
        let Stage::Handed {
            end,
            socket,
            mut state,
            ..
        } = coming.stage
        else {
            return;
        };
        let adoption = Adoption {
            token: state.token,
            giver,
            giver_incarnation,
            stream: Stillness {
                seat: state.peer_seat,
                incarnation: state.peer_incarnation,
                key: state.key,
                local_port: state.local.1,
                peer: state.peer.0,
                peer_port: state.peer.1,
                sent: state.sent,
                received: state.received,
                credit: state.credit,
                finished: state.finished,
                peer_finished: state.peer_finished,
                undelivered: std::mem::take(&mut state.unread),
            },
        };
        let adopting = Adopting {
            service,
            name,
            end,
            socket,
            state,
            until: now + ADOPT_MAX,
            reply,
        };
        match self.node.adopt(now, adoption) {
            Ok(id) => {
                self.journeys.adopting.insert(id, adopting);
            }
            Err(why) => self.not_adopted(now, adopting, why),
        }
    }

    fn not_adopted(&mut self, now: Time, adopting: Adopting<L>, why: ConnectError) {
        self.local.close(adopting.socket, false);
        self.local.drop_handle(adopting.end);
        tracing::debug!(volume = %self.label, %why, "a stream could not be taken over");
        adopting.reply.send(Err(GiftError::Gone));
        let (id, name) = (adopting.service, adopting.name);
        if self.journeys.services.contains_key(&id) {
            self.say(id, &GiftMessage::Release);
            let stage = Stage::Idle(now + RETRY);
            self.journeys.coming.insert(id, Coming { name, stage });
        }
    }

    /// Whether the node's refusal was about a stream to be adopted.
    pub(super) fn adoption_failed(&mut self, now: Time, id: StreamId, why: ConnectError) -> bool {
        let Some(adopting) = self.journeys.adopting.remove(&id) else {
            return false;
        };
        self.not_adopted(now, adopting, why);
        true
    }

    /// The far node agrees: the stream is this engine's, and its program's.
    pub(super) fn adopted(&mut self, now: Time, id: StreamId) {
        let Some(adopting) = self.journeys.adopting.remove(&id) else {
            return;
        };
        let Adopting {
            service,
            end,
            mut socket,
            state,
            reply,
            ..
        } = adopting;
        self.hang_up(now, service);
        if let Err(error) = self.local.watch(id, &mut socket) {
            self.node.reset(now, id, ResetReason::Aborted);
            self.local.close(socket, false);
            self.local.drop_handle(end);
            return reply.send(Err(GiftError::Socket(error.to_string())));
        }
        let token = Self::next_token(&mut self.last_token);
        self.keep(id, token, socket, state.raw);
        if state.finished || state.finishes {
            self.verdicts.mark_clean(token);
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.finished = state.finished;
            stream.carry = state.unsent.into();
        }
        self.node.readable(id);
        let name = |(system, port)| EndName { system, port };
        reply.send(Ok(Taken {
            token,
            local: name(state.local),
            peer: name(state.peer),
        }));
        // If the taker has died meanwhile, this is the stream's end.
        self.local.drop_handle(end);
    }

    /// The taker does not want what was handed to it. Whether there was such a thing.
    pub(super) fn release_handed(&mut self, now: Time, gift: GiftId) -> bool {
        let Some(id) = self.handed(gift) else {
            return false;
        };
        let Some(coming) = self.journeys.coming.get_mut(&id) else {
            return false;
        };
        let stage = std::mem::replace(&mut coming.stage, Stage::Idle(now + RETRY));
        self.drop_handed(stage);
        self.say(id, &GiftMessage::Release);
        true
    }

    // --- time

    pub(super) fn expire_moves(&mut self, now: Time) {
        if !self.gifts.standing.is_empty() && self.journeys.sweep_at <= now {
            self.journeys.sweep_at = now + SWEEP;
            self.offer_gifts(now);
        }
        if self.journeys.coming.is_empty() && self.journeys.adopting.is_empty() {
            return;
        }
        let overdue = |coming: &Coming<L>| match coming.stage {
            Stage::Idle(_) => false,
            Stage::Wanted(until) | Stage::Handed { until, .. } => until <= now,
        };
        let coming = self.journeys.coming.iter();
        let late: Vec<_> = coming
            .filter(|(_, coming)| overdue(coming))
            .map(|(id, coming)| (*id, coming.name))
            .collect();
        for (id, name) in late {
            if let Some(coming) = self.journeys.coming.get_mut(&id) {
                let stage = std::mem::replace(&mut coming.stage, Stage::Idle(now + RETRY));
                self.drop_handed(stage);
                self.say(id, &GiftMessage::Release);
                self.answer_late(&name);
            }
        }
        let adopting = self.journeys.adopting.iter();
        let late: Vec<_> = adopting
            .filter(|(_, adopting)| adopting.until <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            self.node.reset(now, id, ResetReason::Aborted);
            self.adoption_failed(now, id, ConnectError::SystemDead);
        }
        let mut names: Vec<_> = self.gifts.takers.iter().map(|t| t.name).collect();
        names.sort_unstable();
        names.dedup();
        for name in names {
            self.want_offers(now, &name);
        }
    }

    /// The name of the next move: none was ever used before.
    fn next_move(&mut self) -> MoveToken {
        let mut bytes = [0; 16];
        let number = Self::next_token(&mut self.last_token).0;
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        bytes[8..].copy_from_slice(&self.node.incarnation().0.to_le_bytes());
        MoveToken(bytes)
    }

    /// Nobody is to ask for this gift any more.
    pub(super) fn withdraw_offers(&mut self, now: Time, offers: Vec<StreamId>) {
        for id in offers {
            self.hang_up(now, id);
        }
    }
}
