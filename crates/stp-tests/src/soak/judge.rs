//! The soak's judges: pure functions from what was seen to what was broken.
//!
//! - A stream may break only while something was killed; it may never bring a wrong, missing or doubled byte, and never
//!   end cleanly before its last byte.
//! - What an engine holds when all streams are gone is what it held before the first.

use std::collections::BTreeMap;

/// One line of `stp-load` about the end of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The stream's key.
    pub key: u64,
    /// Bytes sent and received by this end.
    pub sent: u64,
    /// See `sent`.
    pub received: u64,
    /// `None`: whole; else the kind of error.
    pub kind: Option<String>,
}

impl Ended {
    /// From a line that begins with `head` ("called", "served"); `None` if it is another line.
    #[must_use]
    pub fn parse(line: &str, head: &str) -> Option<Self> {
        let words: BTreeMap<&str, &str> = line
            .strip_prefix(head)?
            .split_whitespace()
            .filter_map(|word| word.split_once('='))
            .collect();
        let number = |name: &str| words.get(name)?.parse().ok();
        let whole = line.ends_with(" whole");
        let kind = match whole {
            true => None,
            false => Some((*words.get("kind")?).to_owned()),
        };
        Some(Self {
            key: number("key")?,
            sent: number("sent")?,
            received: number("received")?,
            kind,
        })
    }
}

/// What a client was to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Bytes to the server.
    pub up: u64,
    /// Bytes from it.
    pub down: u64,
}

/// Errors by which sockets say that the other end, or the way there, is gone.
const BROKEN: &[&str] = &[
    "ConnectionReset",
    "ConnectionAborted",
    "ConnectionRefused",
    "BrokenPipe",
    "NotConnected",
    "HostUnreachable",
    "NetworkDown",
    "TimedOut",
];

/// What is wrong with the end of a stream; `killed`: something that it needs was killed while it lived.
#[must_use]
pub fn stream(ended: &Ended, wanted: Option<Wanted>, killed: bool) -> Option<String> {
    let key = ended.key;
    match (&ended.kind, wanted) {
        (None, Some(wanted)) if (ended.sent, ended.received) != (wanted.up, wanted.down) => {
            Some(format!(
                "stream {key}: called whole with {} of {} bytes sent and {} of {} received",
                ended.sent, wanted.up, ended.received, wanted.down
            ))
        }
        (None, _) => None,
        (Some(kind), _) if !BROKEN.contains(&&**kind) => Some(format!(
            "stream {key}: {kind} after {} bytes: lost, doubled or foreign bytes, or a false end",
            ended.received
        )),
        (Some(kind), _) if !killed => Some(format!(
            "stream {key}: {kind} after {} bytes, and nothing had been killed",
            ended.received
        )),
        (Some(_), Some(wanted)) if ended.received > wanted.down || ended.sent > wanted.up => {
            Some(format!("stream {key}: more bytes than it has"))
        }
        _ => None,
    }
}

/// Both ends of one stream: neither has more than the other gave.
#[must_use]
pub fn pair(called: &Ended, served: &Ended) -> Option<String> {
    let key = called.key;
    let beyond = served.received > called.sent && called.kind.is_none()
        || called.received > served.sent && served.kind.is_none();
    beyond.then(|| {
        format!("stream {key}: an end has bytes that the other did not send: {called:?} {served:?}")
    })
}

/// What a process or a host holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
    /// Resident memory, KiB.
    pub memory_kib: u64,
}

/// Memory that caches and fragmentation may take beyond the first measure, KiB.
const MEMORY_SLACK_KIB: u64 = 64 << 10;
/// Threads and descriptors of calls that are just ending.
const COUNT_SLACK: u64 = 2;

/// What an engine holds at rest beyond what it held at rest before.
#[must_use]
pub fn leak(name: &str, before: &Held, after: &Held) -> Vec<String> {
    let mut found = Vec::new();
    let mut more = |what: &str, before: u64, after: u64, slack: u64| {
        if after > before + slack {
            found.push(format!(
                "{name} leaks {what}: {after} at rest, {before} before"
            ));
        }
    };
    more(
        "descriptors",
        before.descriptors,
        after.descriptors,
        COUNT_SLACK,
    );
    more("threads", before.threads, after.threads, COUNT_SLACK);
    more(
        "memory (KiB)",
        before.memory_kib,
        after.memory_kib,
        MEMORY_SLACK_KIB,
    );
    found
}

