//! Options: the kernel's that make sense on a stream (`STPgetsockopt`), and STP's own (`STPgetopt`).
//!
//! - Every `SOL_SOCKET` option is in [`SOCKET_OPTIONS`] or refused with `ENOPROTOOPT`; the parity page lists the same.
//! - STP's own are numbers of 32 bits or texts. Those of the group can be set until it is opened.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Duration;

use libc::{c_int, c_void, socklen_t};
use stp::EngineChoice;

use super::fault::{Code, Fault, Outcome};
use super::socket::{Phase, Socket};
use super::{address, connect, home, memory, table};

/// What becomes of a `SOL_SOCKET` option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The kernel keeps it and acts as on TCP.
    Same,
    /// Taken, with another effect or none.
    Differs,
    /// A constant or something that only STP knows; it cannot be set.
    Told,
}

/// The options that there are.
pub const SOCKET_OPTIONS: &[(&str, c_int, Kind)] = &[
    ("SO_ACCEPTCONN", libc::SO_ACCEPTCONN, Kind::Same),
    ("SO_BROADCAST", libc::SO_BROADCAST, Kind::Differs),
    ("SO_DEBUG", libc::SO_DEBUG, Kind::Differs),
    ("SO_DOMAIN", libc::SO_DOMAIN, Kind::Told),
    ("SO_DONTROUTE", libc::SO_DONTROUTE, Kind::Differs),
    ("SO_ERROR", libc::SO_ERROR, Kind::Same),
    ("SO_KEEPALIVE", libc::SO_KEEPALIVE, Kind::Differs),
    ("SO_LINGER", libc::SO_LINGER, Kind::Differs),
    ("SO_OOBINLINE", libc::SO_OOBINLINE, Kind::Same),
    ("SO_PEERCRED", libc::SO_PEERCRED, Kind::Differs),
    ("SO_PRIORITY", libc::SO_PRIORITY, Kind::Differs),
    ("SO_PROTOCOL", libc::SO_PROTOCOL, Kind::Told),
    ("SO_RCVBUF", libc::SO_RCVBUF, Kind::Differs),
    ("SO_RCVLOWAT", libc::SO_RCVLOWAT, Kind::Differs),
    ("SO_RCVTIMEO", libc::SO_RCVTIMEO, Kind::Same),
    ("SO_REUSEADDR", libc::SO_REUSEADDR, Kind::Differs),
    ("SO_SNDBUF", libc::SO_SNDBUF, Kind::Differs),
    ("SO_SNDTIMEO", libc::SO_SNDTIMEO, Kind::Same),
    ("SO_TYPE", libc::SO_TYPE, Kind::Same),
];

/// STP's own options. The numbers are part of the interface.
pub mod number {
    use libc::c_int;
    /// The volume: a text.
    pub const VOLUME: c_int = 1;
    /// This system's name: a text.
    pub const SYSTEM: c_int = 2;
    /// The run directory: a text.
    pub const RUN_DIR: c_int = 3;
    /// The group's name: a text.
    pub const GROUP: c_int = 4;
    /// 0 shared or else embedded, 1 embedded, 2 shared.
    pub const ENGINE: c_int = 5;
    /// The longest interval between two looks, in microseconds.
    pub const POLL_US: c_int = 6;
    /// The most looks a second; 0: no bound.
    pub const POLL_IOPS: c_int = 7;
    /// Bytes that a peer may send ahead of a slow reader.
    pub const WINDOW: c_int = 8;
    /// Extents of its seat that one link's ring takes at the most.
    pub const RING: c_int = 9;
    /// Silence after which this program's engine is given up, in milliseconds.
    pub const DEAD_MS: c_int = 10;
    /// How long connecting may take, in milliseconds; 0: as long as the engine waits. Of a socket.
    pub const CONNECT_MS: c_int = 11;
    /// The end of this socket's bytes counts as meant however the program ends. Of a socket.
    pub const TCP_END: c_int = 12;
    /// The descriptor that tells of the socket's gift. Of a socket, and only told.
    pub const GIFT_FD: c_int = 13;
}

