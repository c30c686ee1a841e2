//! Two programs of one system: a smoke test until the parity suite takes over.

use std::io::{ErrorKind, Read, Write};

use stp_format::superblock::Superblock;

fn group(root: &std::path::Path) -> stp::Group {
    let volume = root.join("volume");
    if !volume.exists() {
        let geometry = stp_format::Geometry::plan(256 << 20, 16).unwrap();
        let superblock = Superblock {
            volume: stp::VolumeId([9; 16]),
            group: "lab".parse().unwrap(),
            geometry,
            created_unix_s: 0,
        };
        std::fs::write(&volume, superblock.encode().bytes()).unwrap();
    }
    stp::Group::builder(&volume)
        .system("alpha")
        .run_dir(root.join("run"))
        .open()
        .unwrap()
}

#[test]
fn bytes_go_both_ways_and_end_in_order() {
    let root = tempfile::tempdir().unwrap();
    let group = group(root.path());
    let listener = group.listen(7000).unwrap();
    let server = std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        assert_eq!(peer.system.unwrap().as_str(), "alpha");
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        stream.write_all(text.to_uppercase().as_bytes()).unwrap();
    });
    let mut stream = group.connect(":7000").unwrap();
    stream.write_all(b"hello").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "HELLO");
    server.join().unwrap();
    let refused = group.connect(":7000").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn an_abort_is_a_reset() {
    let root = tempfile::tempdir().unwrap();
    let group = group(root.path());
    let listener = group.listen(0).unwrap();
    let ours = group.connect(listener.local_addr().unwrap()).unwrap();
    let (mut theirs, _) = listener.accept().unwrap();
    (&ours).write_all(b"last").unwrap();
    ours.abort().unwrap();
    let mut bytes = [0; 4];
    theirs.read_exact(&mut bytes).unwrap();
    let error = theirs.read(&mut bytes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(error.to_string().contains("alpha:"), "{error}");
}
