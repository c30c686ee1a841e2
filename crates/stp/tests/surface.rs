//! Opening groups, names, addresses, errors: what has no twin in `std::net`.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::PermissionsExt;

use stp::{Error, Group, SystemState};
use support::Place;

#[test]
fn an_abort_is_a_reset_after_the_drained_bytes() {
    let place = Place::new();
    let group = place.group("alpha");
    let listener = group.listen(0).unwrap();
    let mut ours = group.connect(listener.local_addr().unwrap()).unwrap();
    let (mut theirs, _) = listener.accept().unwrap();
    ours.write_all(b"last").unwrap();
    ours.abort().unwrap();
    theirs.read_exact(&mut [0; 4]).unwrap();
    for _ in 0..2 {
        let error = theirs.read(&mut [0; 4]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert!(error.to_string().contains("alpha:"), "{error}");
    }
    let error = theirs.write(b"x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let error = ours.read(&mut [0; 4]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn names_that_are_none_are_refused_with_the_remedy() {
    let place = Place::new();
    let volume = place.root.path().join("volume");
    for (name, part) in [
        ("", "empty"),
        ("a b", "' '"),
        ("-x", "'-'"),
        (&"x".repeat(64), "64 bytes"),
    ] {
        let error = Group::builder(&volume).system(name).open().unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::SystemName { .. }), "{text}");
        assert!(text.contains(part) && text.contains("STP_SYSTEM"), "{text}");
    }
    let longest = "x".repeat(63);
    let group = place.group(&longest);
    let listener = group.listen(7000).unwrap();
    let ours = group.connect(format!("{longest}:7000")).unwrap();
    let (_, peer) = listener.accept().unwrap();
    assert_eq!(peer, ours.local_addr().unwrap());
}

#[test]
fn a_volume_that_is_missing_or_no_group_is_named() {
    let place = Place::new();
    let run = place.root.path().join("run");
    let open = |path: &std::path::Path| {
        let builder = Group::builder(path).system("alpha").run_dir(&run);
        builder.open().unwrap_err()
    };
    let missing = place.root.path().join("missing");
    let error = open(&missing);
    assert!(error.to_string().contains("missing"), "{error}");
    let zeros = place.root.path().join("zeros");
    std::fs::write(&zeros, vec![0; 1 << 20]).unwrap();
    let error = open(&zeros);
    assert!(matches!(error, Error::Volume { .. }), "{error}");
    assert!(error.to_string().contains("zeros"), "{error}");
}

#[test]
fn the_group_must_be_the_volumes() {
    let place = Place::new();
    let volume = place.root.path().join("volume");
    let other = Group::builder(&volume)
        .system("alpha")
        .group("other".parse().unwrap())
        .open()
        .unwrap_err();
    assert!(matches!(other, Error::OtherGroup { .. }), "{other}");
    let group = place.group("alpha");
    assert_eq!(group.name().as_str(), "lab");
    let _listener = group.listen(7000).unwrap();
    group.connect("lab/alpha:7000").unwrap();
    group.connect("lab/:7000").unwrap();
    let error = group.connect("other/alpha:7000").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("holds the group lab"), "{error}");
}

#[test]
fn a_run_directory_open_to_others_is_refused() {
    let place = Place::new();
    let run = place.root.path().join("open");
    std::fs::create_dir(&run).unwrap();
    std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o777)).unwrap();
    let builder = Group::builder(place.root.path().join("volume"));
    let error = builder.system("alpha").run_dir(&run).open().unwrap_err();
    assert!(matches!(error, Error::RunDir(_)), "{error}");
    assert!(error.to_string().contains("chmod 700"), "{error}");
}

#[test]
fn a_run_directory_with_a_long_path_works() {
    let place = Place::new();
    let run = place.root.path().join("r".repeat(150));
    let builder = Group::builder(place.root.path().join("volume"));
    let group = builder.system("alpha").run_dir(&run).open().unwrap();
    let listener = group.listen(7000).unwrap();
    let mut ours = group.connect(":7000").unwrap();
    let (mut theirs, _) = listener.accept().unwrap();
    ours.write_all(b"x").unwrap();
    theirs.read_exact(&mut [0]).unwrap();
}

#[test]
fn addresses_that_cannot_be_connected_to_say_why() {
    let place = Place::new();
    let group = place.group("alpha");
    for (addr, kind) in [
        ("nonsense", ErrorKind::InvalidInput),
        ("alpha:0", ErrorKind::AddrNotAvailable),
        (":1", ErrorKind::ConnectionRefused),
    ] {
        let error = group.connect(addr).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
    }
    let error = group.listen(7000).and_then(|_held| group.listen(7000));
    let text = error.unwrap_err().to_string();
    assert!(text.contains("7000") && text.contains("alpha"), "{text}");
}

#[test]
fn this_system_and_its_ports_are_listed() {
    let place = Place::new();
    let group = place.group("alpha");
    let _one = group.listen(7001).unwrap();
    let _two = group.listen(7000).unwrap();
    let systems = group.systems().unwrap();
    let here = systems.iter().find(|s| s.name == *group.system()).unwrap();
    assert_eq!(here.state, SystemState::Here);
    assert_eq!(here.ports, [7000, 7001]);
}

/// A program that knows only Unix sockets: it connects, says nothing of itself, and its end is an end.
#[test]
fn a_local_program_without_the_library_is_served() {
    let place = Place::new();
    let group = place.group("alpha");
    let listener = group.listen(7000).unwrap();
    let id = group.volume_id().to_string();
    let path = place.root.path().join("run-alpha").join(&id[..16]);
    let socket = path.join("alpha/ports/7000.sock");
    let mut raw = std::os::unix::net::UnixStream::connect(socket).unwrap();
    let (mut theirs, _) = listener.accept().unwrap();
    raw.write_all(b"plain").unwrap();
    drop(raw);
    let mut text = String::new();
    theirs.read_to_string(&mut text).unwrap();
    assert_eq!(text, "plain");
}