fn unknown(level: c_int, name: c_int) -> Fault {
    let text = format!("there is no option {name} at level {level} on an STP socket");
    Fault::new(libc::ENOPROTOOPT, Code::Option, text)
}

fn kind(name: c_int) -> Option<Kind> {
    let found = SOCKET_OPTIONS.iter().find(|(_, number, _)| *number == name);
    found.map(|(_, _, kind)| *kind)
}

/// `STPgetsockopt`.
pub fn get_kernel(
    fd: RawFd,
    level: c_int,
    name: c_int,
    to: *mut c_void,
    len: *mut socklen_t,
) -> Outcome<()> {
    table::find(fd)?;
    let number = |value: c_int| {
        let room = memory::room(len)?;
        let bytes = value.to_ne_bytes();
        let count = room.min(bytes.len());
        memory::write(to, &bytes[..count])?;
        memory::write_int(len.cast(), count as c_int)
    };
    match (level, name) {
        (libc::SOL_SOCKET, libc::SO_ERROR) => {
            memory::room(len)?;
            number(connect::take_error(fd)?)
        }
        (libc::SOL_SOCKET, libc::SO_DOMAIN | libc::SO_PROTOCOL) => number(address::AF_STP),
        (libc::SOL_SOCKET, name) if kind(name).is_some() => {
            // SAFETY: the kernel checks the program's memory.
            let done = unsafe { libc::getsockopt(fd, level, name, to, len) };
            if done == 0 {
                Ok(())
            } else {
                Err(Fault::last())
            }
        }
        // Small writes never wait to be joined.
        (libc::IPPROTO_TCP, libc::TCP_NODELAY) => number(1),
        (address::SOL_STP, name) => get(fd, name, to, len),
        (libc::SOL_SOCKET | libc::IPPROTO_TCP | libc::IPPROTO_IP | libc::IPPROTO_IPV6, name) => {
            Err(unknown(level, name))
        }
        (level, _) => {
            let text = format!("an STP socket has no options at level {level}");
            Err(Fault::new(libc::EOPNOTSUPP, Code::Option, text))
        }
    }
}

/// `STPsetsockopt`.
pub fn set_kernel(
    fd: RawFd,
    level: c_int,
    name: c_int,
    from: *const c_void,
    len: socklen_t,
) -> Outcome<()> {
    let socket = table::find(fd)?;
    match (level, name) {
        (libc::SOL_SOCKET, name) => match kind(name) {
            Some(Kind::Same | Kind::Differs) => {
                let connecting =
                    table::with(&socket, |state| matches!(state.phase, Phase::Connecting));
                // A larger buffer would look writable before there is a peer.
                let later = connecting && name == libc::SO_SNDBUF;
                if !later {
                    // SAFETY: the kernel checks the program's memory.
                    let done = unsafe { libc::setsockopt(fd, level, name, from, len) };
                    if done != 0 {
                        return Err(Fault::last());
                    }
                }
                let mut value = vec![0; (len as usize).min(64)];
                memory::read(from, &mut value)?;
                table::with(&socket, |state| {
                    state.send_buffer = later.then(|| value.clone()).or(state.send_buffer.take());
                    state.options.retain(|(_, known, _)| *known != name);
                    state.options.push((level, name, value));
                });
                Ok(())
            }
            _ => Err(unknown(level, name)),
        },
        (libc::IPPROTO_TCP, libc::TCP_NODELAY) => {
            if (len as usize) < size_of::<c_int>() {
                return Err(Fault::plain(libc::EINVAL));
            }
            memory::read_int(from).map(drop)
        }
        (address::SOL_STP, name) => set(fd, name, from, len),
        (level, name) => Err(unknown(level, name)),
    }
}

