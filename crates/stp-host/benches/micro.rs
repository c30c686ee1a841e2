//! What the profile shows to matter, piece by piece: `cargo bench -p stp-host --bench micro [-- NAME]`.
//!
//! - Each case is a fixed amount of work on made input, without storage, clock or threads: its instructions hardly
//!   differ from run to run. `cargo xtask instructions` counts them (`--once NAME`) and compares with
//!   `instructions.txt`; times (criterion's, also against an earlier run: `--save-baseline`, `--baseline`) are for
//!   people.
//! - What is counted is what is timed: one binary, one list.

use std::hint::black_box;
use std::ops::Range;
use std::sync::Arc;

use criterion::Criterion;
use stp_core::{
    Claimed, Event, IoAction, IoDone, Limits, Node, NodeConfig, StreamId, Time, Timings,
};
use stp_format::segment::{FIRST_BYTES_AT, SEGMENT_HEAD_BYTES, decode_segment, peek_segment};
use stp_format::{
    Epoch, Frame, FrameBody, Geometry, Incarnation, Place, SeatId, SegmentBuilder, SegmentInfo,
    Seq, StreamKey, UNIT_BYTES, UnitBuf, VolumeId,
};
use stp_medium::{Medium, Op, OpId};

const VOLUME: VolumeId = VolumeId([7; 16]);
const SMALL_BYTES: usize = 64;
const BULK_UNITS: usize = 64;
/// What is read of a segment before its length is known.
const FRONT_BYTES: usize = 256;

/// A case: its name, what one run of it does, and the run.
struct Case {
    name: &'static str,
    what: &'static str,
    run: fn(),
}

const CASES: &[Case] = &[
    Case {
        name: "seal_small",
        what: "1000 segments of one 64 B frame: filled, sealed",
        run: || seal(1000, SMALL_BYTES),
    },
    Case {
        name: "seal_bulk",
        what: "20 segments of 256 KiB: filled, sealed",
        run: || seal(20, BULK_UNITS * UNIT_BYTES - 512),
    },
    Case {
        name: "decode_small",
        what: "1000 segments of one 64 B frame: checked, walked",
        run: || decode(1000, SMALL_BYTES),
    },
    Case {
        name: "decode_bulk",
        what: "20 segments of 256 KiB: checked, walked",
        run: || decode(20, BULK_UNITS * UNIT_BYTES - 512),
    },
    Case {
        name: "node_round_trips",
        what: "200 messages of 64 B there and back between two nodes",
        run: || Pair::new().round_trips(200),
    },
    Case {
        name: "hot_round_trips",
        what: "2000 messages of 64 B there and back between two nodes, their link alone",
        run: || Pair::hot().hot_round_trips(2000, SMALL_BYTES),
    },
    Case {
        name: "hot_stream",
        what: "16 MiB from node to node in writes of 64 KiB, their link alone",
        run: || Pair::hot().hot_stream(16 << 20, 64 << 10),
    },
    Case {
        name: "node_stream",
        what: "16 MiB from node to node",
        run: || Pair::new().stream(16 << 20),
    },
    Case {
        name: "mapped_copy",
        what: "50 slots of 256 KiB into mapped memory and out of it",
        run: || mapped_copy(50),
    },
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["--list"] => CASES.iter().for_each(|case| println!("{}", case.name)),
        ["--once", name] => match CASES.iter().find(|case| case.name == name) {
            Some(case) => (case.run)(),
            None => panic!("no case {name}"),
        },
        _ => time(),
    }
}

fn time() {
    let mut criterion = Criterion::default().configure_from_args();
    for case in CASES {
        println!("{}: {}", case.name, case.what);
        criterion.bench_function(case.name, |bencher| bencher.iter(case.run));
    }
    criterion.final_summary();
}

// --- segments

fn info(seq: u64) -> SegmentInfo {
    SegmentInfo {
        writer: SeatId(1),
        reader: SeatId(2),
        writer_incarnation: Incarnation(3),
        reader_incarnation: Incarnation(4),
        epoch: Epoch(1),
        seq: Seq(seq),
        acked_epoch: Epoch(1),
        acked_seq: Seq(0),
        wants_ack: true,
    }
}

fn sealed(buf: UnitBuf, payload: &[u8], seq: u64) -> (UnitBuf, usize) {
    let mut builder = SegmentBuilder::new(buf);
    let key = StreamKey {
        by_writer: true,
        number: 1,
    };
    let body = FrameBody::Data {
        offset: 0,
        bytes: payload,
    };
    assert!(builder.push(&Frame { key, body }));
    builder.seal(VOLUME, &info(seq))
}

fn seal(times: u64, bytes: usize) {
    let payload = vec![5; bytes];
    let mut buf = UnitBuf::zeroed(BULK_UNITS);
    for seq in 1..=times {
        let (back, units) = sealed(buf, black_box(&payload), seq);
        buf = back;
        black_box(units);
    }
}

