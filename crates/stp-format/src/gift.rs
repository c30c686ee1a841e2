//! What two engines say to each other while a stream moves, over a stream of their own.
//!
//! - A message is a head and a body; one service stream speaks of one gift.
//! - Every length is checked against a named limit before anything is kept.

use crate::damage::Damage;
use crate::ids::{Incarnation, ProcessName, SeatId, SystemName};
use crate::layout::record;
use crate::segment::{MoveToken, StreamKey};
use alloc::vec::Vec;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Bytes of a message's head.
pub const GIFT_HEAD_BYTES: usize = 8;
/// Bytes that a stream may bring along that its program has not read, or that its peer has not been sent.
pub const CARRY_BYTES_MAX: usize = 64 << 20;

record! {
    /// The head of a message; `len` bytes follow.
    struct GiftHead[8] {
        /// 1 offer, 2 want, 3 busy, 4 state, 5 release, 6 kept
        kind: u8,
        /// zero
        flags: u8,
        /// zero
        reserved: U16,
        /// bytes that follow
        len: U32,
    }
}
const _: () = assert!(size_of::<GiftHead>() == GIFT_HEAD_BYTES);

record! {
    /// What an offer says.
    struct GiftOfferBytes[64] {
        /// the name by which it is taken, zero-padded
        name: [u8; 64],
    }
}

record! {
    /// Where the stream stands; `unread` and then `unsent` bytes follow.
    struct GiftStateBytes[208] {
        /// random name of the move, as the hold frame has it
        token: [u8; 16],
        /// incarnation of the node at the far end
        peer_incarnation: U64,
        /// the stream's number on the giver's link
        stream: U64,
        /// bytes that the giver has sent in all
        sent: U64,
        /// bytes that the giver has received in all
        received: U64,
        /// bytes that the far end may send in all
        credit: U64,
        /// seat of the node at the far end
        peer_seat: U16,
        /// port on the giver's side
        local_port: U16,
        /// port at the far end
        peer_port: U16,
        /// bit 0: the giver's node opened the stream; 1: the giver has finished; 2: the far end has finished; 3: the stream ends as TCP's do; 4: it finishes behind the unsent bytes; 5: its program receives no more
        flags: U16,
        /// bytes received that the program has not read
        unread: U32,
        /// bytes that the program wrote and that were not sent
        unsent: U32,
        /// zero
        reserved: U64,
        /// the giver's system, zero-padded
        local_system: [u8; 64],
        /// the far system, zero-padded
        peer_system: [u8; 64],
    }
}

/// Where a stream stands when it moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GiftState {
    /// This move; another attempt has another.
    pub token: MoveToken,
    /// The far end's seat.
    pub peer_seat: SeatId,
    /// The far end's incarnation.
    pub peer_incarnation: Incarnation,
    /// The stream's name as the giver writes it.
    pub key: StreamKey,
    /// Bytes that the giver has sent in all.
    pub sent: u64,
    /// Bytes that the giver has received in all.
    pub received: u64,
    /// Bytes that the far end may send in all.
    pub credit: u64,
    /// The stream's address on the giver's side.
    pub local: (SystemName, u16),
    /// The far end's address.
    pub peer: (SystemName, u16),
    /// The giver has finished.
    pub finished: bool,
    /// The far end has finished.
    pub peer_finished: bool,
    /// The stream ends as TCP's do.
    pub raw: bool,
    /// It finishes behind the unsent bytes.
    pub finishes: bool,
    /// Its program receives no more.
    pub deaf: bool,
    /// Received, and not read by the program.
    pub unread: Vec<u8>,
    /// Written by the program, and not sent.
    pub unsent: Vec<u8>,
}

/// What one engine says to the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GiftMessage {
    /// The giver: programs of yours that take by this name may have it.
    Offer {
        /// The takers' name.
        name: ProcessName,
    },
    /// The taker: one of them waits.
    Want,
    /// The giver: not now; the offer stands.
    Busy,
    /// The giver: the stream is still, this is it. Adopt it.
    State(alloc::boxed::Box<GiftState>),
    /// The taker: nobody wants it any more; the offer stands.
    Release,
    /// The giver: it has stayed here; the offer stands.
    Kept,
}

