//! Programs under `stp run`, done by hand: TCP sockets that ask the engine as the preloaded library does.
//!
//! - Two engines in one process on one volume, each with its door.
//! - Nothing is judged by time; a test that hangs is ended by [`world::PATIENCE`].

mod world;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, getsockname, socket_with, sockopt};
use stp_host::address::{Addresses, is_reserved};
use stp_host::control::Calls;
use stp_host::rendezvous::PortSocket;
use stp_host::run::{Client, Connecting, Error, Outcome, Server, Way};

use world::*;

/// A system with what `stp run` needs of it.
struct Place {
    // First: the server uses the engine.
    _server: Server,
    host: Host,
    client: Client,
    own: IpAddr,
}

fn place(world: &World, name: &str) -> Place {
    let host = world.host(name);
    let server = Server::start(&host.dir, host.engine.clone()).unwrap();
    let client = Way::of(&host.dir).unwrap().client().unwrap();
    let own = Addresses::new(world.superblock.volume).kernel_v4(&system(name));
    Place {
        _server: server,
        host,
        client,
        own: own.into(),
    }
}

fn pair(world: &World) -> (Place, Place) {
    (place(world, "alpha"), place(world, "beta"))
}

impl Place {
    /// As a program that listens on every address.
    fn listen(&self, at: &str) -> (TcpListener, u16) {
        let listener = TcpListener::bind(at).unwrap();
        let at = listener.local_addr().unwrap();
        self.client.listen(at, at.is_ipv6()).unwrap();
        (listener, at.port())
    }

    /// A bound socket that is about to connect.
    fn bound(&self, ip: IpAddr) -> (OwnedFd, SocketAddr) {
        let family = match ip {
            IpAddr::V4(_) => AddressFamily::INET,
            IpAddr::V6(_) => AddressFamily::INET6,
        };
        let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        // Both systems are on one host here: the far engine uses the same name for its end.
        sockopt::set_socket_reuseaddr(&socket, true).unwrap();
        rustix::net::bind(&socket, &SocketAddr::new(ip, 0)).unwrap();
        let local = SocketAddr::try_from(getsockname(&socket).unwrap()).unwrap();
        (socket, local)
    }

    fn try_connect(&self, ip: IpAddr, to: SocketAddr, wait: Duration) -> Result<TcpStream, i32> {
        let (socket, local) = self.bound(ip);
        let Connecting::Door(door) = self
            .client
            .connect(local, to, wait)
            .map_err(|error| error.errno())?
        else {
            panic!("another system is behind the door");
        };
        match rustix::net::connect(&socket, &door) {
            Ok(()) => {}
            Err(_) => match self.client.outcome(local).unwrap() {
                Outcome::Failed(errno) => return Err(errno),
                other => panic!("{other:?}"),
            },
        }
        if let Outcome::Failed(errno) = self.client.outcome(local).unwrap() {
            return Err(errno);
        }
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Ok(stream)
    }

    /// As a program that connects and waits.
    fn connect(&self, to: &Place, port: u16) -> TcpStream {
        // A port that was published this moment is found by a fresh look.
        self.try_connect(self.own, SocketAddr::new(to.own, port), Duration::ZERO)
            .unwrap()
    }
}

fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    let (stream, peer) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    (stream, peer)
}

#[test]
fn two_programs_talk_and_know_each_other() {
    let world = World::new();
    let (alpha, beta) = pair(&world);
    let (listener, port) = beta.listen("0.0.0.0:0");
    let mut client = alpha.connect(&beta, port);
    let (mut server, peer) = accept(&listener);
    let local = client.local_addr().unwrap();
    assert_eq!(peer, local, "the kernel itself names the peer");
    assert_eq!(
        server.local_addr().unwrap(),
        SocketAddr::new(beta.own, port)
    );
    let door = client.peer_addr().unwrap();
    assert!(is_reserved(door.ip()));
    let who = alpha.client.whois(local, door).unwrap().unwrap();
    assert_eq!(
        (who.system, who.at),
        (system("beta"), SocketAddr::new(beta.own, port))
    );

    client.write_all(b"are you there?").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    server.read_to_string(&mut text).unwrap();
    assert_eq!(text, "are you there?");
    server.write_all(b"yes").unwrap();
    drop(server);
    text.clear();
    client.read_to_string(&mut text).unwrap();
    assert_eq!(text, "yes");
}

