//! What is written is read again, and nothing else is: every record survives its round trip, no single
//! changed byte goes unnoticed, and no bytes at all make a decoder panic.

use proptest::prelude::*;
use stp_format::segment::{FIRST_BYTES_AT, Frames, decode_segment, peek_segment};
use stp_format::*;

fn geometry() -> Geometry {
    Geometry::plan(8 << 20, 3).unwrap()
}

fn volume() -> VolumeId {
    VolumeId(*b"0123456789abcdef")
}

fn superblock() -> Superblock {
    Superblock {
        volume: volume(),
        group: "lab".parse().unwrap(),
        geometry: geometry(),
        created_unix_s: 1_700_000_000,
        features: Features::default(),
    }
}

fn seat_record() -> SeatRecord {
    SeatRecord {
        volume: volume(),
        seat: SeatId(1),
        state: SeatState::Up,
        incarnation: Incarnation(77),
        record_version: 5,
        heartbeat: 4,
        nonce: 0xdead_beef,
        host: [7; 16],
        system: "beta.lab-1".parse().unwrap(),
        pid: 4242,
        engine: 0x0001_0203,
        timings: SeatTimings {
            heartbeat_ms: 1000,
            suspect_ms: 5000,
            dead_ms: 60_000,
            poll_max_us: 20_000,
        },
        counters: SeatCounters {
            reads: 9,
            streams: 3,
            ..SeatCounters::default()
        },
        ports: vec![22, 80, 7000],
        ports_overflow: false,
        moves: false,
        links: vec![
            LinkEntry {
                peer_incarnation: Incarnation(5),
                epoch: Epoch(2),
                acked_epoch: Epoch(3),
                ring: geometry().ring(1, 4),
                last_seq: Seq(100),
                acked_seq: Seq(99),
            },
            LinkEntry::default(),
            LinkEntry::default(),
        ],
    }
}

fn table_unit() -> TableUnit {
    let scb = Scb {
        state: ScbState::Established,
        local_port: 7000,
        peer_port: 33000,
        peer_seat: SeatId(2),
        pid: 1,
        backlog: 0,
        peer_incarnation: Incarnation(8),
        stream: 12,
        sent_bytes: 1 << 40,
        received_bytes: 3,
        peer_system: Some("gamma".parse().unwrap()),
    };
    let mut scbs = vec![None; geometry::SCBS_PER_UNIT];
    scbs[3] = Some(scb);
    scbs[30] = Some(Scb {
        state: ScbState::Listen,
        peer_system: None,
        ..scb
    });
    TableUnit {
        volume: volume(),
        seat: SeatId(1),
        unit: 2,
        incarnation: Incarnation(77),
        unit_version: 6,
        scbs,
    }
}

fn segment_info() -> SegmentInfo {
    SegmentInfo {
        writer: SeatId(0),
        reader: SeatId(1),
        writer_incarnation: Incarnation(3),
        reader_incarnation: Incarnation(77),
        epoch: Epoch(1),
        seq: Seq(9),
        acked_epoch: Epoch(4),
        acked_seq: Seq(8),
        wants_ack: true,
    }
}

fn frames() -> Vec<Frame<'static>> {
    let key = StreamKey {
        by_writer: true,
        number: 7,
    };
    let answered = StreamKey {
        by_writer: false,
        number: 9,
    };
    vec![
        Frame {
            key,
            body: FrameBody::Open {
                to_port: 80,
                from_port: 40_000,
                credit: 65_536,
            },
        },
        Frame {
            key: answered,
            body: FrameBody::Accept { credit: 1 },
        },
        Frame {
            key,
            body: FrameBody::Data {
                offset: 10,
                bytes: b"hello, disk",
            },
        },
        Frame {
            key: answered,
            body: FrameBody::Credit { limit: 1 << 33 },
        },
        Frame {
            key,
            body: FrameBody::Urgent { offset: 21 },
        },
        Frame {
            key,
            body: FrameBody::Fin { offset: 21 },
        },
        Frame {
            key: answered,
            body: FrameBody::Reset { reason: 3 },
        },
    ]
}

/// The frames by which streams move from node to node.
fn moving_frames() -> Vec<Frame<'static>> {
    let key = StreamKey {
        by_writer: true,
        number: 7,
    };
    let token = MoveToken(*b"fedcba9876543210");
    let adopt = Adopt {
        token,
        giver: SeatId(2),
        giver_incarnation: Incarnation(5),
        key,
        sent: 1 << 40,
        received: 77,
        credit: 1 << 41,
    };
    let bodies = [
        FrameBody::Hold {
            token,
            offset: 1 << 40,
        },
        FrameBody::Held { offset: 77 },
        FrameBody::Resume,
        FrameBody::Resumed,
        FrameBody::Adopt(adopt),
        FrameBody::Moved,
    ];
    bodies.into_iter().map(|body| Frame { key, body }).collect()
}