/// From now on the end of the socket's bytes counts as meant.
pub(super) fn end_as_tcp(socket: &Socket) {
    let fate = table::with(socket, |state| {
        state.tcp_end = true;
        let fate = state.fate.clone().filter(|_| !state.marked);
        state.marked |= fate.is_some();
        fate
    });
    if let Some(fate) = fate {
        fate.mark();
    }
}

fn no_option(option: c_int) -> Fault {
    let text = format!("STP has no option {option}");
    Fault::new(libc::ENOPROTOOPT, Code::Option, text)
}

fn of_socket(fd: RawFd) -> Outcome<Arc<Socket>> {
    if fd == -1 {
        let text = "this option is a socket's: name one, not -1";
        return Err(Fault::new(libc::EBADF, Code::Option, text));
    }
    table::find(fd)
}

/// `STPgetopt`.
pub fn get(fd: RawFd, option: c_int, to: *mut c_void, len: *mut socklen_t) -> Outcome<()> {
    let settings = home::settings();
    let open = home::opened();
    let text = |value: Option<String>| {
        let value = value.unwrap_or_default();
        let mut bytes = value.into_bytes();
        bytes.push(0);
        if memory::room(len)? < bytes.len() {
            let text = format!("{} bytes of room are needed", bytes.len());
            return Err(Fault::new(libc::ERANGE, Code::Option, text));
        }
        memory::write_cut(to, len, &bytes)
    };
    let whole = |value: u32| {
        if memory::room(len)? < size_of::<u32>() {
            return Err(Fault::new(
                libc::EINVAL,
                Code::Option,
                "4 bytes of room are needed",
            ));
        }
        memory::write_cut(to, len, &value.to_ne_bytes())
    };
    let named = |name: &str| std::env::var(name).ok();
    match option {
        number::VOLUME => {
            let open = open.map(|group| group.volume().display().to_string());
            text(open.or(settings.volume).or_else(|| named("STP_VOLUME")))
        }
        number::SYSTEM => {
            let open = open.map(|group| group.system().to_string());
            text(open.or(settings.system).or_else(|| named("STP_SYSTEM")))
        }
        number::RUN_DIR => text(settings.run_dir.or_else(|| named("STP_RUN_DIR"))),
        number::GROUP => {
            let open = open.map(|group| group.name().to_string());
            text(open.or(settings.group))
        }
        number::ENGINE => whole(match settings.engine {
            EngineChoice::Auto => 0,
            EngineChoice::Embedded => 1,
            EngineChoice::Shared => 2,
        }),
        number::POLL_US => {
            let poll = settings.poll.unwrap_or(DEFAULT_POLL);
            whole(u32::try_from(poll.as_micros()).unwrap_or(u32::MAX))
        }
        number::POLL_IOPS => whole(settings.poll_iops.unwrap_or(0)),
        number::WINDOW => {
            let window = settings.window.unwrap_or(DEFAULT_WINDOW);
            whole(u32::try_from(window).unwrap_or(u32::MAX))
        }
        number::RING => whole(u32::from(settings.ring.unwrap_or(DEFAULT_RING))),
        number::DEAD_MS => {
            let dead = settings.dead_after.unwrap_or(DEFAULT_DEAD);
            whole(u32::try_from(dead.as_millis()).unwrap_or(u32::MAX))
        }
        number::CONNECT_MS => {
            let socket = of_socket(fd)?;
            whole(table::with(&socket, |state| state.connect_ms))
        }
        number::TCP_END => {
            let socket = of_socket(fd)?;
            whole(u32::from(table::with(&socket, |state| state.tcp_end)))
        }
        number::GIFT_FD => whole(super::give::notice(fd)? as u32),
        option => Err(no_option(option)),
    }
}

const DEFAULT_POLL: Duration = Duration::from_millis(20);
const DEFAULT_WINDOW: u64 = 4 << 20;
const DEFAULT_RING: u16 = 16;
const DEFAULT_DEAD: Duration = Duration::from_secs(60);