impl GiftMessage {
    /// Appends it to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut head = |kind: u8, len: usize| {
            let head = GiftHead {
                kind,
                flags: 0,
                reserved: 0.into(),
                len: (len as u32).into(),
            };
            out.extend_from_slice(head.as_bytes());
        };
        match self {
            Self::Offer { name } => {
                let body = GiftOfferBytes {
                    name: name.padded(),
                };
                head(1, size_of_val(&body));
                out.extend_from_slice(body.as_bytes());
            }
            Self::Want => head(2, 0),
            Self::Busy => head(3, 0),
            Self::State(state) => {
                let flag = |on: bool, bit: u32| u16::from(on) << bit;
                let mut body = GiftStateBytes::new_zeroed();
                body.token = state.token.0;
                body.peer_incarnation = state.peer_incarnation.0.into();
                body.stream = state.key.number.into();
                body.sent = state.sent.into();
                body.received = state.received.into();
                body.credit = state.credit.into();
                body.peer_seat = state.peer_seat.0.into();
                body.local_port = state.local.1.into();
                body.peer_port = state.peer.1.into();
                body.flags = (flag(state.key.by_writer, 0)
                    | flag(state.finished, 1)
                    | flag(state.peer_finished, 2)
                    | flag(state.raw, 3)
                    | flag(state.finishes, 4)
                    | flag(state.deaf, 5))
                .into();
                body.unread = (state.unread.len() as u32).into();
                body.unsent = (state.unsent.len() as u32).into();
                body.local_system = state.local.0.padded();
                body.peer_system = state.peer.0.padded();
                head(
                    4,
                    size_of_val(&body) + state.unread.len() + state.unsent.len(),
                );
                out.extend_from_slice(body.as_bytes());
                out.extend_from_slice(&state.unread);
                out.extend_from_slice(&state.unsent);
            }
            Self::Release => head(5, 0),
            Self::Kept => head(6, 0),
        }
    }

    /// The message at the front of `bytes` and its length; `None` while it is not whole.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, Damage> {
        let Ok((head, rest)) = GiftHead::ref_from_prefix(bytes) else {
            return Ok(None);
        };
        let len = head.len.get() as usize;
        let state_bytes = size_of::<GiftStateBytes>();
        let fits = match head.kind {
            1 => len == size_of::<GiftOfferBytes>(),
            4 => (state_bytes..=state_bytes + CARRY_BYTES_MAX).contains(&len),
            2 | 3 | 5 | 6 => len == 0,
            _ => return Err(Damage::Field("gift.kind")),
        };
        if !fits {
            return Err(Damage::Field("gift.len"));
        }
        let Some(body) = rest.get(..len) else {
            return Ok(None);
        };
        let message = match head.kind {
            1 => {
                let body =
                    GiftOfferBytes::ref_from_bytes(body).map_err(|_| Damage::Length(len as u64))?;
                let name = ProcessName::from_padded(&body.name);
                Self::Offer {
                    name: name.map_err(|why| Damage::Name("gift.name", why))?,
                }
            }
            2 => Self::Want,
            3 => Self::Busy,
            4 => Self::State(GiftState::decode(body)?.into()),
            5 => Self::Release,
            _ => Self::Kept,
        };
        Ok(Some((message, GIFT_HEAD_BYTES + len)))
    }
}

impl GiftState {
    fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        let length = Damage::Length(bytes.len() as u64);
        let (body, carried) = GiftStateBytes::ref_from_prefix(bytes).map_err(|_| length)?;
        let unread = body.unread.get() as usize;
        if unread.checked_add(body.unsent.get() as usize) != Some(carried.len()) {
            return Err(Damage::Field("gift.unread"));
        }
        let (unread, unsent) = carried.split_at(unread);
        let system =
            |field, padded| SystemName::from_padded(padded).map_err(|why| Damage::Name(field, why));
        let flag = |bit: u32| body.flags.get() >> bit & 1 != 0;
        Ok(Self {
            token: MoveToken(body.token),
            peer_seat: SeatId(body.peer_seat.get()),
            peer_incarnation: Incarnation(body.peer_incarnation.get()),
            key: StreamKey {
                by_writer: flag(0),
                number: body.stream.get(),
            },
            sent: body.sent.get(),
            received: body.received.get(),
            credit: body.credit.get(),
            local: (
                system("gift.local_system", &body.local_system)?,
                body.local_port.get(),
            ),
            peer: (
                system("gift.peer_system", &body.peer_system)?,
                body.peer_port.get(),
            ),
            finished: flag(1),
            peer_finished: flag(2),
            raw: flag(3),
            finishes: flag(4),
            deaf: flag(5),
            unread: unread.to_vec(),
            unsent: unsent.to_vec(),
        })
    }
}