fn moving_segment() -> UnitBuf {
    let mut builder = SegmentBuilder::new(UnitBuf::zeroed(1));
    for frame in moving_frames() {
        assert!(builder.push(&frame));
    }
    builder.seal(volume(), &segment_info()).0
}

/// What engines say to each other while a stream moves.
fn messages() -> Vec<GiftMessage> {
    let state = GiftState {
        token: MoveToken(*b"fedcba9876543210"),
        peer_seat: SeatId(3),
        peer_incarnation: Incarnation(9),
        key: StreamKey {
            by_writer: true,
            number: 12,
        },
        sent: 1 << 40,
        received: 1 << 41,
        credit: 1 << 42,
        local: ("alpha".parse().unwrap(), 33000),
        peer: ("beta".parse().unwrap(), 7000),
        finished: false,
        peer_finished: true,
        raw: false,
        finishes: true,
        deaf: false,
        unread: b"not read".to_vec(),
        unsent: b"not sent yet".to_vec(),
    };
    vec![
        GiftMessage::Offer {
            name: "heir".parse().unwrap(),
        },
        GiftMessage::Want,
        GiftMessage::Busy,
        GiftMessage::State(Box::new(state)),
        GiftMessage::Release,
        GiftMessage::Kept,
    ]
}

fn message_bytes() -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in messages() {
        message.encode(&mut bytes);
    }
    bytes
}

#[test]
fn messages_come_back_as_they_went_in_whatever_pieces() {
    let bytes = message_bytes();
    let (mut at, mut found) = (0, Vec::new());
    for end in 0..=bytes.len() {
        while let Some((message, length)) = GiftMessage::decode(&bytes[at..end]).unwrap() {
            found.push(message);
            at += length;
        }
    }
    assert_eq!((found, at), (messages(), bytes.len()));
}

#[test]
fn impossible_messages_are_refused_before_they_are_whole() {
    let whole = message_bytes();
    for (at, byte) in [(0, 9), (4, 63), (7, 0xff), (8, b'/')] {
        let mut bytes = whole.clone();
        bytes[at] = byte;
        assert!(GiftMessage::decode(&bytes).is_err(), "byte {at}");
    }
    // A state that promises more than it may bring, or other bytes than it brings.
    let mut state = Vec::new();
    messages()[3].encode(&mut state);
    for (at, byte) in [(7, 0xff), (8 + 64, 9), (8 + 80, 0)] {
        let mut bytes = state.clone();
        bytes[at] = byte;
        assert!(GiftMessage::decode(&bytes).is_err(), "byte {at}");
    }
}

fn segment() -> (UnitBuf, usize) {
    let mut builder = SegmentBuilder::new(UnitBuf::zeroed(2));
    for frame in frames() {
        assert!(builder.push(&frame));
    }
    let key = StreamKey {
        by_writer: true,
        number: 8,
    };
    builder.data_space(5)[..5].copy_from_slice(b"pulls");
    builder.commit_data(key, 0, 5);
    builder.seal(volume(), &segment_info())
}

/// What is appended to a stream's bytes makes their frame longer, as long as nothing else came between.
#[test]
fn appended_bytes_share_a_frame() {
    let key = |number| StreamKey {
        by_writer: true,
        number,
    };
    let mut builder = SegmentBuilder::new(UnitBuf::zeroed(1));
    let text: Vec<u8> = (0..5_000_u32).map(|i| (i % 251) as u8).collect();
    let mut at = 0;
    for size in [1, 7, 8, 64, 3] {
        let count = builder.append_data(key(1), at as u64, &text[at..at + size]);
        assert_eq!(count, size);
        at += size;
    }
    assert_eq!(builder.append_data(key(2), 9, b"another's"), 9);
    assert_eq!(builder.append_data(key(2), 100, b"gap"), 3);
    let rest = builder.append_data(key(1), at as u64, &text[at..]);
    assert!(rest > 3_000 && at + rest < text.len());
    assert_eq!(builder.append_data(key(1), 0, b"x"), 0);
    let more = builder.append_data(key(1), (at + rest) as u64, b"abcdefgh");
    assert!(more < 8, "the frame is padded to its alignment at the most");
    let (buf, _) = builder.seal(volume(), &segment_info());
    let (_, frames) = decode_segment(buf.bytes(), volume()).unwrap();
    let found: Vec<_> = frames.map(Result::unwrap).collect();
    let data = |offset, bytes| FrameBody::Data { offset, bytes };
    let mut last = text[at..at + rest].to_vec();
    last.extend(&b"abcdefgh"[..more]);
    let expected = [
        (key(1), data(0, &text[..at])),
        (key(2), data(9, b"another's")),
        (key(2), data(100, b"gap")),
        (key(1), data(at as u64, &last)),
    ];
    let found: Vec<_> = found.iter().map(|frame| (frame.key, frame.body)).collect();
    assert_eq!(found, expected);
}

