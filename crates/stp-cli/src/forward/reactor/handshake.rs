//! What newcomers and other systems say before bytes are carried: SOCKS5 requests, tokens, requests for a
//! port and the answers to them.
//!
//! - Nobody is read further than the handshake needs; who says something else is dropped.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::super::dial::{Job, refuse};
use super::super::label;
use super::super::remote::{Answer, LINE_BYTES_MAX, Request, TOKEN_BYTES, same_token};
use super::super::socks::{self, Step};
use super::super::spec::StpTarget;
use super::{ASK_AGAIN_MAX, ASK_AGAIN_MIN, Reactor, Source, TcpPurpose, Timer, bound, listen_tcp};
use crate::CliError;
use crate::out::say;

impl Reactor {
    pub(super) fn hear_socks(&mut self, id: u64) {
        loop {
            let Some(Source::Socks(client, handshake, label)) = self.sources.get_mut(&id) else {
                return;
            };
            let mut bytes = [0; socks::MESSAGE_BYTES_MAX];
            let wants = handshake.wants().min(bytes.len());
            let step = match client.read(&mut bytes[..wants]) {
                Ok(0) => Step::Hangup("it left".to_owned()),
                Ok(n) => handshake.take(&bytes[..n]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Step::Hangup(error.to_string()),
            };
            match step {
                Step::More => {}
                // Two bytes fit, or the client is gone, which the next read will tell.
                Step::Send(bytes) => drop((&*client).write(&bytes)),
                Step::Connect(to) => {
                    let label = label_to(label, &to);
                    if let Some(Source::Socks(client, ..)) = self.remove(id) {
                        self.dialer.dial(Job::Stp {
                            client,
                            to,
                            socks: true,
                            token: None,
                            label,
                        });
                    }
                    return;
                }
                Step::Refuse(last_word, why) => {
                    say(format_args!("{label}: a client was refused: {why}"));
                    refuse(client, &last_word);
                    return drop(self.remove(id));
                }
                Step::Hangup(why) => {
                    tracing::info!("{label}: a client was dropped: {why}");
                    return drop(self.remove(id));
                }
            }
        }
    }

    pub(super) fn hear_token(&mut self, id: u64) {
        let Some(Source::Token(stream, have, system)) = self.sources.get_mut(&id) else {
            return;
        };
        match hear(stream, have, TOKEN_BYTES) {
            Ok(()) if have.len() < TOKEN_BYTES => {}
            Ok(()) => {
                let known = self.remotes.iter().find(|remote| {
                    remote.spec.system == *system && same_token(remote.token.as_bytes(), have)
                });
                let Some(remote) = known else {
                    say(format_args!(
                        "{system} brought a connection that nobody asked for"
                    ));
                    return self.cut(id);
                };
                let to = remote.spec.to.clone();
                let label = label(format_args!(
                    "{}:{} (TCP) -> {to}",
                    system, remote.spec.port
                ));
                if let Some(Source::Token(stream, ..)) = self.remove(id) {
                    self.dialer.dial(Job::Tcp { stream, to, label });
                }
            }
            Err(_) => self.cut(id),
        }
    }

    pub(super) fn hear_asker(&mut self, id: u64) {
        let Some(Source::Asker(stream, line, system)) = self.sources.get_mut(&id) else {
            return;
        };
        if hear(stream, line, LINE_BYTES_MAX).is_err() {
            return self.cut(id);
        }
        let Some(line) = whole_line(line) else {
            if line.len() >= LINE_BYTES_MAX {
                self.cut(id);
            }
            return;
        };
        let (system, request) = (*system, Request::parse(line));
        let Some(Source::Asker(stream, ..)) = self.remove(id) else {
            return;
        };
        let answer = match request.and_then(|request| self.listen_for(system, &request)) {
            Ok((listener, port)) => {
                let answer = Answer::listening(port).line();
                if (&stream).write_all(&answer).is_ok()
                    && self.insert(Source::Client(stream, listener)).is_ok()
                {
                    return;
                }
                return drop(self.remove(listener));
            }
            Err(why) => why,
        };
        say(format_args!("{system} asked for a port: {answer}"));
        let _ = (&stream).write_all(&Answer::refused(&answer).line());
    }

    /// Listens on TCP for another system.
    fn listen_for(
        &mut self,
        system: stp::SystemName,
        request: &Request,
    ) -> Result<(u64, u16), String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, request.port));
        let listener = listen_tcp(address).map_err(|error| error.to_string())?;
        let here = bound(&listener, address);
        let label = label(format_args!("{here} (TCP) -> by way of {system}"));
        self.announce(&label);
        let to = StpTarget {
            system,
            port: request.back,
        };
        let purpose = TcpPurpose::For(to, request.token.clone());
        let id = self
            .insert(Source::Tcp(listener, purpose, label))
            .map_err(|error| error.to_string())?;
        Ok((id, here.port()))
    }

    /// A system that we listen for says nothing more; when it goes, so does its listener.
    pub(super) fn hear_client(&mut self, id: u64) {
        let Some(Source::Client(stream, listener)) = self.sources.get_mut(&id) else {
            return;
        };
        let listener = *listener;
        if hear(stream, &mut Vec::new(), LINE_BYTES_MAX).is_err() {
            drop(self.remove(id));
            if let Some(Source::Tcp(_, _, label)) = self.remove(listener) {
                say(format_args!("forward: {label}: ended"));
            }
        }
    }

    pub(super) fn ask(&mut self, remote: usize) {
        let asked = &self.remotes[remote];
        self.dialer.dial(Job::Ask {
            remote,
            system: asked.spec.system,
            request: Request::new(asked.spec.port, self.back, &asked.token),
        });
    }

    pub(super) fn hear_service(&mut self, id: u64) {
        let Some(Source::Service(stream, line, remote, answered)) = self.sources.get_mut(&id)
        else {
            return;
        };
        let remote = *remote;
        let heard = hear(stream, line, LINE_BYTES_MAX);
        let answer = whole_line(line).map(Answer::parse);
        let asked = &mut self.remotes[remote];
        match (answer, heard) {
            (Some(Ok(port)), heard) => {
                line.clear();
                *answered = true;
                asked.worked = true;
                asked.wait = ASK_AGAIN_MIN;
                // The same port when it has to be asked again.
                asked.spec.port = port;
                say(format_args!(
                    "forward: {}:127.0.0.1:{port} (TCP) -> {}",
                    asked.spec.system, asked.spec.to
                ));
                if let Err(error) = heard {
                    self.lost_service(id, remote, error.to_string());
                }
            }
            (Some(Err(why)), _) => self.lost_service(id, remote, why),
            (None, Err(error)) => self.lost_service(id, remote, error.to_string()),
            (None, Ok(())) if line.len() >= LINE_BYTES_MAX => {
                self.lost_service(id, remote, "its answer makes no sense".to_owned());
            }
            (None, Ok(())) => {}
        }
    }

    pub(super) fn lost_service(&mut self, id: u64, remote: usize, why: String) {
        drop(self.remove(id));
        self.not_listening(remote, &why);
    }

    /// The first time is the user's to mend; later it is tried again.
    pub(super) fn not_listening(&mut self, remote: usize, why: &str) {
        let asked = &mut self.remotes[remote];
        let (system, port) = (asked.spec.system, asked.spec.port);
        if !asked.worked {
            self.failed = Some(
                CliError::new(format_args!(
                    "{system} does not listen on port {port}: {why}"
                ))
                .remedy(format_args!(
                    "run `stp forward --accept-remote` on {system}, or choose another port"
                )),
            );
            return;
        }
        let wait = asked.wait;
        asked.wait = (wait * 2).min(ASK_AGAIN_MAX);
        say(format_args!(
            "{system} no longer listens on port {port}: {why}; asking again in {wait:?}"
        ));
        self.set_timer(wait, Timer::Ask(remote));
    }
}

/// Reads what is there, until `have` holds `bytes_max`. An end is an error here: nobody ends a handshake.
fn hear(stream: &stp::Stream, have: &mut Vec<u8>, bytes_max: usize) -> io::Result<()> {
    let mut bytes = [0; LINE_BYTES_MAX];
    while have.len() < bytes_max {
        let room = (bytes_max - have.len()).min(bytes.len());
        match (&*stream).read(&mut bytes[..room]) {
            Ok(0) => {
                let ended = "it ended the conversation";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, ended));
            }
            Ok(n) => have.extend_from_slice(&bytes[..n]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The line without its end, once it is whole.
fn whole_line(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some(&bytes[..end])
}

fn label_to(from: &str, to: &StpTarget) -> Arc<str> {
    let here = from.split(" -> ").next().unwrap_or(from);
    label(format_args!("{here} -> {to}"))
}
