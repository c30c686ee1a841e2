//! The client: what `stp cp` and `stp ls` do, over any kind of connection.
//!
//! - Where the entries go is decided once, by what the destination is at the first look; a retry does not decide again.
//! - A lost connection is opened again with a growing pause; the count of tries starts over when something has moved.
//! - A source that fails does not stop the others.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};

use super::link::{Broken, Channel, Hangup, MessageReader, MessageWriter};
use super::paths;
use super::progress::{Naming, Progress};
use super::receive::{Allowed, receive};
use super::send::{self, Root};
use super::source::{self, Counting, Opened};
use super::wire::{self, Code, Fault, Kind, Message, Meta};
use crate::CliError;

const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Entries of one listing.
const LISTING_MAX: usize = 1 << 20;
/// Bytes of the names and link targets of one listing.
const LISTING_BYTES_MAX: usize = 256 << 20;

/// Opens connections to a system's file server. `Broken::NoConnection` is worth another try once a connection stood.
pub trait Connector {
    /// A new connection.
    fn connect(&self, system: &str) -> Result<Channel, Broken>;
}

/// How to copy.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Folders with everything in them.
    pub recursive: bool,
    /// Nothing but failures on standard error.
    pub quiet: bool,
    /// Tries after a lost connection without anything achieved.
    pub retries: u32,
}

/// A source or destination as the user wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operand {
    /// A path on this system.
    Local(OsString),
    /// A path below the folder that a system serves.
    Remote {
        /// The system.
        system: String,
        /// The path, as written.
        path: Vec<u8>,
    },
}

impl Operand {
    /// `SYSTEM:PATH` is remote: a colon with something before it and no slash before it. `./a:b` is local.
    pub fn parse(text: &OsStr) -> Self {
        let bytes = text.as_bytes();
        match bytes.iter().position(|&b| b == b':' || b == b'/') {
            Some(at) if at > 0 && bytes[at] == b':' => match std::str::from_utf8(&bytes[..at]) {
                Ok(system) => Self::Remote {
                    system: system.to_owned(),
                    path: bytes[at + 1..].to_vec(),
                },
                Err(_) => Self::Local(text.to_owned()),
            },
            _ => Self::Local(text.to_owned()),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Local(path) => path.as_bytes(),
            Self::Remote { path, .. } => path,
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Local(path) => paths::show(path.as_bytes()),
            Self::Remote { system, path } => format!("{system}:{}", paths::show(path)),
        }
    }

    /// The name its copy gets in a folder; none if it says "the contents of".
    fn name(&self) -> Option<Vec<u8>> {
        let mut bytes = self.bytes();
        while let [rest @ .., b'/'] = bytes {
            bytes = rest;
        }
        let name = bytes.rsplit(|&b| b == b'/').next().unwrap_or_default();
        wire::name_ok(name).then(|| name.to_vec())
    }
}

/// A connection that has said hello.
struct Session {
    system: String,
    reader: MessageReader,
    writer: Mutex<MessageWriter>,
    hangup: Hangup,
    read_only: bool,
    /// A transfer has begun on it and not ended in order.
    transferring: bool,
}

impl Session {
    fn open(connector: &dyn Connector, system: &str, transfer: [u8; 16]) -> Result<Self, Broken> {
        let Channel {
            reader,
            writer,
            hangup,
            ..
        } = connector.connect(system)?;
        let mut session = Self {
            system: system.to_owned(),
            reader: MessageReader::new(reader),
            writer: Mutex::new(MessageWriter::new(writer)),
            hangup,
            read_only: false,
            transferring: false,
        };
        let hello = Message::Hello {
            version_min: wire::VERSION_MIN,
            version_max: wire::VERSION,
            features: 0,
            transfer,
        };
        match session.ask(&hello)? {
            Message::Welcome {
                version, read_only, ..
            } if (wire::VERSION_MIN..=wire::VERSION).contains(&version) => {
                session.read_only = read_only;
                Ok(session)
            }
            _ => Err(Broken::Protocol(
                "the server's answer to hello is not acceptable".into(),
            )),
        }
    }

    fn ask(&mut self, message: &Message) -> Result<Message, Broken> {
        let writer = self
            .writer
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        // Who refuses to talk may say why before it closes: writing can fail while a reason waits to be read.
        let written = writer.put(message).and_then(|()| writer.flush());
        match (self.reader.message(), written) {
            (Err(Broken::Lost(_)), Err(e)) => Err(e.into()),
            (answer, _) => answer,
        }
    }