#[test]
fn every_record_survives_its_round_trip() {
    let geometry = geometry();
    let unit = superblock().encode();
    assert_eq!(Superblock::decode(unit.bytes()), Ok(superblock()));
    let units = seat_record().encode(&geometry);
    assert_eq!(
        SeatRecord::decode(units.bytes(), volume(), &geometry, SeatId(1)),
        Ok(seat_record())
    );
    let unit = table_unit().encode();
    assert_eq!(
        TableUnit::decode(unit.bytes(), volume(), SeatId(1), 2),
        Ok(table_unit())
    );
    let (buf, units) = segment();
    assert_eq!(units, 1);
    let (info, found) = decode_segment(buf.bytes(), volume()).unwrap();
    assert_eq!(info, segment_info());
    let found: Vec<_> = found.map(Result::unwrap).collect();
    let (last, front) = found.split_last().unwrap();
    assert_eq!(front, frames());
    assert_eq!(
        last.body,
        FrameBody::Data {
            offset: 0,
            bytes: b"pulls"
        }
    );
}

/// Compatible and read-only compatible bits are kept for the caller to judge; an incompatible one is refused
/// before anything behind it is believed.
#[test]
fn feature_bits_mean_what_the_format_says() {
    let with = |features| Superblock {
        features,
        ..superblock()
    };
    let tolerated = with(Features {
        compatible: 0x8000_0001,
        read_only: 6,
        incompatible: 0,
    });
    assert_eq!(
        Superblock::decode(tolerated.encode().bytes()),
        Ok(tolerated)
    );
    assert_eq!(tolerated.features.unknown_read_only(), 6);
    let refused = with(Features {
        incompatible: 0x10,
        ..Features::default()
    });
    assert_eq!(
        Superblock::decode(refused.encode().bytes()),
        Err(Damage::Features(0x10))
    );
}

/// The bytes of format version 1, as the first release wrote them. They never change; `STP_BLESS=1` writes
/// those of a new version.
#[test]
fn the_bytes_are_those_of_every_release_of_this_version() {
    let (segment, _) = segment();
    let moving_seat = SeatRecord {
        moves: true,
        ..seat_record()
    };
    let golden = [
        ("superblock", superblock().encode().bytes().to_vec()),
        ("seat", seat_record().encode(&geometry()).bytes().to_vec()),
        ("table", table_unit().encode().bytes().to_vec()),
        ("segment", segment.bytes()[..UNIT_BYTES].to_vec()),
        ("gift", message_bytes()),
        ("segment-move", moving_segment().bytes().to_vec()),
        (
            "seat-move",
            moving_seat.encode(&geometry()).bytes().to_vec(),
        ),
    ];
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1");
    for (name, bytes) in golden {
        let path = folder.join(format!("{name}.bin"));
        if std::env::var_os("STP_BLESS").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &bytes).unwrap();
        }
        let found = std::fs::read(&path).unwrap();
        assert!(
            found == bytes,
            "{name} is spelled otherwise than in {}",
            path.display()
        );
    }
}

#[test]
fn frames_of_a_move_come_back_as_they_went() {
    let segment = moving_segment();
    let (_, found) = decode_segment(segment.bytes(), volume()).unwrap();
    let found: Vec<_> = found.map(Result::unwrap).collect();
    assert_eq!(found, moving_frames());
}

#[test]
fn no_changed_byte_goes_unnoticed() {
    let geometry = geometry();
    type Decodes = fn(&Geometry, &[u8]) -> bool;
    let records: [(UnitBuf, Decodes); 4] = [
        (superblock().encode(), |_, b| Superblock::decode(b).is_ok()),
        (seat_record().encode(&geometry), |g, b| {
            SeatRecord::decode(b, volume(), g, SeatId(1)).is_ok()
        }),
        (table_unit().encode(), |_, b| {
            TableUnit::decode(b, volume(), SeatId(1), 2).is_ok()
        }),
        (segment().0, |_, b| decode_segment(b, volume()).is_ok()),
    ];
    for (index, (record, decodes)) in records.into_iter().enumerate() {
        // Behind a segment's end nothing is covered, nor meant.
        let covered = match index {
            3 => peek_segment(record.bytes(), volume()).unwrap().1,
            _ => record.len(),
        };
        let mut bytes = record.bytes().to_vec();
        assert!(decodes(&geometry, &bytes));
        for at in 0..covered {
            bytes[at] ^= 0x10;
            assert!(!decodes(&geometry, &bytes), "record {index}, byte {at}");
            bytes[at] ^= 0x10;
        }
    }
}