/// Files of a run directory that nobody should have left there: everything but the fixed names and the ports.
#[must_use]
pub fn files(names: &[String], ports: &[u16]) -> Vec<String> {
    let known = |name: &str| {
        let file = name.rsplit('/').next().unwrap_or(name);
        let port = file
            .strip_suffix(".sock")
            .and_then(|port| port.parse::<u16>().ok());
        let seat = file
            .strip_suffix(".lock")
            .is_some_and(|seat| seat.parse::<u16>().is_ok());
        matches!(
            file,
            "host-id"
                | "engine.sock"
                | "engine.lock"
                | "lock"
                | "run.sock"
                | "run.key"
                | "run.namespace"
        ) || port.is_some_and(|port| ports.contains(&port))
            || seat
    };
    names.iter().filter(|name| !known(name)).cloned().collect()
}

/// What is wrong with a volume when all programs are gone: sockets, seats.
#[must_use]
pub fn volume(sockets: usize, seats: &[(String, String)], systems: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    if sockets != 0 {
        found.push(format!("{sockets} sockets are left in the tables"));
    }
    for system in systems {
        let up = seats
            .iter()
            .filter(|(name, state)| name == system && state == "up");
        let count = up.count();
        if count != 1 {
            found.push(format!("{system} sits in {count} seats"));
        }
    }
    for (name, state) in seats {
        if !matches!(&**state, "up" | "left" | "silent") {
            found.push(format!("a seat of {name} is {state}"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted = Wanted { up: 10, down: 20 };

    fn ended(kind: Option<&str>, sent: u64, received: u64) -> Ended {
        Ended {
            key: 7,
            sent,
            received,
            kind: kind.map(str::to_owned),
        }
    }

    #[test]
    fn lines_are_read() {
        let line = "called key=7 sent=10 received=20 whole";
        assert_eq!(Ended::parse(line, "called"), Some(ended(None, 10, 20)));
        let line =
            "served key=7 peer=a:1 sent=1 received=2 kind=ConnectionReset the peer's engine died";
        let found = Ended::parse(line, "served");
        assert_eq!(found, Some(ended(Some("ConnectionReset"), 1, 2)));
        assert_eq!(Ended::parse("connected key=7 local=a:1", "called"), None);
    }

    #[test]
    fn each_fault_of_a_stream_is_found() {
        let judge = |kind, sent, received, killed| {
            stream(&ended(kind, sent, received), Some(WANTED), killed)
        };
        assert_eq!(judge(None, 10, 20, false), None);
        assert!(judge(None, 10, 19, true).unwrap().contains("19 of 20"));
        assert!(
            judge(Some("UnexpectedEof"), 10, 5, true)
                .unwrap()
                .contains("false end")
        );
        assert!(
            judge(Some("InvalidData"), 10, 5, true)
                .unwrap()
                .contains("foreign")
        );
        assert!(
            judge(Some("ConnectionReset"), 10, 5, false)
                .unwrap()
                .contains("nothing had been killed")
        );
        assert_eq!(judge(Some("ConnectionReset"), 10, 5, true), None);
        assert!(
            judge(Some("ConnectionReset"), 10, 21, true)
                .unwrap()
                .contains("more bytes")
        );
    }

    #[test]
    fn bytes_from_nowhere_are_found() {
        let whole = ended(None, 10, 20);
        assert_eq!(pair(&whole, &ended(None, 20, 10)), None);
        assert!(pair(&whole, &ended(None, 20, 11)).is_some());
        assert!(pair(&whole, &ended(None, 19, 10)).is_some());
    }

    #[test]
    fn each_leak_is_found() {
        let before = Held {
            descriptors: 10,
            threads: 4,
            memory_kib: 10_000,
        };
        assert_eq!(leak("engine", &before, &before), Vec::<String>::new());
        let after = Held {
            descriptors: 13,
            threads: 7,
            memory_kib: 10_001 + MEMORY_SLACK_KIB,
        };
        assert_eq!(leak("engine", &before, &after).len(), 3);
        let names = [
            "host-id",
            "a/b/ports/7000.sock",
            "a/b/ports/9.sock",
            "a/b/.host-id-1",
        ];
        let names = names.map(str::to_owned);
        assert_eq!(
            files(&names, &[7000]),
            ["a/b/ports/9.sock", "a/b/.host-id-1"]
        );
    }

    #[test]
    fn each_leftover_on_the_volume_is_found() {
        let seat = |name: &str, state: &str| (name.to_owned(), state.to_owned());
        let good = [
            seat("alpha", "up"),
            seat("beta", "up"),
            seat("beta", "left"),
        ];
        assert_eq!(volume(0, &good, &["alpha", "beta"]), Vec::<String>::new());
        assert_eq!(volume(1, &good, &["alpha", "beta"]).len(), 1);
        let bad = [
            seat("alpha", "up"),
            seat("alpha", "up"),
            seat("x", "claiming"),
        ];
        assert_eq!(volume(0, &bad, &["alpha", "beta"]).len(), 3);
    }
}