fn decode(times: u64, bytes: usize) {
    let (segment, _) = sealed(UnitBuf::zeroed(BULK_UNITS), &vec![5; bytes], 1);
    for _ in 0..times {
        let (_, frames) = decode_segment(black_box(segment.bytes()), VOLUME).expect("it is right");
        assert_eq!(frames.filter(Result::is_ok).count(), 1);
    }
}

// --- two nodes on one volume in memory

struct Side {
    node: Node,
    stream: Option<StreamId>,
    to_send: usize,
    received: usize,
    listening: bool,
}

struct Pair {
    sides: [Side; 2],
    store: Vec<u8>,
    geometry: Geometry,
    now: Time,
}

fn bytes_at(geometry: &Geometry, place: Place, units: usize) -> Range<usize> {
    let at = geometry.offset(place, units).expect("on the volume") as usize;
    at..at + units * UNIT_BYTES
}

fn done(id: u64, buf: Option<UnitBuf>) -> IoDone {
    IoDone {
        id,
        buf,
        result: Ok(()),
    }
}

impl Side {
    fn new(geometry: Geometry, seat: u16, name: &str, looks_free: bool) -> Self {
        let config = NodeConfig {
            volume: VOLUME,
            geometry,
            system: name.parse().expect("a name"),
            host: [seat as u8; 16],
            pid: 1,
            nonce: 1,
            timings: Timings {
                looks_free,
                ..Timings::default()
            },
            limits: Limits::default(),
        };
        let claimed = Claimed {
            seat: SeatId(seat),
            incarnation: Incarnation(1),
            record_version: 1,
            copy: 0,
        };
        Self {
            node: Node::new(config, claimed, Time(0)),
            stream: None,
            to_send: 0,
            received: 0,
            listening: false,
        }
    }

    fn step(&mut self, now: Time, geometry: &Geometry, store: &mut [u8]) {
        if self.node.poll_timeout().is_some_and(|at| at <= now) {
            self.node.handle_timeout(now);
        }
        while let Some(event) = self.node.poll_event() {
            match event {
                Event::Listening(_) => self.listening = true,
                Event::Incoming { id, .. } => {
                    self.node.accept(now, id);
                    self.stream = Some(id);
                }
                Event::Connected(id) => self.stream = Some(id),
                _ => {}
            }
        }
        while let Some((id, bytes)) = self.node.poll_deliver() {
            let count = black_box(bytes).len();
            self.received += count;
            self.node.delivered(now, id, count, true);
        }
        while let Some((id, space)) = self.node.poll_fill(now) {
            let count = space.len().min(self.to_send);
            space[..count].fill(9);
            self.to_send -= count;
            self.node.filled(now, id, count, self.to_send > 0);
        }
        let mut ended = Vec::new();
        while let Some(io) = self.node.poll_io(now) {
            let buf = match io.action {
                IoAction::Read(mut buf) => {
                    let range = bytes_at(geometry, io.place, buf.units());
                    buf.bytes_mut().copy_from_slice(&store[range]);
                    Some(buf)
                }
                IoAction::Write { data, units, .. } => {
                    let range = bytes_at(geometry, io.place, units);
                    store[range].copy_from_slice(&data.bytes()[..units * UNIT_BYTES]);
                    None
                }
            };
            ended.push(done(io.id, buf));
        }
        for done in ended {
            self.node.handle_io(now, done);
        }
    }

    fn send(&mut self, bytes: usize) {
        self.to_send += bytes;
        self.node.readable(self.stream.expect("it is connected"));
    }
}

impl Pair {
    fn new() -> Self {
        Self::with(false)
    }

    /// As on mapped memory.
    fn hot() -> Self {
        Self::with(true)
    }

    fn with(looks_free: bool) -> Self {
        let geometry = Geometry::plan(16 << 20, 2).expect("measures");
        let mut pair = Self {
            sides: [
                Side::new(geometry, 0, "alpha", looks_free),
                Side::new(geometry, 1, "beta", looks_free),
            ],
            store: vec![0; geometry.size_bytes as usize],
            geometry,
            now: Time(0),
        };
        pair.sides[1].node.listen(7).expect("a free port");
        pair.run(|sides| sides[1].listening);
        let beta = "beta".parse().expect("a name");
        let now = pair.now;
        pair.sides[0]
            .node
            .connect(now, &beta, 7, None)
            .expect("a connection");
        pair.run(|sides| sides.iter().all(|side| side.stream.is_some()));
        pair
    }

    fn run(&mut self, until: impl Fn(&[Side; 2]) -> bool) {
        for _ in 0..1_000_000 {
            if until(&self.sides) {
                return;
            }
            self.now = Time(self.now.0 + 10_000);
            for side in &mut self.sides {
                side.step(self.now, &self.geometry, &mut self.store);
            }
        }
        panic!("it does not come to an end");
    }

    fn round_trips(mut self, times: usize) {
        for time in 1..=times {
            for (from, to) in [(0, 1), (1, 0)] {
                self.sides[from].send(SMALL_BYTES);
                self.run(|sides| sides[to].received == time * SMALL_BYTES);
            }
        }
    }