#[test]
fn a_lone_piece_is_checked_in_parts_as_it_is_whole() {
    let key = StreamKey {
        by_writer: true,
        number: 9,
    };
    for bytes in [1, 8, 61, 64, 104, 105, 800, 8000] {
        let data: Vec<u8> = (0..bytes).map(|at| at as u8).collect();
        let mut builder = SegmentBuilder::new(UnitBuf::zeroed(2));
        assert_eq!(builder.append_data(key, 5, &data), bytes);
        let (mut buf, _) = builder.seal(volume(), &segment_info());
        // Made at one go, over whatever was there, it is the same.
        let mut made = vec![0xaa; LonePiece::segment_bytes(bytes)];
        LonePiece::seal(&mut made, volume(), &segment_info(), key, 5, &data);
        assert_eq!(made, buf.bytes()[..made.len()]);
        let piece = LonePiece::peek(&buf.bytes()[..200], volume()).expect("nothing else is in it");
        assert_eq!(
            (piece.info, piece.key, piece.offset),
            (segment_info(), key, 5)
        );
        assert_eq!(piece.bytes_in(buf.bytes()), Some(&data[..]));
        let short = &buf.bytes()[..piece.len - 1];
        assert_eq!(piece.bytes_in(short), None);
        let whole_words = bytes.is_multiple_of(8);
        assert_eq!(piece.is_whole(buf.bytes(), &data), whole_words);
        assert!(!piece.is_whole(buf.bytes(), &data[1..]));
        for at in 8..FIRST_BYTES_AT + bytes {
            buf.bytes_mut()[at] ^= 1;
            assert_eq!(piece.bytes_in(buf.bytes()), None, "byte {at}");
            let data = &buf.bytes()[FIRST_BYTES_AT..FIRST_BYTES_AT + bytes];
            assert!(!piece.is_whole(buf.bytes(), data), "byte {at}");
            buf.bytes_mut()[at] ^= 1;
        }
        assert_eq!(LonePiece::peek(buf.bytes(), VolumeId([9; 16])), None);
    }
    let (mixed, _) = segment();
    assert_eq!(LonePiece::peek(mixed.bytes(), volume()), None);
    for frame in frames() {
        let mut builder = SegmentBuilder::new(UnitBuf::zeroed(1));
        assert!(builder.push(&frame));
        let (buf, _) = builder.seal(volume(), &segment_info());
        let found = LonePiece::peek(buf.bytes(), volume()).is_some();
        assert_eq!(found, matches!(frame.body, FrameBody::Data { .. }));
    }
}

#[test]
fn a_record_at_another_place_is_refused() {
    let geometry = geometry();
    let record = seat_record().encode(&geometry);
    assert_eq!(
        SeatRecord::decode(record.bytes(), volume(), &geometry, SeatId(2)),
        Err(Damage::Field("seat"))
    );
    let other = VolumeId([1; 16]);
    assert_eq!(
        SeatRecord::decode(record.bytes(), other, &geometry, SeatId(1)),
        Err(Damage::Volume(volume()))
    );
    let unit = table_unit().encode();
    assert_eq!(
        TableUnit::decode(unit.bytes(), volume(), SeatId(1), 3),
        Err(Damage::Field("unit"))
    );
    let (buf, _) = segment();
    assert_eq!(
        decode_segment(buf.bytes(), other).unwrap_err(),
        Damage::Volume(volume())
    );
}

fn drain(frames: Frames<'_>) -> usize {
    frames.filter(Result::is_ok).count()
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..9000),
                                     magic in 0usize..5, version in any::<bool>()) {
        let magics: [&[u8]; 4] = [
            &superblock::SUPERBLOCK_MAGIC, &seat::SEAT_MAGIC, &table::TABLE_MAGIC, &segment::SEGMENT_MAGIC,
        ];
        if let Some(magic) = magics.get(magic) && bytes.len() > 32 {
            bytes[..8].copy_from_slice(magic);
            if version {
                bytes[16..18].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
            }
        }
        let geometry = geometry();
        let _ = Superblock::decode(&bytes);
        let _ = SeatRecord::decode(&bytes, volume(), &geometry, SeatId(1));
        let _ = TableUnit::decode(&bytes, volume(), SeatId(1), 0);
        let _ = GiftMessage::decode(&bytes);
        let _ = peek_segment(&bytes, volume());
        if let Ok((_, frames)) = decode_segment(&bytes, volume()) {
            drain(frames);
        }
    }
}
