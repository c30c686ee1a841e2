//! Two engines in one process on one volume, each with a run directory of its own: what programs see.
//!
//! - Programs are plain Unix sockets here, as in life.
//! - Nothing is judged by time; a test that hangs is ended by [`world::PATIENCE`].

mod world;

use std::io::{self, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{PidfdFlags, PidfdGetfdFlags};
use stp_core::ResetReason;
use stp_format::{Geometry, Place, SeatId, SeatRecord, Superblock};
use stp_host::control::{Calls, ConnectFailure, Opening};
use stp_host::engine::{Ending, EngineConfig, start, start_shared};
use stp_host::rendezvous::RunDir;
use stp_host::volume::{FormatOptions, format};
use stp_medium::local::Local;
use stp_medium::{
    Access, Completion, IoChoice, Medium, Op, OpId, OpenOptions, SeatLock, VolumeSpec,
};

use world::*;

#[test]
fn an_echo_with_half_closes_ends_clean_on_both_sides() {
    let world = World::new();
    let (alpha, beta) = world.pair();
    let listener = beta.listen(PORT, false);
    let mut client = alpha.connect("beta", PORT);
    let (mut server, peer) = beta.accept(&listener);
    assert_eq!(peer.system, system("alpha"));
    assert_ne!(peer.port, 0);

    client.socket.write_all(b"are you there?").unwrap();
    client.finish();
    assert_eq!(server.read_to_end(), b"are you there?");
    assert_eq!(server.wait_ending(), Ending::Clean);
    assert_eq!(client.ending(), Ending::Open);
    server.socket.write_all(b"yes").unwrap();
    server.finish();
    assert_eq!(client.read_to_end(), b"yes");
    assert_eq!(client.wait_ending(), Ending::Clean);
    client.close();
    server.close();
}

#[test]
fn much_goes_both_ways_at_once_unchanged() {
    let world = World::new();
    let (alpha, beta) = world.pair();
    let listener = beta.listen(PORT, false);
    let client = alpha.connect("beta", PORT);
    let (server, _) = beta.accept(&listener);
    let total = 64 << 20;
    thread::scope(|scope| {
        for (end, send, check) in [(&client, 1, 2), (&server, 2, 1)] {
            scope.spawn(move || {
                send_pattern(&end.socket, send, total);
                end.finish();
            });
            scope.spawn(move || {
                check_pattern(&end.socket, check, total);
                assert_eq!((&end.socket).read(&mut [0]).unwrap(), 0);
                assert_eq!(end.wait_ending(), Ending::Clean);
            });
        }
    });
}

#[test]
fn many_streams_share_a_link() {
    let world = World::new();
    let (alpha, beta) = world.pair();
    let listener = beta.listen(PORT, false);
    let streams = 200;
    let bytes = 100_000;
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..streams {
                let (server, _) = beta.accept(&listener);
                scope.spawn(move || {
                    io::copy(&mut &server.socket, &mut &server.socket).unwrap();
                    assert_eq!(server.wait_ending(), Ending::Clean);
                    server.close();
                });
            }
        });
        for seed in 0..streams {
            let client = alpha.connect("beta", PORT);
            scope.spawn(move || {
                thread::scope(|scope| {
                    scope.spawn(|| {
                        send_pattern(&client.socket, seed, bytes);
                        client.finish();
                    });
                    check_pattern(&client.socket, seed, bytes);
                });
                assert_eq!((&client.socket).read(&mut [0]).unwrap(), 0);
                assert_eq!(client.wait_ending(), Ending::Clean);
                client.close();
            });
        }
    });
}

/// A program that is killed closes its sockets without a word: what it had sent arrives, and then the
/// peer must not take the end for the end of the file.
#[test]
fn a_program_that_dies_resets_its_streams_after_what_it_sent() {
    let world = World::new();
    let (alpha, beta) = world.pair();
    let listener = beta.listen(PORT, false);
    let mut client = alpha.connect("beta", PORT);
    let (mut server, _) = beta.accept(&listener);
    let sent = vec![7; 300_000];
    let writer = thread::spawn(move || {
        client.socket.write_all(&sent).unwrap();
        drop(client.socket);
        client.engine
    });
    assert_eq!(server.read_to_end().len(), 300_000);
    assert_eq!(
        server.wait_ending(),
        Ending::Reset(ResetReason::ProgramDied)
    );
    drop(writer.join().unwrap());
}

