//! No engine: streams within this system work, everything else says so.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use stp_format::SystemName;
use stp_host::control::{Calls, ConnectFailure, Connected, Peer, StreamToken, Verdict};

pub(crate) struct Nobody;

const NOT_YET: &str = "this build has no engine of its own: start `stp engine`";

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