    fn stat(&mut self, path: &[u8], follow: bool) -> Result<Option<Meta>, Broken> {
        match self.ask(&Message::Stat {
            path: path.to_vec(),
            follow,
        })? {
            Message::StatReply(meta) => Ok(meta),
            _ => Err(out_of_place()),
        }
    }

    fn ready(&mut self, command: &Message) -> Result<(), Broken> {
        match self.ask(command)? {
            Message::Ready => {
                self.transferring = true;
                Ok(())
            }
            _ => Err(out_of_place()),
        }
    }
}

fn out_of_place() -> Broken {
    Broken::Protocol("an answer that does not belong here".into())
}

fn transfer_id() -> Result<[u8; 16], CliError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|e| CliError::new(format_args!("no random numbers: {e}")))?;
    Ok(id)
}

/// Copies; the error is silent if every failure was said already.
pub fn copy(
    connector: &dyn Connector,
    operands: &[OsString],
    options: Options,
) -> Result<Totals, CliError> {
    paths::raise_open_files();
    let mut sources: Vec<Operand> = operands.iter().map(|o| Operand::parse(o)).collect();
    let Some(target) = sources.pop() else {
        return Err(CliError::usage("no destination named"));
    };
    if sources.is_empty() {
        return Err(CliError::usage("no source named"));
    }
    let remote = |o: &Operand| matches!(o, Operand::Remote { .. });
    match (
        sources.iter().filter(|o| remote(o)).count(),
        remote(&target),
    ) {
        (0, false) => {
            return Err(
                CliError::usage("source and destination are both on this system")
                    .remedy("name one as SYSTEM:PATH, or use cp"),
            );
        }
        (n, true) if n > 0 => {
            return Err(
                CliError::usage("source and destination are both remote").remedy(
                    "run stp cp on one of the two systems, or copy by way of this one in two steps",
                ),
            );
        }
        (n, false) if n < sources.len() => {
            return Err(
                CliError::usage("some sources are remote and some are local")
                    .remedy("copy them in two steps"),
            );
        }
        _ => {}
    }
    let progress = Progress::start(options.quiet);
    let mut copier = Copier {
        connector,
        options,
        transfer: transfer_id()?,
        progress: &progress,
        session: None,
        systems: Vec::new(),
        connections: 0,
    };
    let result = match target {
        Operand::Remote { system, path } => copier.push(&sources, &system, &path),
        Operand::Local(path) => copier.pull(&sources, &path),
    };
    let connections = copier.connections;
    drop(copier);
    let moved = progress.moved_bytes();
    result?;
    match progress.finish() {
        0 => Ok(Totals { moved, connections }),
        _ => Err(CliError::silent()),
    }
}

/// What a copy took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Bytes of contents that went over connections.
    pub moved: u64,
    /// Connections that were opened.
    pub connections: u64,
}

struct Copier<'a> {
    connector: &'a dyn Connector,
    options: Options,
    transfer: [u8; 16],
    progress: &'a Progress,
    session: Option<Session>,
    /// Systems that a connection stood to.
    systems: Vec<String>,
    connections: u64,
}