#[test]
fn a_raw_stream_ends_with_its_socket() {
    let world = World::new();
    let (alpha, beta) = world.pair();
    let listener = beta.listen(PORT, true);
    let client = alpha.try_connect("beta", PORT, true).unwrap();
    let (mut server, _) = beta.accept(&listener);
    (&client.socket).write_all(b"bye").unwrap();
    drop(client.socket);
    assert_eq!(server.read_to_end(), b"bye");
    assert_eq!(server.wait_ending(), Ending::Clean);
}

#[test]
fn an_abort_resets_the_peer() {
    let world = World::new();
    let (alpha, beta) = world.pair();
    let listener = beta.listen(PORT, false);
    let client = alpha.connect("beta", PORT);
    let (mut server, _) = beta.accept(&listener);
    client.engine.abort(client.token);
    assert_eq!(server.read_to_end(), b"");
    assert_eq!(server.wait_ending(), Ending::Reset(ResetReason::Aborted));
    assert_eq!(client.wait_ending(), Ending::Reset(ResetReason::Aborted));
}

#[test]
fn closing_with_bytes_unread_resets_as_tcp_does() {
    let world = World::new();
    let (alpha, beta) = world.pair();
    let listener = beta.listen(PORT, false);
    let mut client = alpha.connect("beta", PORT);
    let (server, _) = beta.accept(&listener);
    client.socket.write_all(b"never read").unwrap();
    rustix::event::poll(
        &mut [rustix::event::PollFd::new(
            &server.socket,
            rustix::event::PollFlags::IN,
        )],
        None,
    )
    .unwrap();
    server.close();
    assert_eq!(client.wait_ending(), Ending::Reset(ResetReason::Aborted));
    assert_eq!(client.read_to_end(), b"");
}

#[test]
fn who_does_not_listen_or_exist_is_named() {
    let world = World::new();
    let (alpha, beta) = world.pair();
    let _other = beta.listen(PORT + 1, false);
    let refused = alpha.try_connect("beta", PORT, false).err().unwrap();
    assert_eq!(refused, ConnectFailure::Refused);
    let unknown = alpha.try_connect("gamma", PORT, false).err().unwrap();
    assert_eq!(unknown, ConnectFailure::UnknownSystem);
    drop(beta);
}

/// A listener whose process died leaves its socket behind: the first connection finds nobody, and the
/// port is taken off the volume.
#[test]
fn a_dead_listener_is_refused_and_forgotten() {
    let world = World::new();
    let (alpha, beta) = world.pair();
    drop(beta.listen(PORT, false));
    let refused = alpha.try_connect("beta", PORT, false).err().unwrap();
    assert_eq!(refused, ConnectFailure::Refused);
    let listener = beta.listen(PORT, false);
    let client = alpha.connect("beta", PORT);
    let (server, _) = beta.accept(&listener);
    client.close();
    server.close();
}

/// Listens on [`PORT`] with a short queue.
fn narrow_listener(host: &Host, backlog: i32) -> UnixListener {
    let path = host.dir.port_socket(PORT);
    let (family, flags) = (AddressFamily::UNIX, SocketFlags::CLOEXEC);
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None).unwrap();
    rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(&path).unwrap()).unwrap();
    rustix::net::listen(&socket, backlog).unwrap();
    host.engine.listen(PORT, &path, false).unwrap();
    UnixListener::from(socket)
}

#[test]
fn a_full_backlog_makes_connections_wait_and_loses_none() {
    let world = World::new();
    let (alpha, beta) = world.pair();
    let listener = narrow_listener(&beta, 1);
    let other = beta.listen(PORT + 1, false);
    let count = 12;
    thread::scope(|scope| {
        for seed in 0..count {
            let alpha = &alpha;
            scope.spawn(move || {
                let client = alpha.connect("beta", PORT);
                send_pattern(&client.socket, seed, 5000);
                client.close();
            });
        }
        // Another port is served meanwhile.
        let client = alpha.connect("beta", PORT + 1);
        let (server, _) = beta.accept(&other);
        client.close();
        server.close();
        for _ in 0..count {
            let (mut server, _) = beta.accept(&listener);
            assert_eq!(server.read_to_end().len(), 5000);
            assert_eq!(server.wait_ending(), Ending::Clean);
            server.close();
        }
    });
}

