//! Peers that name what is not theirs, or talk nonsense.

use std::ffi::OsString;
use std::fs::{self};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use stp_cli::files::client::{self, Connector};
use stp_cli::files::link::{Broken, Channel, MessageReader, MessageWriter};
use stp_cli::files::wire::{self, Code, Fault, Kind, Message, Meta, Mtime};

use crate::support::*;

#[test]
fn a_client_cannot_leave_the_served_folder() {
    let two = Two::new();
    fs::write(two.local("secret"), b"secret").unwrap();
    fs::write(two.local("mine"), b"mine").unwrap();
    symlink(two.local("secret"), two.served().join("abs")).unwrap();
    symlink("../local", two.served().join("out")).unwrap();
    fs::create_dir(two.served().join("in")).unwrap();
    symlink("in", two.served().join("inner")).unwrap();
    let line = line(&two.served());
    for source in [
        "beta:../local/secret",
        "beta:/etc/passwd",
        "beta:abs",
        "beta:out/secret",
        "beta:in/../../local/secret",
    ] {
        assert!(
            cp(&line, PLAIN, &[&source, &two.local("got")]).is_err(),
            "{source}"
        );
        assert!(!two.local("got").exists(), "{source}");
    }
    for target in [
        "beta:../local/new",
        "beta:/tmp/stp-new",
        "beta:out/new",
        "beta:out",
        "beta:in/../../local",
    ] {
        assert!(
            cp(&line, PLAIN, &[&two.local("mine"), &target]).is_err(),
            "{target}"
        );
        assert!(!two.local("new").exists(), "{target}");
    }
    assert_eq!(fs::read(two.local("mine")).unwrap(), b"mine");
    for path in ["..", "/", "out/secret"] {
        assert!(
            client::list(&line, "beta", path.as_bytes()).is_err(),
            "{path}"
        );
    }
    // A link in the way of a file is replaced, not followed; in the way of a folder it is refused.
    fs::write(two.local("abs"), b"new").unwrap();
    cp(&line, PLAIN, &[&two.local("abs"), &"beta:."]).unwrap();
    assert_eq!(fs::read(two.local("secret")).unwrap(), b"secret");
    fs::create_dir(two.local("out")).unwrap();
    fs::write(two.local("out/planted"), b"x").unwrap();
    assert!(cp(&line, TREE, &[&two.local("out"), &"beta:."]).is_err());
    assert!(!two.local("planted").exists());
    // Links that stay inside are fine.
    cp(&line, PLAIN, &[&two.local("mine"), &"beta:inner"]).unwrap();
    assert!(two.served().join("in/mine").exists());
}

/// A server that answers as it likes.
struct Hostile {
    script: Vec<Message>,
    /// The last answer comes again and again.
    endless: bool,
    connections: AtomicUsize,
}

fn hostile(script: Vec<Message>) -> Hostile {
    Hostile {
        script,
        endless: false,
        connections: AtomicUsize::new(0),
    }
}

impl Connector for Hostile {
    fn connect(&self, _: &str) -> Result<Channel, Broken> {
        self.connections.fetch_add(1, Ordering::Relaxed);
        let (ours, theirs) = UnixStream::pair().map_err(Broken::NoConnection)?;
        let (script, endless) = (self.script.clone(), self.endless);
        std::thread::spawn(move || {
            let mut reader = MessageReader::new(Box::new(theirs.try_clone().unwrap()));
            let mut writer = MessageWriter::new(Box::new(theirs.try_clone().unwrap()));
            let _ = reader.message();
            let _ = writer.put(&Message::Welcome {
                version: 1,
                features: 0,
                read_only: false,
            });
            let _ = writer.flush();
            let _ = reader.message();
            for message in &script {
                let _ = writer.put(message);
            }
            while endless && writer.put(script.last().unwrap()).is_ok() {}
            let _ = writer.flush();
            while reader.message().is_ok() {}
        });
        Ok(Channel::new(ours, "beta:2121".into(), |s: &UnixStream| {
            let _ = s.shutdown(Shutdown::Both);
        }))
    }
}