#[test]
fn much_goes_both_ways_at_once_unchanged() {
    let world = World::new();
    let (alpha, beta) = pair(&world);
    let (listener, port) = beta.listen("127.0.0.1:0");
    let client = alpha.connect(&beta, port);
    let (server, _) = accept(&listener);
    let total = 32 << 20;
    thread::scope(|scope| {
        for (end, send, check) in [(&client, 1, 2), (&server, 2, 1)] {
            scope.spawn(move || {
                send_pattern(end, send, total);
                end.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || {
                let mut end = end;
                check_pattern(end, check, total);
                assert_eq!(end.read(&mut [0]).unwrap(), 0);
            });
        }
    });
}

#[test]
fn what_was_sent_before_a_close_arrives() {
    let world = World::new();
    let (alpha, beta) = pair(&world);
    let (listener, port) = beta.listen("0.0.0.0:0");
    let total = 3 << 20;
    let mut client = alpha.connect(&beta, port);
    let (server, _) = accept(&listener);
    thread::scope(|scope| {
        scope.spawn(move || send_pattern(server, 3, total));
        // The reader comes late.
        thread::sleep(Duration::from_millis(100));
        check_pattern(&client, 3, total);
    });
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn sockets_for_ipv6_alone_connect_too() {
    let world = World::new();
    let (alpha, beta) = pair(&world);
    let (listener, port) = beta.listen("[::1]:0");
    let v6 = Addresses::new(world.superblock.volume).visible_v6(&system("beta"));
    let own = Ipv6Addr::LOCALHOST.into();
    let mut client = alpha
        .try_connect(own, SocketAddr::new(v6.into(), port), Duration::ZERO)
        .unwrap();
    let (mut server, peer) = accept(&listener);
    let who = beta.client.whois(server.local_addr().unwrap(), peer);
    let who = who.unwrap().unwrap();
    let port = client.local_addr().unwrap().port();
    assert_eq!(
        (who.system, who.at),
        (system("alpha"), SocketAddr::new(alpha.own, port))
    );
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
    // A truly local connection is nobody's.
    let local = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (local, peer) = (local.peer_addr().unwrap(), local.local_addr().unwrap());
    assert_eq!(beta.client.whois(local, peer).unwrap(), None);
}

#[test]
fn who_cannot_be_reached_is_told_by_number() {
    let world = World::new();
    let (alpha, beta) = pair(&world);
    let refused = SocketAddr::new(beta.own, 9);
    let at_once = Duration::from_secs(60);
    for wait in [Duration::ZERO, at_once] {
        let errno = alpha.try_connect(alpha.own, refused, wait).unwrap_err();
        assert_eq!(errno, Errno::CONNREFUSED.raw_os_error());
    }
    let nobody: SocketAddr = "240.64.0.1:9".parse().unwrap();
    let errno = alpha.try_connect(alpha.own, nobody, at_once).unwrap_err();
    assert_eq!(errno, Errno::HOSTUNREACH.raw_os_error());
    let elsewhere: SocketAddr = "10.1.2.3:9".parse().unwrap();
    let errno = alpha
        .try_connect(alpha.own, elsewhere, at_once)
        .unwrap_err();
    assert_eq!(errno, Errno::HOSTUNREACH.raw_os_error());
    // The engine connects to nothing but the host's own loopback on a program's word.
    let outside = alpha.client.connect(elsewhere, refused, at_once);
    assert_eq!(
        outside.unwrap_err().errno(),
        Errno::ADDRNOTAVAIL.raw_os_error()
    );
}

#[test]
fn a_reset_stays_a_reset_both_ways() {
    let world = World::new();
    let (alpha, beta) = pair(&world);
    let (listener, port) = beta.listen("0.0.0.0:0");
    let reset = |end: TcpStream| {
        sockopt::set_socket_linger(&end, Some(Duration::ZERO)).unwrap();
    };
    for client_goes in [true, false] {
        let client = alpha.connect(&beta, port);
        let (server, _) = accept(&listener);
        let (goes, mut stays) = if client_goes {
            (client, server)
        } else {
            (server, client)
        };
        reset(goes);
        let error = stays.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    // Closed with bytes unread: a reset as well.
    let mut client = alpha.connect(&beta, port);
    let (server, _) = accept(&listener);
    client.write_all(b"unread").unwrap();
    server.peek(&mut [0]).unwrap();
    drop(server);
    let error = client.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    // Writing to one that is gone: a reset, and then a broken pipe.
    let mut client = alpha.connect(&beta, port);
    drop(accept(&listener));
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    let error = eventually(|| client.write_all(b"x").err());
    assert!(
        matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        ),
        "{error}"
    );
}

#[test]
fn an_urgent_byte_arrives_as_one_and_in_its_place() {
    use rustix::net::{RecvFlags, SendFlags, recv, send};
    let world = World::new();
    let (alpha, beta) = pair(&world);
    let (listener, port) = beta.listen("0.0.0.0:0");
    for client_sends in [true, false] {
        let client = alpha.connect(&beta, port);
        let (server, _) = accept(&listener);
        let (from, to) = if client_sends {
            (&client, &server)
        } else {
            (&server, &client)
        };
        send(from, b"before", SendFlags::empty()).unwrap();
        send(from, b"!", SendFlags::OOB).unwrap();
        send(from, b"behind", SendFlags::empty()).unwrap();
        let mut bytes = [0; 32];
        let mut urgent = [0];
        eventually(|| recv(to, &mut urgent, RecvFlags::OOB | RecvFlags::DONTWAIT).ok());
        assert_eq!(&urgent, b"!");
        // The kernel stops at the mark, and has taken the urgent byte out of the line.
        let mut text = Vec::new();
        while text.len() < 12 {
            let (count, _) = recv(to, &mut bytes, RecvFlags::empty()).unwrap();
            text.extend_from_slice(&bytes[..count]);
        }
        assert_eq!(text, b"beforebehind");
    }
    // In line, for a program that wants it so; nothing else is lost.
    let client = alpha.connect(&beta, port);
    let (mut server, _) = accept(&listener);
    sockopt::set_socket_oobinline(&server, true).unwrap();
    for _ in 0..100 {
        send(&client, b"ab", SendFlags::empty()).unwrap();
        send(&client, b"!", SendFlags::OOB).unwrap();
    }
    drop(client);
    let mut text = String::new();
    server.read_to_string(&mut text).unwrap();
    assert_eq!(text, "ab!".repeat(100));
}

#[test]
fn an_engine_that_goes_is_no_end_of_file() {
    let world = World::new();
    let (alpha, beta) = pair(&world);
    let (listener, port) = beta.listen("0.0.0.0:0");
    let mut client = alpha.connect(&beta, port);
    let (mut server, _) = accept(&listener);
    alpha.host.engine.leave();
    for end in [&mut client, &mut server] {
        let error = end.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    let errno = alpha
        .try_connect(alpha.own, SocketAddr::new(beta.own, port), PATIENCE)
        .unwrap_err();
    assert_eq!(errno, Errno::NETDOWN.raw_os_error());
    let way = Way::of(&alpha.host.dir).unwrap().client().unwrap();
    drop(alpha);
    assert!(matches!(way.hello(), Err(Error::NoEngine(_))));
}

#[test]
fn a_port_has_one_owner_in_both_worlds() {
    let world = World::new();
    let beta = place(&world, "beta");
    let (listener, port) = beta.listen("0.0.0.0:0");
    let at = listener.local_addr().unwrap();
    beta.client.listen(at, false).unwrap();
    let taken = PortSocket::bind(&beta.host.dir, port).unwrap_err();
    assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    assert!(!beta.client.is_taken(port).unwrap());
    beta.client.unlisten(at).unwrap();
    let library = PortSocket::bind(&beta.host.dir, port).unwrap();
    assert!(beta.client.is_taken(port).unwrap());
    let refused = beta.client.listen(at, false).unwrap_err();
    assert_eq!(refused.errno(), Errno::ADDRINUSE.raw_os_error());
    assert!(refused.to_string().contains(&port.to_string()), "{refused}");
    drop(library);
    beta.client.listen(at, false).unwrap();
}

#[test]
fn a_program_of_this_system_reaches_it_through_the_run_directory() {
    use std::os::unix::net::UnixStream;
    let world = World::new();
    let beta = place(&world, "beta");
    let (listener, port) = beta.listen("0.0.0.0:0");
    let mut program = UnixStream::connect(beta.host.dir.port_socket(port)).unwrap();
    let (mut server, peer) = accept(&listener);
    assert_eq!(peer.ip(), beta.own);
    program.write_all(b"are you there?").unwrap();
    program.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    server.read_to_string(&mut text).unwrap();
    assert_eq!(text, "are you there?");
    server.write_all(b"yes").unwrap();
    drop(server);
    text.clear();
    program.read_to_string(&mut text).unwrap();
    assert_eq!(text, "yes");
}

#[test]
fn a_listener_that_is_gone_leaves_the_volume() {
    let world = World::new();
    let (alpha, beta) = pair(&world);
    let (listener, port) = beta.listen("0.0.0.0:0");
    drop(alpha.connect(&beta, port));
    drop(listener);
    let peers = || alpha.host.engine.peers().unwrap();
    eventually(|| {
        peers()
            .iter()
            .all(|peer| peer.ports.is_empty())
            .then_some(())
    });
    let to = SocketAddr::new(beta.own, port);
    let errno = alpha.try_connect(alpha.own, to, PATIENCE).unwrap_err();
    assert_eq!(errno, Errno::CONNREFUSED.raw_os_error());
    assert!(PortSocket::bind(&beta.host.dir, port).is_ok());
}

#[test]
fn what_listens_is_published_by_the_next_engine() {
    let world = World::new();
    let (alpha, mut beta) = pair(&world);
    let (listener, port) = beta.listen("0.0.0.0:0");
    let (gone, _) = beta.listen("0.0.0.0:0");
    drop(gone);
    beta.host.engine.leave();
    drop(beta);
    beta = place(&world, "beta");
    let mut client = eventually(|| {
        let to = SocketAddr::new(beta.own, port);
        alpha.try_connect(alpha.own, to, Duration::ZERO).ok()
    });
    let (mut server, _) = accept(&listener);
    client.write_all(b"x").unwrap();
    server.read_exact(&mut [0]).unwrap();
    let peers = alpha.host.engine.peers().unwrap();
    let ports: Vec<u16> = peers.into_iter().flat_map(|peer| peer.ports).collect();
    assert_eq!(ports, [port]);
}

#[test]
fn a_full_queue_makes_connections_wait() {
    const COUNT: usize = 24;
    let world = World::new();
    let (alpha, beta) = pair(&world);
    let (socket, at) = beta.bound(Ipv4Addr::LOCALHOST.into());
    rustix::net::listen(&socket, 2).unwrap();
    beta.client.listen(at, false).unwrap();
    let listener = TcpListener::from(socket);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..COUNT)
            .map(|_| scope.spawn(|| alpha.connect(&beta, at.port())))
            .collect();
        // Most of them wait by now.
        thread::sleep(Duration::from_millis(100));
        let mut servers: Vec<_> = (0..COUNT).map(|_| accept(&listener)).collect();
        for client in clients {
            let mut client = client.join().unwrap();
            client.write_all(b"x").unwrap();
        }
        for (server, _) in &mut servers {
            server.read_exact(&mut [0]).unwrap();
        }
    });
}