/// A program that closes its socket, or dies, does not leave its attempt behind until the time for that is over.
#[test]
fn connecting_ends_with_the_programs_socket() {
    let world = World::new();
    let (alpha, beta) = world.pair();
    let listener = narrow_listener(&beta, 0);
    let first = alpha.connect("beta", PORT);
    thread::scope(|scope| {
        let (program, engine) = UnixStream::pair().unwrap();
        let socket = OwnedFd::from(engine);
        let attempt = scope.spawn(|| {
            let to = system("beta");
            let limit = Some(PATIENCE * 10);
            alpha.engine.connect(&to, PORT, socket, false, limit)
        });
        // It waits: the listener's queue is full and stays so.
        drop(program);
        let failure = attempt.join().unwrap().unwrap_err();
        assert!(
            matches!(&failure, ConnectFailure::Failed(why) if why.contains("closed its socket")),
            "{failure:?}"
        );
    });
    drop((first, listener));
}

/// Somebody who gave up must not be found in the listener's queue as a stream that says nothing.
#[test]
fn a_connection_that_nobody_waits_for_any_more_is_withdrawn() {
    let world = World::new();
    let (alpha, beta) = world.pair();
    let listener = narrow_listener(&beta, 0);
    let first = alpha.connect("beta", PORT);
    let (_program, engine) = UnixStream::pair().unwrap();
    let gave_up = alpha.engine.connect(
        &system("beta"),
        PORT,
        OwnedFd::from(engine),
        false,
        Some(Duration::from_millis(50)),
    );
    assert_eq!(gave_up.unwrap_err(), ConnectFailure::TimedOut);
    let (server, _) = beta.accept(&listener);
    thread::scope(|scope| {
        // If the one that gave up has come into the queue meanwhile, there is no room for another until it is
        // taken out: the third waits for that.
        scope.spawn(|| {
            let mut third = alpha.connect("beta", PORT);
            third.socket.write_all(b"third").unwrap();
            third.close();
        });
        let (mut last, _) = beta.accept(&listener);
        let mut heard = last.read_to_end();
        if heard.is_empty() {
            // It was in the queue before its end was known: then it is reset, not silent.
            assert!(matches!(last.wait_ending(), Ending::Reset(_)));
            heard = beta.accept(&listener).0.read_to_end();
        }
        assert_eq!(heard, b"third");
    });
    first.close();
    server.close();
    let report = alpha.engine.report("engine").unwrap();
    assert!(report.contains("\"system\":\"alpha\""), "{report}");
}

/// The engine itself keeps the time of an attempt that no thread waits for, and tells of its own end.
#[test]
fn attempts_that_no_thread_waits_for_are_answered_all_the_same() {
    let world = World::new();
    let (alpha, beta) = world.pair();
    let listener = narrow_listener(&beta, 0);
    let attempt = |timeout| {
        let (program, engine) = UnixStream::pair().unwrap();
        let (tell, told) = mpsc::channel();
        let how = Opening {
            timeout,
            ..Opening::default()
        };
        let reply = Box::new(move |outcome| tell.send(outcome).unwrap());
        let later = alpha.engine.later().unwrap();
        later.connect_later(&system("beta"), PORT, engine.into(), how, reply);
        (program, told)
    };
    let (_first, told) = attempt(None);
    let connected = told.recv().unwrap();
    assert!(connected.is_ok(), "{connected:?}");
    // The listener's queue is full now and stays so.
    let (_program, told) = attempt(Some(Duration::from_millis(50)));
    assert_eq!(told.recv().unwrap(), Err(ConnectFailure::TimedOut));
    let (_program, told) = attempt(None);
    alpha.engine.leave();
    let failure = told.recv().unwrap().unwrap_err();
    assert!(
        matches!(failure, ConnectFailure::EngineGone(_)),
        "{failure:?}"
    );
    drop(listener);
}

#[test]
fn a_reader_that_stops_stalls_only_itself() {
    let world = World::new();
    let (alpha, beta) = world.pair();
    let listener = beta.listen(PORT, false);
    let stuck = alpha.connect("beta", PORT);
    let (sleeper, _) = beta.accept(&listener);
    let total = 32 << 20;
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            send_pattern(&stuck.socket, 5, total);
            stuck.finish();
        });
        for seed in 10..13 {
            let client = alpha.connect("beta", PORT);
            let (server, _) = beta.accept(&listener);
            scope
                .spawn(move || {
                    let echo = scope.spawn(move || {
                        io::copy(&mut &server.socket, &mut &server.socket).unwrap();
                        server.close();
                    });
                    thread::scope(|scope| {
                        scope.spawn(|| {
                            send_pattern(&client.socket, seed, 4 << 20);
                            client.finish();
                        });
                        check_pattern(&client.socket, seed, 4 << 20);
                    });
                    client.close();
                    echo.join().unwrap();
                })
                .join()
                .unwrap();
        }
        assert!(
            !writer.is_finished(),
            "32 MiB went to a program that reads nothing"
        );
        check_pattern(&sleeper.socket, 5, total);
        assert_eq!((&sleeper.socket).read(&mut [0]).unwrap(), 0);
        assert_eq!(sleeper.wait_ending(), Ending::Clean);
    });
}

