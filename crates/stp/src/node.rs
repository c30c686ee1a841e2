//! The way to an engine: embedded in this process, or shared by the host.
//!
//! - One node per volume, system and run directory in a process, shared by all its groups; it leaves when
//!   the last group, listener and stream of it is gone.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use stp_format::SystemName;
use stp_host::control::{Calls, ConnectFailure, Connected, Peer, StreamToken, Verdict};

use crate::error::Error;
use crate::group::EngineChoice;
use stp_host::rendezvous::SystemDir;

/// Finds or starts the engine of `dir`.
pub(crate) fn attach(
    _volume: &Path,
    _dir: &SystemDir,
    _choice: EngineChoice,
) -> Result<Arc<dyn Calls>, Error> {
    Ok(Arc::new(Nobody))
}

/// No engine: streams within this system work, everything else says so.
struct Nobody;

const NOT_YET: &str = "this build reaches programs of its own system only";

impl Calls for Nobody {
    fn listen(&self, _port: u16, _path: &Path, _raw: bool) -> io::Result<()> {
        Ok(())
    }

    fn unlisten(&self, _port: u16) {}

    fn connect(
        &self,
        _to: &SystemName,
        _port: u16,
        _socket: OwnedFd,
        _raw: bool,
        _timeout: Option<Duration>,
    ) -> Result<Connected, ConnectFailure> {
        Err(ConnectFailure::Failed(NOT_YET.to_owned()))
    }

    fn mark_clean(&self, _token: StreamToken) {}

    fn verdict(&self, _token: StreamToken) -> Verdict {
        Verdict::Reset(NOT_YET.to_owned())
    }

    fn abort(&self, _token: StreamToken) {}

    fn peers(&self) -> io::Result<Vec<Peer>> {
        Ok(Vec::new())
    }
}