/// `STPsetopt`.
pub fn set(fd: RawFd, option: c_int, from: *const c_void, len: socklen_t) -> Outcome<()> {
    let text = || -> Outcome<String> {
        let mut bytes = vec![0; len as usize];
        if bytes.len() > 4096 {
            return Err(Fault::new(
                libc::ENAMETOOLONG,
                Code::Option,
                "a text of more than 4096 bytes",
            ));
        }
        memory::read(from, &mut bytes)?;
        // With or without its ending zero.
        let end = bytes.iter().position(|byte| *byte == 0);
        bytes.truncate(end.unwrap_or(bytes.len()));
        let text = String::from_utf8(bytes)
            .ok()
            .filter(|text| !text.is_empty());
        text.ok_or_else(|| Fault::new(libc::EINVAL, Code::Option, "an empty text, or not UTF-8"))
    };
    let whole = |least: u32, most: u32| -> Outcome<u32> {
        let mut bytes = [0; 4];
        if len as usize != bytes.len() {
            let what = "this option is a number of 4 bytes (uint32_t)";
            return Err(Fault::new(libc::EINVAL, Code::Option, what));
        }
        memory::read(from, &mut bytes)?;
        let value = u32::from_ne_bytes(bytes);
        if (least..=most).contains(&value) {
            Ok(value)
        } else {
            let what = format!("{value} is not between {least} and {most}");
            Err(Fault::new(libc::EINVAL, Code::Option, what))
        }
    };
    match option {
        number::VOLUME => {
            let volume = text()?;
            home::change(|settings| settings.volume = Some(volume))
        }
        number::SYSTEM => {
            let system = text()?;
            if let Err(why) = system.parse::<stp::SystemName>() {
                let what = format!("{system:?} cannot be a system's name: {why}");
                return Err(Fault::new(libc::EINVAL, Code::System, what));
            }
            home::change(|settings| settings.system = Some(system))
        }
        number::RUN_DIR => {
            let run_dir = text()?;
            home::change(|settings| settings.run_dir = Some(run_dir))
        }
        number::GROUP => {
            let group = text()?;
            home::change(|settings| settings.group = Some(group))
        }
        number::ENGINE => {
            let choice = match whole(0, 2)? {
                0 => EngineChoice::Auto,
                1 => EngineChoice::Embedded,
                _ => EngineChoice::Shared,
            };
            home::change(|settings| settings.engine = choice)
        }
        number::POLL_US => {
            let longest = Duration::from_micros(u64::from(whole(100, 1_000_000)?));
            home::change(|settings| settings.poll = Some(longest))
        }
        number::POLL_IOPS => {
            let most = whole(0, u32::MAX)?;
            home::change(|settings| settings.poll_iops = Some(most))
        }
        number::WINDOW => {
            let bytes = u64::from(whole(64 << 10, 1 << 30)?);
            home::change(|settings| settings.window = Some(bytes))
        }
        number::RING => {
            let most = whole(1, u32::from(u16::MAX))? as u16;
            home::change(|settings| settings.ring = Some(most))
        }
        number::DEAD_MS => {
            let silence = Duration::from_millis(u64::from(whole(1000, 86_400_000)?));
            home::change(|settings| settings.dead_after = Some(silence))
        }
        number::CONNECT_MS => {
            let limit = whole(0, 86_400_000)?;
            let socket = of_socket(fd)?;
            table::with(&socket, |state| state.connect_ms = limit);
            Ok(())
        }
        number::TCP_END => {
            let socket = of_socket(fd)?;
            if whole(0, 1)? == 1 {
                end_as_tcp(&socket);
                return Ok(());
            }
            let marked = table::with(&socket, |state| {
                state.tcp_end = state.tcp_end && state.fate.is_some();
                state.tcp_end
            });
            if marked {
                let what = "the end of a connected socket cannot be taken back";
                return Err(Fault::new(libc::EINVAL, Code::Option, what));
            }
            Ok(())
        }
        option => Err(no_option(option)),
    }
}