#[test]
fn a_leave_delivers_what_was_closed_and_resets_what_is_open() {
    let world = World::new();
    let (alpha, beta) = world.pair();
    let listener = beta.listen(PORT, false);
    let open = alpha.connect("beta", PORT);
    let (mut open_server, _) = beta.accept(&listener);
    let closed = alpha.connect("beta", PORT);
    let (mut closed_server, _) = beta.accept(&listener);
    let reader = thread::spawn(move || {
        let bytes = closed_server.read_to_end();
        (bytes.len(), closed_server.wait_ending())
    });
    let handle = alpha.engine.clone();
    send_pattern(&closed.socket, 3, 1 << 20);
    closed.close();
    handle.leave();

    assert_eq!(reader.join().unwrap(), (1 << 20, Ending::Clean));
    assert_eq!(open_server.read_to_end(), b"");
    assert!(matches!(open_server.wait_ending(), Ending::Reset(_)));
    assert!(matches!(open.ending(), Ending::Reset(_)));
    let gone = alpha.try_connect("beta", PORT, false).err().unwrap();
    assert!(matches!(gone, ConnectFailure::EngineGone(_)), "{gone:?}");
    let path = alpha.dir.port_socket(PORT);
    let error = alpha.engine.listen(PORT, &path, false).unwrap_err();
    assert!(
        error.to_string().contains("open the group again"),
        "{error}"
    );
    let peers = eventually(|| {
        let peers = beta.engine.peers().unwrap();
        let left = |p: &stp_host::control::Peer| p.state == stp_host::control::PeerState::Left;
        peers.iter().any(left).then_some(peers)
    });
    assert_eq!(peers.len(), 1);
    assert_eq!(peers[0].system, "alpha");
}

#[test]
fn a_peer_that_leaves_and_comes_back_is_reached_again() {
    let world = World::new();
    let alpha = world.host("alpha");
    for round in 0..3 {
        let beta = world.host("beta");
        let listener = beta.listen(PORT, false);
        let client = alpha.connect("beta", PORT);
        let (mut server, _) = beta.accept(&listener);
        (&client.socket).write_all(&[round]).unwrap();
        client.close();
        assert_eq!(server.read_to_end(), [round]);
        assert_eq!(server.wait_ending(), Ending::Clean);
        server.close();
    }
}

#[test]
fn groups_of_one_process_share_an_engine() {
    let world = World::new();
    let config = || {
        let mut medium = world.store.attach();
        medium.set_geometry(world.superblock.geometry);
        world.config("alpha", Box::new(medium))
    };
    let first = start_shared(config()).unwrap();
    let second = start_shared(config()).unwrap();
    assert_eq!(first.seat(), second.seat());
    drop(first);
    assert!(second.stopped().is_none());
    second.leave();
    let third = start_shared(config()).unwrap();
    assert!(third.stopped().is_none());
}

/// Storage that does what it should until it is told to bring down its caller, and whose locks are somebody else's for the
/// first so many times that one is asked for.
struct Bomb {
    inner: Local,
    fuse: Arc<AtomicBool>,
    busy: u32,
}

impl Medium for Bomb {
    fn set_geometry(&mut self, geometry: Geometry) {
        self.inner.set_geometry(geometry);
    }
    fn size_bytes(&self) -> io::Result<u64> {
        self.inner.size_bytes()
    }
    fn submit(&mut self, id: OpId, op: Op) {
        assert!(!self.fuse.load(Ordering::Relaxed), "boom");
        self.inner.submit(id, op);
    }
    fn kick(&mut self) {
        self.inner.kick();
    }
    fn poll(&mut self) -> Option<Completion> {
        self.inner.poll()
    }
    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.wait_fd()
    }
    fn depth(&self) -> usize {
        self.inner.depth()
    }
    fn lock_seat(&mut self, seat: SeatId) -> io::Result<SeatLock> {
        if let Some(left) = self.busy.checked_sub(1) {
            self.busy = left;
            return Ok(SeatLock::Busy);
        }
        self.inner.lock_seat(seat)
    }
    fn unlock_seat(&mut self, seat: SeatId) {
        self.inner.unlock_seat(seat);
    }
    fn describe(&self) -> String {
        self.inner.describe()
    }
}

