//! Giving and taking, as a process asks its engine for it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::time::Duration;

use rustix::net::{SendFlags, send};
use stp_format::ProcessName;

use super::command::{Command, Reply};
use super::gifts::GiftError;
use super::handle::EngineHandle;
use crate::control::{GiftId, Handed, Offer, Outcome, Taken};

impl EngineHandle {
    pub(super) fn give_stream(
        &self,
        offer: &Offer,
        end: OwnedFd,
        notice: OwnedFd,
    ) -> io::Result<GiftId> {
        let offer = Box::new(*offer);
        let outcome = Reply::new(move |outcome| tell(&notice, outcome));
        let asked = self.ask(None, |reply| Command::Give {
            offer,
            end,
            outcome,
            reply,
        });
        Ok(asked.unwrap_or_else(|stopped| Err(GiftError::Stopped(stopped)))?)
    }

    pub(super) fn take_stream(&self, name: &ProcessName, wait: Duration) -> io::Result<Handed> {
        let ticket = self.next_ticket();
        let name = *name;
        let (tell, told) = mpsc::sync_channel(1);
        let reply = Reply::new(move |answer| {
            let _ = tell.send(answer);
        });
        self.push(Command::Take {
            ticket,
            name,
            reply,
        })?;
        let answer = match told.recv_timeout(wait) {
            Ok(answer) => answer,
            Err(_) => {
                let _ = self.push(Command::CancelTake { ticket });
                // One may have come at the last moment: then it is answered with that.
                told.recv().ok().flatten()
            }
        };
        let answer = answer.unwrap_or_else(|| Err(GiftError::Stopped(self.why_stopped())));
        let handed = answer?;
        Ok(Handed {
            gift: handed.gift,
            end: handed.end,
        })
    }

    pub(super) fn confirm_gift(&self, gift: GiftId) -> io::Result<Taken> {
        let asked = self.ask(None, |reply| Command::Confirm { gift, reply });
        Ok(asked.unwrap_or_else(|stopped| Err(GiftError::Stopped(stopped)))?)
    }
}

/// Tells the giver: one byte to read, one as urgent data for those who wait for an exception, and the end.
fn tell(notice: &OwnedFd, outcome: Option<Outcome>) {
    let Some(outcome) = outcome else {
        return; // the end alone says that the engine is gone
    };
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let byte = [outcome as u8];
    // The giver may not be there any more; a kernel without urgent data here has the plain byte.
    let _ = send(notice, &byte, flags);
    let _ = send(notice, &byte, flags | SendFlags::OOB);
}