impl Copier<'_> {
    /// Runs a step on a connection to this system, again and again as long as connections are lost and it makes sense.
    fn with<T>(
        &mut self,
        system: &str,
        mut step: impl FnMut(&mut Session, &Progress) -> Result<T, Broken>,
    ) -> Result<T, Broken> {
        let progress = self.progress;
        let (mut tries, mut pause) = (0, PAUSE_MIN);
        let mut activity = self.progress.activity();
        loop {
            let result = self.session(system).and_then(|session| {
                let value = step(session, progress)?;
                session.transferring = false;
                Ok(value)
            });
            let (was_lost, error) = match result {
                Ok(value) => return Ok(value),
                Err(Broken::Lost(error)) => (true, error),
                Err(Broken::NoConnection(error)) => (false, error),
                Err(broken) => {
                    // After a refused command the connection is as good as before; a transfer that broke has cut it.
                    let refused = matches!(broken, Broken::Refused(_));
                    self.session = self.session.take().filter(|s| refused && !s.transferring);
                    return Err(broken);
                }
            };
            self.session = None;
            if self.progress.activity() != activity {
                (activity, tries, pause) = (self.progress.activity(), 0, PAUSE_MIN);
            }
            let stood = self.systems.iter().any(|s| s == system);
            if !stood || tries >= self.options.retries {
                return Err(if was_lost {
                    Broken::Lost(error)
                } else {
                    Broken::NoConnection(error)
                });
            }
            tries += 1;
            self.progress.say(&format!(
                "{system}: {} ({error}); try {tries} of {} in {:.1} s",
                if was_lost {
                    "connection lost"
                } else {
                    "no connection"
                },
                self.options.retries,
                pause.as_secs_f64()
            ));
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn session(&mut self, system: &str) -> Result<&mut Session, Broken> {
        let session = match self.session.take() {
            Some(session) if session.system == system => session,
            // An open connection to another system ends here.
            _ => {
                let session = Session::open(self.connector, system, self.transfer)?;
                self.connections += 1;
                if !self.systems.iter().any(|s| s == system) {
                    self.systems.push(system.to_owned());
                }
                session
            }
        };
        Ok(self.session.insert(session))
    }

    fn push(&mut self, sources: &[Operand], system: &str, target: &[u8]) -> Result<(), CliError> {
        let shown = format!("{system}:{}", paths::show(target));
        let fatal = |broken: Broken| failure(&shown, &broken);
        let clean = paths::clean(target)
            .map_err(|fault| CliError::new(format_args!("{shown}: {fault}")))?;
        let meta = if clean.is_empty() {
            Some(Kind::Folder)
        } else {
            self.with(system, |s, _| s.stat(target, true))
                .map_err(fatal)?
                .map(|m| m.kind)
        };
        if self.session.as_ref().is_some_and(|s| s.read_only) {
            return Err(CliError::new(format_args!(
                "{shown}: the server is read-only; start it without --read-only to copy to it"
            )));
        }
        let place = Place::decide(
            &clean,
            target.ends_with(b"/"),
            meta,
            sources.len(),
            self.options.recursive,
        )
        .map_err(|text| CliError::new(format_args!("{shown}: {text}")))?;
        // Sources with a name go together; the contents of a folder by themselves.
        let mut named = Vec::new();
        let mut groups = Vec::new();
        for source in sources {
            match place.name(source) {
                Some(name) => named.push((Some(name), source)),
                None => groups.push(vec![(None, source)]),
            }
        }
        let named = self.without_duplicates(named);
        if !named.is_empty() {
            groups.insert(0, named);
        }
        for (number, group) in groups.iter().enumerate() {
            let recursive = self.options.recursive;
            let put = Message::Put {
                path: place.base.clone(),
            };
            let pushed = self.with(system, |session, progress| {
                progress.begin(number as u64, naming(group));
                session.ready(&put)?;
                let counted: Vec<Operand> =
                    group.iter().map(|(_, source)| (*source).clone()).collect();
                let counting: Counting = Box::new(move |stop| {
                    source::count(
                        counted.iter().filter_map(|s| open_local(s, recursive).ok()),
                        stop,
                    )
                });
                let mut roots =
                    group
                        .iter()
                        .filter_map(|(name, source)| match open_local(source, recursive) {
                            Ok(Opened::Folder(_)) if !recursive => {
                                source_failed(
                                    progress,
                                    name,
                                    &Fault::new(Code::IsFolder, "is a folder; copy it with -r"),
                                );
                                None
                            }
                            Ok(opened) => Some(Root {
                                name: name.clone(),
                                opened,
                            }),
                            Err(fault) => {
                                source_failed(progress, name, &fault);
                                None
                            }
                        });
                let writer = session
                    .writer
                    .get_mut()
                    .unwrap_or_else(PoisonError::into_inner);
                send::send(
                    &mut session.reader,
                    writer,
                    &session.hangup,
                    &mut roots,
                    Some(counting),
                    progress,
                )
            });
            self.progress.end();
            pushed.map_err(fatal)?;
        }
        Ok(())
    }

    fn pull(&mut self, sources: &[Operand], target: &OsStr) -> Result<(), CliError> {
        let shown = paths::show(target.as_bytes());
        let meta = match rustix::fs::stat(target) {
            Ok(stat) => Some(paths::kind(&stat)),
            Err(rustix::io::Errno::NOENT) => None,
            Err(e) => {
                return Err(CliError::new(format_args!(
                    "{shown}: {}",
                    paths::fault(e, "cannot look at it")
                )));
            }
        };
        let trailing = target.as_bytes().ends_with(b"/");
        let place = Place::decide(
            target.as_bytes(),
            trailing,
            meta,
            sources.len(),
            self.options.recursive,
        )
        .map_err(|text| CliError::new(format_args!("{shown}: {text}")))?;
        let base_name: &[u8] = if place.base.is_empty() {
            b"."
        } else {
            &place.base
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let base = rustix::fs::openat(CWD, base_name, flags, Mode::empty()).map_err(|e| {
            CliError::new(format_args!(
                "{}: {}",
                paths::show(base_name),
                paths::fault(e, "cannot open the target folder")
            ))
        })?;
        let named = sources.iter().map(|s| (place.name(s), s)).collect();
        for (number, (name, source)) in self.without_duplicates(named).into_iter().enumerate() {
            let Operand::Remote { system, path } = source else {
                continue;
            };
            let recursive = self.options.recursive;
            let get = Message::Get {
                path: path.clone(),
                recursive,
                name: name.clone().unwrap_or_default(),
            };
            let entry = [(name.clone(), source)];
            let pulled = self.with(system, |session, progress| {
                progress.begin(number as u64, naming(&entry));
                let base = base.try_clone().map_err(|e| {
                    Broken::Local(Fault::new(
                        Code::Other,
                        format!("cannot open the target folder: {e}"),
                    ))
                })?;
                session.ready(&get)?;
                let allowed = match &name {
                    Some(name) => Allowed::Only {
                        name: name.clone(),
                        any_kind: recursive,
                    },
                    None => Allowed::Any,
                };
                receive(
                    &mut session.reader,
                    &session.writer,
                    &session.hangup,
                    base,
                    allowed,
                    progress,
                )
            });
            self.progress.end();
            if let Err(broken @ (Broken::Lost(_) | Broken::NoConnection(_))) = &pulled {
                // The other sources would not fare better.
                return Err(failure(&source.shown(), broken));
            }
            if let Err(broken) = pulled {
                self.progress
                    .fail_source(&explain(&source.shown(), &broken));
            }
        }
        Ok(())
    }

    /// Two sources that would get the same name: the second is refused rather than put over the first.
    fn without_duplicates<'s>(
        &self,
        named: Vec<(Option<Vec<u8>>, &'s Operand)>,
    ) -> Vec<(Option<Vec<u8>>, &'s Operand)> {
        let mut taken = std::collections::HashSet::new();
        named
            .into_iter()
            .filter(|(name, source)| match name {
                Some(name) if !taken.insert(name.clone()) => {
                    self.progress.fail_source(&format!(
                        "{}: another source has the name `{}` too; copy it by itself",
                        source.shown(),
                        paths::show(name)
                    ));
                    false
                }
                _ => true,
            })
            .collect()
    }
}

/// Where copies go: a folder that is there, and the name if the user gave one.
struct Place {
    base: Vec<u8>,
    name: Option<Vec<u8>>,
}

impl Place {
    fn decide(
        target: &[u8],
        slash: bool,
        now: Option<Kind>,
        sources: usize,
        recursive: bool,
    ) -> Result<Self, String> {
        if now == Some(Kind::Folder) {
            return Ok(Self {
                base: target.to_vec(),
                name: None,
            });
        }
        if now.is_some() && (sources > 1 || slash) {
            return Err(
                "not a folder; name an existing folder to copy several sources into".into(),
            );
        }
        if now.is_none() && (sources > 1 || (slash && !recursive)) {
            return Err("no such folder; make it first".into());
        }
        let mut trimmed = target;
        while let [rest @ .., b'/'] = trimmed {
            trimmed = rest;
        }
        let (base, name) = match trimmed.iter().rposition(|&b| b == b'/') {
            Some(0) => (&b"/"[..], &trimmed[1..]),
            Some(at) => (&trimmed[..at], &trimmed[at + 1..]),
            None => (&b""[..], trimmed),
        };
        if !wire::name_ok(name) {
            return Err("not a usable name; choose another destination".into());
        }
        Ok(Self {
            base: base.to_vec(),
            name: Some(name.to_vec()),
        })
    }

    fn name(&self, source: &Operand) -> Option<Vec<u8>> {
        self.name.clone().or_else(|| source.name())
    }
}

fn naming(group: &[(Option<Vec<u8>>, &Operand)]) -> Naming {
    let mut naming = Naming::default();
    for (name, source) in group {
        match name {
            Some(name) => naming.names.push((name.clone(), source.shown())),
            None => naming.contents = Some(source.shown()),
        }
    }
    naming.names.sort();
    naming
}

fn source_failed(progress: &Progress, name: &Option<Vec<u8>>, fault: &Fault) {
    use super::report::Report;
    progress.failed(name.as_deref().unwrap_or_default(), fault);
}

/// Opens a source on this system: with -r a symbolic link is itself, without it is what it points to.
fn open_local(source: &Operand, recursive: bool) -> Result<Opened, Fault> {
    let path = source.bytes();
    let path = if path.is_empty() { b"." } else { path };
    let follow = !recursive || source.name().is_none();
    let cwd: OwnedFd = rustix::fs::openat(CWD, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| paths::fault(e, "cannot open the working folder"))?;
    source::open_source(cwd.as_fd(), path, follow)
}

fn explain(subject: &str, broken: &Broken) -> String {
    let text = paths::show_line(&broken.to_string());
    match broken {
        Broken::Lost(_) => {
            format!(
                "{subject}: {text}; what has arrived is kept: run the same command again to continue"
            )
        }
        _ => format!("{subject}: {text}"),
    }
}

fn failure(subject: &str, broken: &Broken) -> CliError {
    CliError::new(explain(subject, broken))
}

/// The entries at a path, sorted by name.
pub fn list(
    connector: &dyn Connector,
    system: &str,
    path: &[u8],
) -> Result<Vec<(Vec<u8>, Meta)>, CliError> {
    let fetch = || -> Result<Vec<(Vec<u8>, Meta)>, Broken> {
        let mut session = Session::open(connector, system, transfer_id().unwrap_or_default())?;
        let mut entries = Vec::new();
        let mut room = LISTING_BYTES_MAX;
        let mut answer = session.ask(&Message::List {
            path: path.to_vec(),
        })?;
        loop {
            match answer {
                Message::Entry { name, meta } => {
                    let left = room.checked_sub(name.len() + meta.target.len());
                    let Some(left) = left.filter(|_| entries.len() < LISTING_MAX) else {
                        let text = "more entries than can be listed; list a folder in it";
                        return Err(Broken::Local(Fault::new(Code::Other, text)));
                    };
                    room = left;
                    entries.push((name, meta));
                }
                Message::ListEnd => break,
                _ => return Err(out_of_place()),
            }
            answer = session.reader.message()?;
        }
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(entries)
    };
    fetch().map_err(|broken| {
        CliError::new(format_args!(
            "{system}:{}: {}",
            paths::show(path),
            paths::show_line(&broken.to_string())
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Operand {
        Operand::parse(OsStr::new(text))
    }

    #[test]
    fn what_is_remote() {
        let remote = |system: &str, path: &str| Operand::Remote {
            system: system.into(),
            path: path.into(),
        };
        assert_eq!(parse("beta:a/b"), remote("beta", "a/b"));
        assert_eq!(parse("beta:"), remote("beta", ""));
        assert_eq!(parse("beta:a:b"), remote("beta", "a:b"));
        for local in ["a", "./a:b", "/x/a:b", ":a", "dir/a:b"] {
            assert_eq!(parse(local), Operand::Local(local.into()), "{local}");
        }
    }

    #[test]
    fn names_of_copies() {
        for (operand, name) in [
            ("a/b", Some("b")),
            ("a/b/", Some("b")),
            ("a/.", None),
            (".", None),
            ("..", None),
            ("beta:", None),
            ("beta:x", Some("x")),
            ("/", None),
        ] {
            assert_eq!(
                parse(operand).name().as_deref(),
                name.map(str::as_bytes),
                "{operand}"
            );
        }
    }

    #[test]
    fn where_copies_go() {
        let decide = |target: &str, now, sources, recursive| {
            Place::decide(
                target.as_bytes(),
                target.ends_with('/'),
                now,
                sources,
                recursive,
            )
            .map(|p| {
                (
                    String::from_utf8(p.base).unwrap(),
                    p.name.map(|n| String::from_utf8(n).unwrap()),
                )
            })
        };
        let named = |base: &str, name: &str| Ok((base.to_owned(), Some(name.to_owned())));
        assert_eq!(
            decide("d", Some(Kind::Folder), 3, false),
            Ok(("d".into(), None))
        );
        assert_eq!(decide("a/new", None, 1, false), named("a", "new"));
        assert_eq!(decide("/new", None, 1, false), named("/", "new"));
        assert_eq!(decide("new/", None, 1, true), named("", "new"));
        assert!(decide("new/", None, 1, false).is_err());
        assert!(decide("new", None, 2, true).is_err());
        assert!(decide("file", Some(Kind::File), 2, true).is_err());
        assert!(decide("x/..", None, 1, true).is_err());
    }
}