#[test]
fn a_panic_in_the_engine_is_an_error_for_everybody_who_waits() {
    let world = World::new();
    let beta = world.host("beta");
    let listener = beta.listen(PORT, false);
    let fuse = Arc::new(AtomicBool::new(false));
    let bomb = Bomb {
        inner: world.store.attach(),
        fuse: Arc::clone(&fuse),
        busy: 0,
    };
    let config = world.config("alpha", Box::new(bomb));
    let dir = config.dir.clone();
    let alpha = Host {
        engine: start(config).unwrap(),
        dir,
    };
    let mut client = alpha.connect("beta", PORT);
    let (_server, _) = beta.accept(&listener);
    fuse.store(true, Ordering::Relaxed);
    let gone = eventually(|| alpha.try_connect("beta", PORT, false).err());
    assert!(
        matches!(&gone, ConnectFailure::EngineGone(why) if why.contains("boom")),
        "{gone:?}"
    );
    assert_eq!(client.read_to_end(), b"");
    assert_eq!(
        client.wait_ending(),
        Ending::Reset(ResetReason::EngineStopped)
    );
}

#[test]
fn a_second_node_of_a_system_takes_a_seat_of_its_own() {
    let world = World::new();
    let first = world.host("alpha");
    let second = world.host("alpha");
    assert_ne!(first.engine.seat(), second.engine.seat());
    let listener = second.listen(PORT, false);
    let beta = world.host("beta");
    let client = beta.connect("alpha", PORT);
    let (server, _) = second.accept(&listener);
    client.close();
    server.close();
}

/// The kernel lets go of a killed program's lock late.
#[test]
fn a_seat_that_this_host_had_is_taken_again_when_its_lock_is_free() {
    let world = World::new();
    let first = world.host("alpha");
    let seat = first.engine.seat();
    first.engine.leave();
    let late = Bomb {
        inner: world.store.attach(),
        fuse: Arc::default(),
        busy: 3,
    };
    let second = start(world.config("alpha", Box::new(late))).unwrap();
    assert_eq!(second.seat(), seat);
}

/// A host whose claim was overtaken, or whose seat another took while it stood still, must not go on as
/// if the seat were its own.
#[test]
fn a_node_whose_seat_was_taken_stops_and_says_so() {
    let world = World::new();
    let (alpha, beta) = world.pair();
    let listener = beta.listen(PORT, false);
    let mut client = alpha.connect("beta", PORT);
    let (_server, _) = beta.accept(&listener);
    let (seat, geometry) = (alpha.engine.seat(), world.superblock.geometry);
    world.store.with_bytes(|bytes| {
        for copy in 0..2 {
            let place = Place::Seat { seat, copy };
            let offset = geometry.offset(place, 1).unwrap() as usize;
            let bytes = &mut bytes[offset..];
            let decoded = SeatRecord::decode(bytes, world.superblock.volume, &geometry, seat);
            let Ok(mut record) = decoded else { continue };
            record.incarnation.0 += 1;
            let record = record.encode(&geometry);
            bytes[..record.len()].copy_from_slice(record.bytes());
        }
    });
    assert_eq!(client.read_to_end(), b"");
    assert!(matches!(client.wait_ending(), Ending::Reset(_)));
    let gone = eventually(|| alpha.try_connect("beta", PORT, false).err());
    assert!(
        matches!(&gone, ConnectFailure::EngineGone(why) if why.contains("another node has taken seat")),
        "{gone:?}"
    );
}

/// A file as volume, and hosts on it.
struct FileWorld {
    root: tempfile::TempDir,
    spec: VolumeSpec,
    superblock: Superblock,
}

