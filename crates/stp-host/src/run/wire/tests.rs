//! Every message, spelled and read; and everything that is none.

use super::*;

fn name(text: &str) -> SystemName {
    text.parse().unwrap()
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn requests() -> Vec<Request> {
    let long = name(&"s".repeat(63));
    vec![
        Request::Hello,
        Request::Systems { from: 700 },
        Request::Listen {
            at: at("0.0.0.0:80"),
            v6_only: false,
        },
        Request::Listen {
            at: at("[::]:65535"),
            v6_only: true,
        },
        Request::Unlisten {
            at: at("127.0.0.1:80"),
        },
        Request::Taken { port: 1 },
        Request::Connect {
            local: at("127.64.1.2:40000"),
            to: at("240.64.3.4:22"),
            wait_us: 5000,
        },
        Request::Resolve { name: long },
        Request::NameOf {
            ip: at("[100::5354:50:0:9]:0").ip(),
        },
        Request::Outcome {
            local: at("[::1]:40000"),
        },
        Request::Whois {
            local: at("[::1]:40000"),
            peer: at("127.64.0.0:1"),
        },
        Request::Namespace,
        Request::Stay,
    ]
}

fn answers() -> Vec<Answer> {
    let entry = |i| SystemEntry {
        name: name(&format!("{i:0>63}")),
        alive: i % 2 == 0,
    };
    let many: Vec<_> = (0..SYSTEMS_MAX + 2).map(entry).collect();
    let hello = Hello {
        volume: VolumeId([9; 16]),
        system: many[0].name,
        release: Text::new("1.2.3"),
        door_v4: at("127.64.0.0:5"),
        door_v6: None,
    };
    vec![
        Answer::failed(111, "x".repeat(1000)),
        Answer::Done,
        Answer::Hello(hello),
        Answer::Hello(Hello {
            door_v6: Some(at("[::1]:6")),
            ..hello
        }),
        Answer::systems(&many, 0),
        Answer::systems(&many, 3),
        Answer::systems(&many, 900),
        Answer::Truth(true),
        Answer::Connecting(Connecting::Door(at("127.64.0.0:5"))),
        Answer::Connecting(Connecting::Direct(at("[::1]:6"))),
        Answer::Outcome(Outcome::Unknown),
        Answer::Outcome(Outcome::Pending),
        Answer::Outcome(Outcome::Open),
        Answer::Outcome(Outcome::Failed(110)),
        Answer::Who(None),
        Answer::Who(Some(Peer {
            system: many[1].name,
            at: at("127.64.0.7:22"),
        })),
        Answer::Number(None),
        Answer::Number(SystemNumber::from_kernel(at("127.64.0.7:0").ip())),
        Answer::Name(None),
        Answer::Name(Some(many[1].name)),
        Answer::Namespace,
    ]
}

#[test]
fn what_is_spelled_is_read() {
    let key = Key::parse("00112233445566778899aabbccddeeff").unwrap();
    assert_eq!(Key::parse(&key.to_hex()), Some(key));
    assert_eq!(Key::parse("+0112233445566778899aabbccddeeff"), None);
    for request in requests() {
        let message = request.encode(key);
        assert_eq!(Request::decode(message.bytes()), Ok((key, request)));
    }
    for answer in answers() {
        let message = answer.encode();
        assert_eq!(Answer::decode(message.bytes()), Ok(answer));
    }
    let mapped = Request::Outcome {
        local: at("[::ffff:127.64.0.9]:7"),
    };
    let plain = Request::Outcome {
        local: at("127.64.0.9:7"),
    };
    let read = Request::decode(mapped.encode(key).bytes());
    assert_eq!(read, Ok((key, plain)));
}

#[test]
fn systems_come_in_pages() {
    let entry = |i| SystemEntry {
        name: name(&format!("h{i}")),
        alive: true,
    };
    let all: Vec<_> = (0..SYSTEMS_MAX + 2).map(entry).collect();
    let Answer::Systems { entries, more } = Answer::systems(&all, 0) else {
        panic!();
    };
    assert!(more && entries.iter().flatten().count() == SYSTEMS_MAX);
    let Answer::Systems { entries, more } = Answer::systems(&all, SYSTEMS_MAX as u16) else {
        panic!();
    };
    assert!(!more);
    assert_eq!(
        entries.iter().flatten().copied().collect::<Vec<_>>(),
        all[SYSTEMS_MAX..]
    );
}

#[test]
fn anything_else_is_refused() {
    let spelled = requests().into_iter().map(|r| r.encode(Key::default()));
    for message in spelled {
        let bytes = message.bytes();
        for cut in 0..bytes.len() {
            assert!(Request::decode(&bytes[..cut]).is_err(), "{cut}");
        }
        assert!(Request::decode(&[bytes, &[0]].concat()).is_err());
        assert!(Answer::decode(bytes).is_err());
    }
    for message in answers().into_iter().map(|a| a.encode()) {
        let bytes = message.bytes();
        for cut in 0..bytes.len() {
            assert!(Answer::decode(&bytes[..cut]).is_err(), "{cut}");
        }
        assert!(Answer::decode(&[bytes, &[0]].concat()).is_err());
    }
    let mut newer = Request::Hello.encode(Key::default());
    newer.bytes[4] = 2;
    assert_eq!(Request::decode(newer.bytes()), Err(Malformed::Version(2)));
}

#[test]
fn a_text_is_cut_between_characters() {
    let text = Text::new(&"ä".repeat(200));
    assert_eq!(text.as_str().chars().count(), 120);
    assert_eq!(Text::new("x").to_string(), "x");
}
