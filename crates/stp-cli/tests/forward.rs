//! `stp forward` between two systems: bytes, half-close and reset, both ways, by every kind of forwarding.

mod common;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use common::{HANG, Running, World, noise};
use rustix::net::{AddressFamily, SocketType};
use rustix::process::Signal;

/// A TCP server that answers each connection by `answer`, on a thread for each.
fn server(answer: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let answer = answer.clone();
            std::thread::spawn(move || answer(stream.unwrap()));
        }
    });
    address
}

/// A port that nobody listens on, and nobody else can as long as the socket is there.
fn silent_port() -> (OwnedFd, SocketAddr) {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = rustix::net::getsockname(&socket).unwrap();
    (socket, address.try_into().unwrap())
}

/// Reads to the end, then answers with everything backwards.
fn backwards(mut stream: TcpStream) {
    let mut bytes = Vec::new();
    if stream.read_to_end(&mut bytes).is_ok() {
        bytes.reverse();
        let _ = stream.write_all(&bytes);
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(HANG)).unwrap();
    stream.set_write_timeout(Some(HANG)).unwrap();
    stream
}

/// Sends, ends its half, reads the answer to the end.
fn ask(mut stream: TcpStream, question: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(question)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// The address on 127.0.0.1 in a line that says what is forwarded.
fn local_address(line: &str) -> SocketAddr {
    let at = line.find("127.0.0.1:").unwrap();
    line[at..].split(' ').next().unwrap().parse().unwrap()
}

fn exposed(world: &World, port: u16, to: SocketAddr) -> Running {
    let mut forward = world.start("beta", &["forward", "--expose", &format!("{port}={to}")]);
    forward.line("forward: beta:");
    forward
}

#[test]
fn half_close_and_big_answers() {
    let world = World::new();
    let _beta = exposed(&world, 80, server(backwards));
    let mut alpha = world.start("alpha", &["forward", "-L", "0:beta:80"]);
    let address = local_address(&alpha.line("-> beta:80"));
    let question = noise(6_000_000, 5);
    let mut answer = ask(connect(address), &question).unwrap();
    answer.reverse();
    assert!(answer == question);
    assert_eq!(ask(connect(address), b"").unwrap(), b"");
    alpha.signal(Signal::TERM);
    assert_eq!(alpha.end().0, 0);
}

#[test]
fn a_program_of_this_system_answers_and_closes() {
    let world = World::new();
    let group = stp::Group::builder(world.volume())
        .system("alpha")
        .run_dir(world.folder.path().join("alpha"))
        .open()
        .unwrap();
    let listener = group.listen(80).unwrap();
    let mut alpha = world.start("alpha", &["forward", "-L", "0:alpha:80"]);
    let mut client = connect(local_address(&alpha.line("-> alpha:80")));
    let answer = noise(5_000_000, 11);
    let expected = answer.clone();
    let program = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&answer).unwrap();
    });
    // A client that is slow and does not end its own half: the program has closed long before the tail is read.
    let mut got = vec![0; expected.len() - 100_000];
    client.read_exact(&mut got).unwrap();
    program.join().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    client.read_to_end(&mut got).unwrap();
    assert!(got == expected);
}

#[test]
fn resets_are_carried_both_ways() {
    let world = World::new();
    let (tell, told) = std::sync::mpsc::channel();
    let target = server(move |mut stream| {
        let mut word = [0; 4];
        stream.read_exact(&mut word).unwrap();
        if &word == b"wait" {
            // The client resets: so it must be here.
            tell.send(stream.read(&mut word)).unwrap();
        } else {
            stream.write_all(b"last words").unwrap();
            std::thread::sleep(Duration::from_millis(200));
            rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
        }
    });
    let _beta = exposed(&world, 80, target);
    let mut alpha = world.start("alpha", &["forward", "-L", "0:beta:80"]);
    let address = local_address(&alpha.line("-> beta:80"));

    let mut client = connect(address);
    client.write_all(b"wait").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    drop(client);
    let error = told.recv_timeout(HANG).unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);

    let mut client = connect(address);
    client.write_all(b"kill").unwrap();
    let mut words = [0; 10];
    client.read_exact(&mut words).unwrap();
    assert_eq!(&words, b"last words");
    let error = client.read(&mut words).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[test]