impl FileWorld {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("volume");
        let spec: VolumeSpec = path.to_str().unwrap().parse().unwrap();
        let options = FormatOptions {
            group: "test".parse().unwrap(),
            size_bytes: Some(32 << 20),
            seats: 4,
            force: false,
        };
        let superblock = format(&spec, &options).unwrap().superblock;
        Self {
            root,
            spec,
            superblock,
        }
    }

    fn medium(&self, io: IoChoice) -> Box<dyn Medium> {
        let access = Access::ReadWrite;
        let mut medium = stp_medium::open(&self.spec, &OpenOptions { access, io }).unwrap();
        medium.set_geometry(self.superblock.geometry);
        medium
    }

    fn host(&self, name: &str, io: IoChoice) -> Host {
        let run = RunDir::open(&self.root.path().join(name)).unwrap();
        let dir = run.system(self.superblock.volume, &system(name)).unwrap();
        let host = run.host_id().unwrap();
        let medium = self.medium(io);
        let config = EngineConfig::new(medium, "file", self.superblock, dir.clone(), host);
        Host {
            engine: start(config).unwrap(),
            dir,
        }
    }

    /// What a child that is forked now has open of it: the same open files.
    fn forked_files(&self) -> Vec<OwnedFd> {
        let own = rustix::process::getpid();
        let own = rustix::process::pidfd_open(own, PidfdFlags::empty()).unwrap();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
            let path = entry.unwrap().path();
            if std::fs::read_link(&path).is_ok_and(|to| to.starts_with(self.root.path())) {
                let number = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
                let flags = PidfdGetfdFlags::empty();
                found.push(rustix::process::pidfd_getfd(&own, number, flags).unwrap());
            }
        }
        found
    }
}

/// The same over a real file, by io_uring where the kernel has it and by threads.
#[test]
fn a_file_carries_what_memory_carries() {
    for io in [IoChoice::Auto, IoChoice::Threads] {
        let world = FileWorld::new();
        let (alpha, beta) = (world.host("alpha", io), world.host("beta", io));
        let listener = beta.listen(PORT, false);
        let client = alpha.connect("beta", PORT);
        let (server, _) = beta.accept(&listener);
        let total = 16 << 20;
        thread::scope(|scope| {
            scope.spawn(|| {
                send_pattern(&client.socket, 1, total);
                client.finish();
            });
            scope.spawn(|| {
                check_pattern(&server.socket, 1, total);
                send_pattern(&server.socket, 2, total);
                server.finish();
            });
            check_pattern(&client.socket, 2, total);
        });
        assert_eq!(client.wait_ending(), Ending::Clean);
        assert_eq!(server.wait_ending(), Ending::Clean);
    }
}

/// A program that embeds an engine forks a child that lives on, and leaves: the seat is not the child's.
#[test]
fn a_forked_child_does_not_keep_the_seat() {
    for io in [IoChoice::Auto, IoChoice::Threads] {
        let world = FileWorld::new();
        let alpha = world.host("alpha", io);
        let seat = alpha.engine.seat();
        let is_locked = || {
            let host = alpha.dir.lock_seat(seat.0).unwrap().is_none();
            let lock = world.medium(io).lock_seat(seat).unwrap();
            (host, lock == SeatLock::Busy)
        };
        let has_locks = world.medium(io).lock_seat(SeatId(3)).unwrap() == SeatLock::Held;
        let childs = world.forked_files();
        assert!(childs.len() >= 2, "{childs:?}");
        assert_eq!(is_locked(), (true, has_locks));
        alpha.engine.leave();
        assert_eq!(is_locked(), (false, false));
    }
}

/// The sender closed in order and left; only its reader is late. That is an end of file, not a reset.
#[test]
fn what_was_closed_before_a_leave_ends_clean_however_late_it_is_read() {
    let mut world = World::new();
    // The window does not grow, so that two streams are let in equally far.
    world.limits.window_growth = 0;
    let (alpha, beta) = world.pair();
    let listener = beta.listen(PORT, false);
    let client = alpha.connect("beta", PORT);
    let (server, _) = beta.accept(&listener);
    // How much a reader that reads nothing lets in: its socket's share, and a window in its engine.
    client.socket.set_nonblocking(true).unwrap();
    let mut quiet = 0;
    while quiet < 20 {
        if let Err(error) = (&client.socket).write(&[7; 4096]) {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            quiet += 1;
            thread::sleep(Duration::from_millis(20));
        }
    }
    let taken = alpha.engine.stats().unwrap().sent_bytes as usize;
    drop((client, server));

    let client = alpha.connect("beta", PORT);
    let (mut server, _) = beta.accept(&listener);
    let written = taken - (100 << 10);
    send_pattern(&client.socket, 3, written);
    client.close();
    alpha.engine.leave();
    eventually(|| {
        let peers = beta.engine.peers().unwrap();
        let left = |p: &stp_host::control::Peer| p.state == stp_host::control::PeerState::Left;
        peers.iter().any(left).then_some(())
    });
    // Longer than beta waits for what alpha might still have written.
    thread::sleep(Duration::from_secs(1));
    assert_eq!(server.read_to_end().len(), written);
    assert_eq!(server.wait_ending(), Ending::Clean);
}
