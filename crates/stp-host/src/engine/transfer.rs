//! A node's wish as a medium's transfer.

use stp_core::{Io, IoAction};
use stp_medium::{Op, OpId};

/// What the node or the claim wants done, as the medium takes it.
pub fn transfer(Io { id, place, action }: Io) -> (OpId, Op) {
    let op = match action {
        IoAction::Read(buf) => Op::Read { place, buf },
        IoAction::Write {
            data,
            units,
            durable,
        } => Op::Write {
            place,
            data,
            units,
            durable,
        },
    };
    (OpId(id), op)
}