#[test]
fn a_name_that_is_taken_is_known_all_the_same() {
    let world = World::new();
    let (alpha, beta) = pair(&world);
    let (listener, port) = beta.listen("0.0.0.0:0");
    let (family, flags) = (AddressFamily::INET, SocketFlags::CLOEXEC);
    let client = socket_with(family, SocketType::STREAM, flags, None).unwrap();
    // It shares its name with nobody: on this one host the far engine cannot use it.
    rustix::net::bind(&client, &SocketAddr::new(alpha.own, 0)).unwrap();
    let local = SocketAddr::try_from(getsockname(&client).unwrap()).unwrap();
    let to = SocketAddr::new(beta.own, port);
    let Ok(Connecting::Door(door)) = alpha.client.connect(local, to, Duration::ZERO) else {
        panic!("another system is behind the door");
    };
    rustix::net::connect(&client, &door).unwrap();
    let (server, peer) = accept(&listener);
    assert!(is_reserved(peer.ip()), "{peer}");
    let who = beta.client.whois(server.local_addr().unwrap(), peer);
    let who = who.unwrap().unwrap();
    assert_eq!((who.system, who.at), (system("alpha"), local));
}

#[test]
fn names_and_addresses_lead_to_each_other() {
    let world = World::new();
    let (alpha, beta) = pair(&world);
    let addresses = Addresses::new(world.superblock.volume);
    let hello = alpha.client.hello().unwrap();
    assert_eq!(
        (hello.volume, hello.system),
        (world.superblock.volume, system("alpha"))
    );
    eventually(|| alpha.client.resolve(&system("beta")).unwrap());
    for (asked, name) in [("alpha", "alpha"), ("beta", "beta"), ("BETA", "beta")] {
        let number = alpha.client.resolve(&system(asked)).unwrap();
        assert_eq!(number, Some(addresses.number(&system(name))), "{asked}");
    }
    assert_eq!(alpha.client.resolve(&system("gamma")).unwrap(), None);
    let number = addresses.number(&system("beta"));
    let forms: [IpAddr; 3] = [
        beta.own,
        number.visible_v4().into(),
        number.visible_v6().into(),
    ];
    for ip in forms {
        let name = alpha.client.name_of(ip).unwrap();
        assert_eq!(name, Some(system("beta")), "{ip}");
    }
    let nobody = "240.64.0.1".parse().unwrap();
    assert_eq!(alpha.client.name_of(nobody).unwrap(), None);
    let systems = alpha.client.systems().unwrap();
    assert!(systems.iter().any(|s| s.name == system("beta") && s.alive));
    drop(beta);
    eventually(|| {
        let systems = alpha.client.systems().unwrap();
        systems
            .iter()
            .any(|s| s.name == system("beta") && !s.alive)
            .then_some(())
    });
    assert_eq!(alpha.client.namespaces().unwrap().len(), 2);
}

#[test]
fn this_system_is_the_kernels_business() {
    let world = World::new();
    let alpha = place(&world, "alpha");
    let (listener, port) = alpha.listen("127.0.0.1:0");
    let (_socket, local) = alpha.bound(alpha.own);
    let here = listener.local_addr().unwrap();
    // Loopback is the kernel's, in the family that was named, as over TCP.
    for (to, expected) in [
        ("127.0.0.1", here),
        ("::1", SocketAddr::new("::1".parse().unwrap(), port)),
        (&alpha.own.to_string(), here),
    ] {
        let to = SocketAddr::new(to.parse().unwrap(), port);
        let answer = alpha.client.connect(local, to, Duration::ZERO).unwrap();
        assert_eq!(answer, Connecting::Direct(expected));
    }
}