#[test]
fn a_server_cannot_write_what_was_not_asked_for() {
    let two = Two::new();
    fs::create_dir(two.local("to")).unwrap();
    let mtime = Mtime::default();
    let file = |name: &[u8]| Message::File {
        id: 1,
        name: name.to_vec(),
        mode: 0o644,
        mtime,
        size: 0,
    };
    let enter = |id, name: &[u8]| Message::Enter {
        id,
        name: name.to_vec(),
        mode: 0o755,
        mtime,
    };
    let link = |id, name: &[u8], target: &[u8]| Message::Link {
        id,
        name: name.to_vec(),
        mtime,
        target: target.to_vec(),
    };
    let scripts = [
        vec![Message::Ready, file(b".bashrc"), Message::Finish],
        vec![Message::Ready, file(b"../x"), Message::Finish],
        vec![
            Message::Ready,
            enter(1, b".."),
            Message::Leave,
            Message::Finish,
        ],
        vec![
            Message::Ready,
            link(1, b"d", b".."),
            enter(2, b"d"),
            file(b"x"),
            Message::Finish,
        ],
        vec![Message::Ready, Message::Leave, Message::Finish],
        vec![
            Message::Ready,
            file(b"d"),
            Message::Begin { id: 1, start: 0 },
            Message::Hole { len: 1 << 40 },
        ],
        vec![
            Message::Ready,
            file(b"d"),
            Message::Begin { id: 1, start: 99 },
        ],
        vec![Message::Ready, file(b"d"), Message::Finish],
        vec![Message::Ready, file(b"d"), Message::Same { id: 1 }],
        vec![Message::Done { id: 3 }],
        vec![Message::Ready, enter(1, b"d"), Message::Finish],
    ];
    for script in scripts {
        let shown = format!("{script:?}");
        let operands: Vec<OsString> = vec!["beta:d".into(), two.local("to").into()];
        assert!(
            client::copy(&hostile(script), &operands, TREE).is_err(),
            "{shown}"
        );
        assert!(
            names(two.local("to").parent().unwrap()) == ["to"],
            "{shown}"
        );
        for name in names(&two.local("to")) {
            assert_eq!(name, "d", "{shown}");
            let _ = fs::remove_file(two.local("to/d"));
            let _ = fs::remove_dir_all(two.local("to/d"));
        }
    }
    // Without -r a folder is not accepted at all, and neither is a link, through which the next copy might go elsewhere.
    for entry in [enter(1, b"d"), link(1, b"d", b"/etc/passwd")] {
        let operands: Vec<OsString> = vec!["beta:d".into(), two.local("to").into()];
        let script = vec![Message::Ready, entry, Message::Finish];
        assert!(client::copy(&hostile(script), &operands, PLAIN).is_err());
        assert!(names(&two.local("to")).is_empty());
    }
}

#[test]
fn a_transfer_that_is_refused_half_way_does_not_harm_the_next() {
    let two = Two::new();
    fs::create_dir(two.local("to")).unwrap();
    let fault = Fault::new(Code::Other, "no more");
    let server = hostile(vec![Message::Ready, Message::Error(fault)]);
    let operands = ["beta:a".into(), "beta:b".into(), two.local("to").into()];
    client::copy(&server, &operands, PLAIN).unwrap_err();
    assert_eq!(server.connections.into_inner(), 2);
}

#[test]
fn a_listing_without_end_is_given_up() {
    let meta = Meta {
        kind: Kind::Link,
        mode: 0o777,
        mtime: Mtime::default(),
        size: 0,
        target: vec![b'x'; wire::PATH_MAX],
    };
    let entry = Message::Entry {
        name: b"n".to_vec(),
        meta,
    };
    let mut server = hostile(vec![entry]);
    server.endless = true;
    let error = client::list(&server, "beta", b"").unwrap_err().to_string();
    assert!(error.contains("more entries"), "{error}");
}

/// Takes everything until it is full, then nothing until it is cut.
#[derive(Default)]
struct Gate {
    full: bool,
    cut: bool,
}

struct Gated(UnixStream, Arc<(Mutex<Gate>, Condvar)>);

impl Write for Gated {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let (gate, changed) = &*self.1;
        let gate = changed
            .wait_while(gate.lock().unwrap(), |gate| gate.full && !gate.cut)
            .unwrap();
        if gate.cut {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.0.write(buf)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_peer_that_never_reads_is_cut_all_the_same() {
    let two = Two::new();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let gate = Arc::new((Mutex::new(Gate::default()), Condvar::new()));
    let (cut, is_cut) = mpsc::channel();
    let cutting = Arc::clone(&gate);
    line(&two.served()).server.start(Channel {
        reader: Box::new(theirs.try_clone().unwrap()),
        writer: Box::new(Gated(theirs, Arc::clone(&gate))),
        hangup: Arc::new(move || {
            cutting.0.lock().unwrap().cut = true;
            cutting.1.notify_all();
            let _ = cut.send(());
        }),
        peer: "alpha:1".into(),
    });
    let mut reader = MessageReader::new(Box::new(ours.try_clone().unwrap()));
    let mut writer = MessageWriter::new(Box::new(ours));
    let mut say = |message: &Message| {
        writer.put(message).unwrap();
        writer.flush().unwrap();
    };
    say(&Message::Hello {
        version_min: wire::VERSION_MIN,
        version_max: wire::VERSION,
        features: 0,
        transfer: [1; 16],
    });
    reader.message().unwrap();
    say(&Message::Put { path: Vec::new() });
    reader.message().unwrap();
    gate.0.lock().unwrap().full = true;
    say(&Message::Leave);
    is_cut.recv_timeout(Duration::from_secs(60)).unwrap();
}

#[test]
fn a_server_survives_nonsense() {
    let two = Two::new();
    let server = line(&two.served()).server;
    for (i, bytes) in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"",
        &[0xff; 100],
        &[0; 100],
        b"\x05\0\0\0\x01abcde",
    ]
    .iter()
    .enumerate()
    {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        server.start(Channel::new(
            theirs,
            format!("nonsense:{i}"),
            |s: &UnixStream| {
                let _ = s.shutdown(Shutdown::Both);
            },
        ));
        ours.write_all(bytes).unwrap();
        ours.shutdown(Shutdown::Write).unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let mut answer = Vec::new();
        // Ends, by a close or a reset, and does not hang.
        if let Err(e) = ours.read_to_end(&mut answer) {
            assert_eq!(e.kind(), io::ErrorKind::ConnectionReset);
        }
    }
}