    /// One message by the link alone, as a program's thread does it where the storage is memory.
    fn hot_message(&mut self, from: usize, message: &mut [u8]) {
        self.now = Time(self.now.0 + 500);
        let (now, geometry) = (self.now, self.geometry);
        let side = &mut self.sides[from];
        let id = side.stream.expect("it is connected");
        if let Some(piece) = side.node.poll_piece(now, id, black_box(message)) {
            let start = bytes_at(&geometry, piece.place, 1).start;
            self.store[start..start + piece.bytes.len()].copy_from_slice(piece.bytes);
        } else {
            assert_eq!(side.node.put(now, id, black_box(message)), message.len());
            assert!(side.node.is_write_due(now, id));
        }
        while let Some(io) = side.node.poll_write_of(now, id) {
            let range = bytes_at(&geometry, io.place, io.units);
            self.store[range.start..range.start + io.bytes]
                .copy_from_slice(&io.data.bytes()[..io.bytes]);
            side.node.handle_io(now, done(io.id, None));
        }
        let to = 1 - from;
        let mut taken = self.take_past(to, message).unwrap_or(0);
        let side = &mut self.sides[to];
        let id = side.stream.expect("it is connected");
        while taken < message.len() {
            let io = side.node.poll_look_of(now, id).expect("it is awaited");
            let IoAction::Read(mut buf) = io.action else {
                panic!("a look that writes");
            };
            let range = bytes_at(&geometry, io.place, buf.units());
            let head = &self.store[range.start..range.start + SEGMENT_HEAD_BYTES];
            let (_, len) = peek_segment(head, VOLUME).expect("a segment");
            let len = len.min(buf.len());
            buf.bytes_mut()[..len].copy_from_slice(&self.store[range.start..range.start + len]);
            side.node.handle_io(now, done(io.id, Some(buf)));
            taken += side.node.take(now, id, &mut message[taken..]);
        }
        black_box(message);
    }

    /// What is a lone piece goes straight into the program's memory.
    fn take_past(&mut self, to: usize, message: &mut [u8]) -> Option<usize> {
        let (now, geometry) = (self.now, self.geometry);
        let node = &mut self.sides[to].node;
        let id = self.sides[to].stream?;
        let (place, _) = node.awaited(id)?;
        let slot = &self.store[bytes_at(&geometry, place, 1).start..];
        let piece = node.poll_piece_of(id, &slot[..FRONT_BYTES])?;
        let into = message.get_mut(..piece.bytes)?;
        if piece.len <= FRONT_BYTES {
            into.copy_from_slice(piece.bytes_in(&slot[..FRONT_BYTES])?);
        } else {
            into.copy_from_slice(&slot[FIRST_BYTES_AT..FIRST_BYTES_AT + piece.bytes]);
            assert!(piece.is_whole(&slot[..FRONT_BYTES], into));
        }
        node.handle_piece_of(now, id, &piece);
        Some(piece.bytes)
    }

    fn hot_round_trips(mut self, times: usize, bytes: usize) {
        let mut message = vec![9; bytes];
        for _ in 0..times {
            self.hot_message(0, &mut message);
            self.hot_message(1, &mut message);
        }
    }

    fn hot_stream(mut self, bytes: usize, piece: usize) {
        let mut message = vec![9; piece];
        for _ in 0..bytes / piece {
            self.hot_message(0, &mut message);
            // What acknowledges it.
            self.hot_message(1, &mut [1; 8]);
        }
    }

    fn stream(mut self, bytes: usize) {
        self.sides[0].send(bytes);
        self.run(|sides| sides[1].received == bytes);
    }
}

// --- mapped memory

fn mapped_copy(times: u64) {
    const BYTES: u64 = 4 << 20;
    // Without memory files there is nothing to measure, and nothing to compare.
    let Ok(dir) = tempfile::tempdir_in("/dev/shm") else {
        return;
    };
    let path = dir.path().join("volume");
    std::fs::write(&path, vec![0; BYTES as usize]).expect("a file in memory");
    let spec = format!("mem:{}", path.display()).parse().expect("a volume");
    let options = stp_medium::OpenOptions::default();
    let mut medium = stp_medium::open(&spec, &options).expect("a mapped file");
    let geometry = Geometry::plan(BYTES, 2).expect("measures");
    medium.set_geometry(geometry);
    let ring = geometry.ring(0, geometry.extents);
    let units = usize::from(ring.slot_units);
    let place = Place::Slot {
        seat: SeatId(0),
        ring,
        slot: 0,
        skip: 0,
    };
    let data = Arc::new(UnitBuf::zeroed(units));
    for id in 0..times {
        let write = Op::Write {
            place,
            data: Arc::clone(&data),
            units,
            durable: false,
        };
        medium.submit(OpId(2 * id), write);
        let buf = UnitBuf::zeroed(units);
        medium.submit(OpId(2 * id + 1), Op::Read { place, buf });
        medium.kick();
        while let Some(done) = medium.poll() {
            done.result.expect("memory");
            black_box(done.buf);
        }
    }
}