fn a_refused_connection_harms_no_other() {
    let world = World::new();
    let _beta = exposed(&world, 80, server(backwards));
    let (_taken, nobody) = silent_port();
    let _dead = exposed(&world, 81, nobody);
    let args = [
        "forward",
        "-L",
        "0:beta:80",
        "-L",
        "0:beta:81",
        "-L",
        "0:beta:82",
    ];
    let mut alpha = world.start("alpha", &args);
    let good = local_address(&alpha.line("-> beta:80"));
    let dead = local_address(&alpha.line("-> beta:81"));
    let none = local_address(&alpha.line("-> beta:82"));
    for _ in 0..3 {
        for address in [dead, none] {
            let error = connect(address).read(&mut [0; 1]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        assert_eq!(ask(connect(good), b"abc").unwrap(), b"cba");
    }
}

#[test]
fn many_connections_at_once() {
    let world = World::new();
    let _beta = exposed(&world, 80, server(backwards));
    let mut alpha = world.start("alpha", &["forward", "-L", "0:beta:80"]);
    let address = local_address(&alpha.line("-> beta:80"));
    let clients: Vec<_> = (0..150u64)
        .map(|n| {
            std::thread::spawn(move || {
                let question = noise(20_000 + n as usize, n + 1);
                let mut answer = ask(connect(address), &question).unwrap();
                answer.reverse();
                assert!(answer == question, "connection {n}");
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
}

/// What a SOCKS5 server replies to a request for a name; the stream if it is connected.
fn socks(proxy: SocketAddr, name: &str, port: u16) -> Result<TcpStream, u8> {
    let mut stream = connect(proxy);
    let mut request = vec![5, 1, 0, 5, 1, 0, 3, u8::try_from(name.len()).unwrap()];
    request.extend_from_slice(name.as_bytes());
    request.extend_from_slice(&port.to_be_bytes());
    stream.write_all(&request).unwrap();
    let mut reply = [0; 12];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..3], [5, 0, 5]);
    if reply[3] == 0 {
        Ok(stream)
    } else {
        Err(reply[3])
    }
}

#[test]
fn socks_with_names() {
    let world = World::new();
    let _beta = exposed(&world, 80, server(backwards));
    let mut alpha = world.start("alpha", &["forward", "-D", "0"]);
    let proxy = local_address(&alpha.line("SOCKS5"));
    for name in ["beta", "beta.stp"] {
        let stream = socks(proxy, name, 80).unwrap();
        assert_eq!(ask(stream, b"name").unwrap(), b"eman");
    }
    assert_eq!(socks(proxy, "beta", 81).unwrap_err(), 5);
    assert_eq!(socks(proxy, "gamma.stp", 80).unwrap_err(), 4);
    assert_eq!(socks(proxy, "127.0.0.1", 80).unwrap_err(), 2);
    let mut stream = connect(proxy);
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    // It is hung up on, with or without a reset.
    assert!(!matches!(stream.read(&mut [0; 1]), Ok(1)));
}

#[test]
fn a_port_on_the_other_side() {
    let world = World::new();
    // What nobody else on this machine answers.
    let mine = format!("this is process {}", std::process::id());
    let answer = mine.clone();
    let target = server(move |mut stream| {
        let _ = stream.write_all(answer.as_bytes());
    });
    let spec = format!("beta:0:127.0.0.1:{}", target.port());

    let refused = world.start("alpha", &["forward", "-R", &spec]);
    let (code, said) = refused.end();
    assert_eq!(code, 1);
    assert!(said.contains("--accept-remote"), "{said}");

    let wrong = world.start("beta", &["forward", "--accept-remote=gamma"]);
    let mut wrong = wrong;
    wrong.line("listens for other systems");
    let (code, said) = world.start("alpha", &["forward", "-R", &spec]).end();
    assert_eq!(code, 1);
    assert!(said.contains("not among those"), "{said}");
    drop(wrong);

    let mut beta = world.start("beta", &["forward", "--accept-remote=gamma,alpha"]);
    beta.line("listens for other systems");
    let mut alpha = world.start("alpha", &["forward", "-R", &spec]);
    let address = local_address(&alpha.line("forward: beta:127"));
    for _ in 0..3 {
        assert_eq!(ask(connect(address), b"").unwrap(), mine.as_bytes());
    }
    // The port lives as long as the one that asked for it. Then another program may have it.
    alpha.signal(Signal::TERM);
    assert_eq!(alpha.end().0, 0);
    beta.line("ended");
    let later = TcpStream::connect(address).and_then(|stream| {
        stream.set_read_timeout(Some(HANG))?;
        ask(stream, b"")
    });
    assert_ne!(later.ok().as_deref(), Some(mine.as_bytes()));
}

/// A shared engine that dies takes its connections with it, not the programs: they find the next one, and
/// what they listen on is there again.
#[test]
fn a_new_engine_is_found_again() {
    let mut world = World::new();
    let target = server(backwards);
    let mut beta = world.start(
        "beta",
        &[
            "forward",
            "--accept-remote",
            "--expose",
            &format!("80={target}"),
        ],
    );
    beta.line("forward: beta:80");
    let spec = format!("beta:0:{target}");
    let mut alpha = world.start("alpha", &["forward", "-L", "0:beta:80", "-R", &spec]);
    let there = local_address(&alpha.line("-> beta:80"));
    let back = local_address(&alpha.line("forward: beta:127"));
    for address in [there, back] {
        assert_eq!(ask(connect(address), b"before").unwrap(), b"erofeb");
    }
    world.restart_engine("beta", Signal::KILL);
    let deadline = std::time::Instant::now() + HANG;
    for address in [there, back] {
        loop {
            let asked = TcpStream::connect(address).and_then(|stream| ask(stream, b"after"));
            match asked {
                Ok(answer) if answer == b"retfa" => break,
                // Nothing may ever look complete that is not.
                Ok(answer) => panic!("{answer:?} came from {address}"),
                Err(_) => {}
            }
            let late = std::time::Instant::now() > deadline;
            assert!(!late, "{address}: {}{}", alpha.said, beta.said);
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
