//! Segments and frames: what travels.
//!
//! - A segment is written once, in one slot; written again, it has the same bytes.
//! - Its checksum covers everything from behind the checksum to the segment's end, so that a new head
//!   with an old tail is found out, in whichever order the pieces land.
//! - Frames start at multiples of eight bytes and never cross the segment's end.
//! - Where a frame speaks of a position in a stream, it is a byte offset from the stream's start.

use crate::damage::{Damage, FORMAT_VERSION, SEAL_BYTES, checksum, checksum_of_parts};
use crate::ids::{Epoch, Incarnation, SeatId, Seq, VolumeId};
use crate::layout::record;
use crate::unit::UnitBuf;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

/// First bytes of a segment.
pub const SEGMENT_MAGIC: [u8; 8] = *b"STPsegm\n";
/// Bytes of a segment's head.
pub const SEGMENT_HEAD_BYTES: usize = 128;
/// Bytes of a frame's head.
pub const FRAME_HEAD_BYTES: usize = 24;
/// Frames start at multiples of this.
pub const FRAME_ALIGN: usize = 8;
/// The kind of a frame that carries a stream's bytes.
const DATA_KIND: u8 = 3;

record! {
    /// The head of a segment; frames follow.
    struct SegmentHead[128] {
        /// `STPsegm\n`
        magic: [u8; 8],
        /// XXH3-64 of the segment from here to `len`
        checksum: U64,
        /// format version
        version: U16,
        /// bit 0: wants an acknowledgement
        flags: U16,
        /// writer's seat
        writer: U16,
        /// reader's seat
        reader: U16,
        /// the volume's identity
        volume: [u8; 16],
        /// writer's incarnation
        writer_incarnation: U64,
        /// incarnation of the reader that is addressed
        reader_incarnation: U64,
        /// number of the link's session
        epoch: U32,
        /// session of the reverse link that `acked_seq` speaks of; 0: none
        acked_epoch: U32,
        /// the segment's number
        seq: U64,
        /// last segment of the reverse link that was taken in
        acked_seq: U64,
        /// bytes of the segment, this head included
        len: U32,
        /// number of frames
        frames: U32,
        /// zero; room for an authentication tag
        reserved: [u8; 40],
    }
}
const _: () = assert!(size_of::<SegmentHead>() == SEGMENT_HEAD_BYTES);

/// Where a segment's number stands, one aligned little-endian word: who looks for a segment in memory looks there.
pub const SEGMENT_SEQ_AT: usize = core::mem::offset_of!(SegmentHead, seq);
const _: () = assert!(SEGMENT_SEQ_AT.is_multiple_of(8));

record! {
    /// The head of a frame; `len` bytes follow, then zeros up to a multiple of eight.
    struct FrameHead[24] {
        /// 1 open, 2 accept, 3 data, 4 credit, 5 urgent, 6 fin, 7 reset, 8 hold, 9 held, 10 resume, 11 resumed, 12 adopt, 13 moved
        kind: u8,
        /// bit 0: the segment's writer opened this stream
        flags: u8,
        /// zero
        reserved: U16,
        /// bytes that follow
        len: U32,
        /// the stream's number, given by its opener
        stream: U64,
        /// open, accept, credit, adopt: bytes the other side may send in all; data: offset of the first byte; urgent: offset behind the urgent byte; fin: length of the stream; reset: reason; hold, held: bytes sent in all; resume, resumed, moved: zero
        value: U64,
    }
}
const _: () = assert!(size_of::<FrameHead>() == FRAME_HEAD_BYTES);

impl FrameHead {
    fn new(kind: u8, key: StreamKey, value: u64, payload: usize) -> Self {
        Self {
            kind,
            flags: u8::from(key.by_writer),
            reserved: 0.into(),
            len: (payload as u32).into(),
            stream: key.number.into(),
            value: value.into(),
        }
    }
}

record! {
    /// What follows the head of an open frame.
    struct OpenBytes[8] {
        /// port asked for
        to_port: U16,
        /// opener's port
        from_port: U16,
        /// zero
        reserved: U32,
    }
}

record! {
    /// What follows the head of a hold frame.
    struct HoldBytes[16] {
        /// random name of this move
        token: [u8; 16],
    }
}

record! {
    /// What follows the head of an adopt frame.
    struct AdoptBytes[56] {
        /// random name of the move, as the hold frame had it
        token: [u8; 16],
        /// incarnation of the node that gives the stream
        giver_incarnation: U64,
        /// the stream's number on the giver's link
        stream: U64,
        /// bytes that the giver has sent in all
        sent: U64,
        /// bytes that the giver has received in all
        received: U64,
        /// seat of the node that gives the stream
        giver_seat: U16,
        /// bit 0: the giver's node opened the stream
        flags: U16,
        /// zero
        reserved: U32,
    }
}

/// A segment's head, checked for its form, not for its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Writer's seat.
    pub writer: SeatId,
    /// Reader's seat.
    pub reader: SeatId,
    /// Writer's incarnation.
    pub writer_incarnation: Incarnation,
    /// The addressed incarnation of the reader.
    pub reader_incarnation: Incarnation,
    /// Session of this link.
    pub epoch: Epoch,
    /// The segment's number.
    pub seq: Seq,
    /// Session of the reverse link that `acked_seq` speaks of.
    pub acked_epoch: Epoch,
    /// Last reverse segment taken in.
    pub acked_seq: Seq,
    /// Whether the writer waits for an acknowledgement.
    pub wants_ack: bool,
}

/// A stream's name on its link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamKey {
    /// Whether the segment's *writer* opened it.
    pub by_writer: bool,
    /// Number given by the opener, never reused within its incarnation.
    pub number: u64,
}

/// The name of one move of one stream from node to node; random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MoveToken(pub [u8; 16]);

/// A stream that has another node at one end from now on: which, and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adopt {
    /// Which move.
    pub token: MoveToken,
    /// The node that gives it.
    pub giver: SeatId,
    /// That node's incarnation.
    pub giver_incarnation: Incarnation,
    /// The stream's name as the *giver* writes it.
    pub key: StreamKey,
    /// Bytes that the giver has sent in all.
    pub sent: u64,
    /// Bytes that the giver has received in all.
    pub received: u64,
    /// Bytes that the other side may send in all.
    pub credit: u64,
}

/// One step of one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameBody<'a> {
    /// The writer asks for a connection.
    Open {
        /// To which port.
        to_port: u16,
        /// From which port.
        from_port: u16,
        /// Bytes that the answerer may send at first.
        credit: u64,
    },
    /// The connection is in the listener's queue.
    Accept {
        /// Bytes that the opener may send at first.
        credit: u64,
    },
    /// Bytes of the stream.
    Data {
        /// Offset of the first.
        offset: u64,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// More may be sent.
    Credit {
        /// In all, from the stream's start.
        limit: u64,
    },
    /// There is an urgent byte.
    Urgent {
        /// Offset behind it.
        offset: u64,
    },
    /// No byte follows.
    Fin {
        /// The stream's length.
        offset: u64,
    },
    /// The stream is over, at once.
    Reset {
        /// Why; see `docs/PROTOCOL.md`.
        reason: u64,
    },
    /// The stream is to move: the writer sends nothing more, and wants nothing more sent.
    Hold {
        /// Which move.
        token: MoveToken,
        /// Bytes that the writer has sent in all.
        offset: u64,
    },
    /// The writer sends nothing more until it is told to, or the stream has moved.
    Held {
        /// Bytes that the writer has sent in all.
        offset: u64,
    },
    /// The stream stays where it is.
    Resume,
    /// The writer has taken that in; it is as before.
    Resumed,
    /// The writer is the stream's new owner.
    Adopt(Adopt),
    /// The stream has another owner now; its old one is to forget it.
    Moved,
}

/// A frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Of which stream.
    pub key: StreamKey,
    /// What.
    pub body: FrameBody<'a>,
}

/// A segment that is being filled.
#[derive(Debug)]
pub struct SegmentBuilder {
    buf: UnitBuf,
    len: usize,
    limit: usize,
    frames: u32,
    /// The last frame, if it carries data: that may grow.
    last: Option<LastData>,
}

#[derive(Debug)]
struct LastData {
    /// Where the frame's head is.
    head: usize,
    key: StreamKey,
    /// The stream's offset of its first byte.
    offset: u64,
    bytes: usize,
}

impl SegmentBuilder {
    /// Fills `buf`, whatever it held before.
    pub fn new(buf: UnitBuf) -> Self {
        let limit = buf.len();
        Self {
            buf,
            len: SEGMENT_HEAD_BYTES,
            limit,
            frames: 0,
            last: None,
        }
    }

    /// Whether it has no frame yet.
    pub fn is_empty(&self) -> bool {
        self.frames == 0
    }

    /// Bytes used so far.
    pub fn used_bytes(&self) -> usize {
        self.len
    }

    /// Bytes of data that one more data frame could carry.
    pub fn data_room(&self) -> usize {
        self.limit.saturating_sub(self.len + FRAME_HEAD_BYTES) / FRAME_ALIGN * FRAME_ALIGN
    }

    /// Appends a frame; `false`, and nothing done, if it does not fit.
    pub fn push(&mut self, frame: &Frame<'_>) -> bool {
        let key = frame.key;
        let open;
        let hold;
        let adopt;
        let (kind, value, payload): (u8, u64, &[u8]) = match frame.body {
            FrameBody::Open {
                to_port,
                from_port,
                credit,
            } => {
                open = OpenBytes {
                    to_port: to_port.into(),
                    from_port: from_port.into(),
                    reserved: 0.into(),
                };
                (1, credit, open.as_bytes())
            }
            FrameBody::Accept { credit } => (2, credit, &[]),
            FrameBody::Data { offset, bytes } => (DATA_KIND, offset, bytes),
            FrameBody::Credit { limit } => (4, limit, &[]),
            FrameBody::Urgent { offset } => (5, offset, &[]),
            FrameBody::Fin { offset } => (6, offset, &[]),
            FrameBody::Reset { reason } => (7, reason, &[]),
            FrameBody::Hold { token, offset } => {
                hold = HoldBytes { token: token.0 };
                (8, offset, hold.as_bytes())
            }
            FrameBody::Held { offset } => (9, offset, &[]),
            FrameBody::Resume => (10, 0, &[]),
            FrameBody::Resumed => (11, 0, &[]),
            FrameBody::Adopt(body) => {
                adopt = AdoptBytes {
                    token: body.token.0,
                    giver_incarnation: body.giver_incarnation.0.into(),
                    stream: body.key.number.into(),
                    sent: body.sent.into(),
                    received: body.received.into(),
                    giver_seat: body.giver.0.into(),
                    flags: u16::from(body.key.by_writer).into(),
                    reserved: 0.into(),
                };
                (12, body.credit, adopt.as_bytes())
            }
            FrameBody::Moved => (13, 0, &[]),
        };
        let padded = payload.len().next_multiple_of(FRAME_ALIGN);
        if self.len + FRAME_HEAD_BYTES + padded > self.limit {
            return false;
        }
        let start = self.len + FRAME_HEAD_BYTES;
        self.buf.bytes_mut()[start..start + payload.len()].copy_from_slice(payload);
        self.finish_frame(kind, key, value, payload.len());
        true
    }

    /// Room for a data frame's bytes, to be filled in place; then call [`SegmentBuilder::commit_data`].
    pub fn data_space(&mut self, bytes_max: usize) -> &mut [u8] {
        let start = self.len + FRAME_HEAD_BYTES;
        let end = start + bytes_max.min(self.data_room());
        self.buf.bytes_mut().get_mut(start..end).unwrap_or_default()
    }

    /// Makes the first `bytes` of the last [`SegmentBuilder::data_space`] a data frame.
    pub fn commit_data(&mut self, key: StreamKey, offset: u64, bytes: usize) {
        debug_assert!(bytes <= self.data_room());
        self.finish_frame(DATA_KIND, key, offset, bytes.min(self.data_room()));
    }

    /// Puts as many of `bytes` as there is room for behind what is there of the stream: into
    /// the last frame, if that ends where they begin. How many.
    pub fn append_data(&mut self, key: StreamKey, offset: u64, bytes: &[u8]) -> usize {
        let grown = self
            .last
            .take_if(|last| last.key == key && last.offset + last.bytes as u64 == offset);
        let Some(last) = grown else {
            let space = self.data_space(bytes.len());
            let count = space.len();
            space.copy_from_slice(&bytes[..count]);
            if count > 0 {
                self.commit_data(key, offset, count);
            }
            return count;
        };
        let start = last.head + FRAME_HEAD_BYTES + last.bytes;
        let count = bytes.len().min(self.limit.saturating_sub(start));
        self.buf.bytes_mut()[start..start + count].copy_from_slice(&bytes[..count]);
        self.len = last.head;
        self.frames -= 1;
        self.finish_frame(DATA_KIND, key, last.offset, last.bytes + count);
        count
    }

    fn finish_frame(&mut self, kind: u8, key: StreamKey, value: u64, payload: usize) {
        self.last = (kind == DATA_KIND).then_some(LastData {
            head: self.len,
            key,
            offset: value,
            bytes: payload,
        });
        let head = FrameHead::new(kind, key, value, payload);
        let start = self.len + FRAME_HEAD_BYTES;
        let end = start + payload.next_multiple_of(FRAME_ALIGN);
        let bytes = self.buf.bytes_mut();
        bytes[self.len..start].copy_from_slice(head.as_bytes());
        bytes[start + payload..end].fill(0);
        self.len = end;
        self.frames += 1;
    }

    /// Puts head and checksum on. The buffer and the number of its units that count; zeros behind the segment's end.
    pub fn seal(self, volume: VolumeId, info: &SegmentInfo) -> (UnitBuf, usize) {
        let (mut buf, len) = self.seal_bytes(volume, info);
        let units = UnitBuf::units_for(len);
        buf.bytes_mut()[len..units * crate::unit::UNIT_BYTES].fill(0);
        (buf, units)
    }

    /// Puts head and checksum on. The buffer and the number of its bytes that count; behind them is whatever was there.
    pub fn seal_bytes(mut self, volume: VolumeId, info: &SegmentInfo) -> (UnitBuf, usize) {
        put_head(
            &mut self.buf.bytes_mut()[..self.len],
            volume,
            info,
            self.frames,
        );
        (self.buf, self.len)
    }
}

/// Puts head and checksum on a segment whose frames are there.
fn put_head(segment: &mut [u8], volume: VolumeId, info: &SegmentInfo, frames: u32) {
    let head = SegmentHead {
        magic: SEGMENT_MAGIC,
        checksum: 0.into(),
        version: FORMAT_VERSION.into(),
        flags: u16::from(info.wants_ack).into(),
        writer: info.writer.0.into(),
        reader: info.reader.0.into(),
        volume: volume.0,
        writer_incarnation: info.writer_incarnation.0.into(),
        reader_incarnation: info.reader_incarnation.0.into(),
        epoch: info.epoch.0.into(),
        acked_epoch: info.acked_epoch.0.into(),
        seq: info.seq.0.into(),
        acked_seq: info.acked_seq.0.into(),
        len: (segment.len() as u32).into(),
        frames: frames.into(),
        reserved: [0; 40],
    };
    segment[..SEGMENT_HEAD_BYTES].copy_from_slice(head.as_bytes());
    let sum = checksum(&segment[SEAL_BYTES..]).to_le_bytes();
    segment[8..SEAL_BYTES].copy_from_slice(&sum);
}

/// The head at the front of `bytes`, form and volume checked, and the segment's length in bytes. The
/// checksum is not looked at: the tail may not have been read yet.
pub fn peek_segment(bytes: &[u8], volume: VolumeId) -> Result<(SegmentInfo, usize), Damage> {
    let length = Damage::Length(bytes.len() as u64);
    let (head, _) = SegmentHead::ref_from_prefix(bytes).map_err(|_| length)?;
    if head.magic != SEGMENT_MAGIC {
        let blank = head.magic.iter().all(|b| *b == 0);
        return Err(if blank { Damage::Blank } else { Damage::Magic });
    }
    if head.version != FORMAT_VERSION {
        return Err(Damage::Version(head.version.get()));
    }
    if head.volume != volume.0 {
        return Err(Damage::Volume(VolumeId(head.volume)));
    }
    let len = head.len.get() as usize;
    if len < SEGMENT_HEAD_BYTES || !len.is_multiple_of(FRAME_ALIGN) {
        return Err(Damage::Length(len as u64));
    }
    let info = SegmentInfo {
        writer: SeatId(head.writer.get()),
        reader: SeatId(head.reader.get()),
        writer_incarnation: Incarnation(head.writer_incarnation.get()),
        reader_incarnation: Incarnation(head.reader_incarnation.get()),
        epoch: Epoch(head.epoch.get()),
        seq: Seq(head.seq.get()),
        acked_epoch: Epoch(head.acked_epoch.get()),
        acked_seq: Seq(head.acked_seq.get()),
        wants_ack: head.flags.get() & 1 != 0,
    };
    Ok((info, len))
}

/// A whole segment at the front of `bytes`: head, checksum, and its frames to walk through.
pub fn decode_segment(bytes: &[u8], volume: VolumeId) -> Result<(SegmentInfo, Frames<'_>), Damage> {
    let (info, len) = peek_segment(bytes, volume)?;
    let bytes = bytes.get(..len).ok_or(Damage::Length(len as u64))?;
    if bytes[8..SEAL_BYTES] != checksum(&bytes[SEAL_BYTES..]).to_le_bytes() {
        return Err(Damage::Checksum);
    }
    let (head, _) = SegmentHead::ref_from_prefix(bytes).map_err(|_| Damage::Length(len as u64))?;
    Ok((
        info,
        Frames {
            bytes,
            at: SEGMENT_HEAD_BYTES,
            left: head.frames.get(),
        },
    ))
}

/// Where the bytes of a segment's first frame begin.
pub const FIRST_BYTES_AT: usize = SEGMENT_HEAD_BYTES + FRAME_HEAD_BYTES;

/// A segment that is one piece of one stream and nothing else: its front, checked for its form, not for its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LonePiece {
    /// The segment's head.
    pub info: SegmentInfo,
    /// Bytes of the segment.
    pub len: usize,
    /// Of which stream.
    pub key: StreamKey,
    /// Offset of the first byte in the stream.
    pub offset: u64,
    /// How many bytes.
    pub bytes: usize,
}

impl LonePiece {
    /// Bytes of a segment that is one piece of so many bytes.
    pub fn segment_bytes(bytes: usize) -> usize {
        FIRST_BYTES_AT + bytes.next_multiple_of(FRAME_ALIGN)
    }

    /// Makes of `segment`, which has the length that its bytes want ([`LonePiece::segment_bytes`]), one that is these
    /// bytes of one stream, from `offset` on, and nothing else.
    pub fn seal(
        segment: &mut [u8],
        volume: VolumeId,
        info: &SegmentInfo,
        key: StreamKey,
        offset: u64,
        bytes: &[u8],
    ) {
        debug_assert_eq!(segment.len(), Self::segment_bytes(bytes.len()));
        let frame = FrameHead::new(DATA_KIND, key, offset, bytes.len());
        let end = FIRST_BYTES_AT + bytes.len();
        segment[SEGMENT_HEAD_BYTES..FIRST_BYTES_AT].copy_from_slice(frame.as_bytes());
        segment[FIRST_BYTES_AT..end].copy_from_slice(bytes);
        if end < segment.len() {
            segment[end..].fill(0);
        }
        put_head(segment, volume, info, 1);
    }

    /// The segment with this front, if it is one.
    pub fn peek(front: &[u8], volume: VolumeId) -> Option<Self> {
        let (info, len) = peek_segment(front, volume).ok()?;
        let (head, rest) = SegmentHead::ref_from_prefix(front).ok()?;
        let (frame, _) = FrameHead::ref_from_prefix(rest).ok()?;
        let bytes = frame.len.get() as usize;
        let is_lone = head.frames.get() == 1
            && frame.kind == DATA_KIND
            && bytes > 0
            && len == Self::segment_bytes(bytes);
        is_lone.then(|| Self {
            info,
            len,
            key: StreamKey {
                by_writer: frame.flags & 1 != 0,
                number: frame.stream.get(),
            },
            offset: frame.value.get(),
            bytes,
        })
    }

    /// Its bytes, if all of it is in `front` and its checksum is right.
    pub fn bytes_in<'a>(&self, front: &'a [u8]) -> Option<&'a [u8]> {
        let segment = front.get(..self.len)?;
        let right = segment[8..SEAL_BYTES] == checksum(&segment[SEAL_BYTES..]).to_le_bytes();
        right.then(|| &segment[FIRST_BYTES_AT..FIRST_BYTES_AT + self.bytes])
    }

    /// Whether its checksum is right where its bytes, whole words, lie apart from its front.
    pub fn is_whole(&self, front: &[u8], bytes: &[u8]) -> bool {
        let fits = bytes.len() == self.bytes && self.len == FIRST_BYTES_AT + self.bytes;
        let Some(front) = front.get(..FIRST_BYTES_AT).filter(|_| fits) else {
            return false;
        };
        let sum = checksum_of_parts(&front[SEAL_BYTES..], bytes);
        front[8..SEAL_BYTES] == sum.to_le_bytes()
    }
}

/// The frames of a segment. A frame of impossible form ends the walk with an error: its writer is
/// broken, since the checksum was right.
#[derive(Clone, Debug)]
pub struct Frames<'a> {
    bytes: &'a [u8],
    at: usize,
    left: u32,
}

impl<'a> Frames<'a> {
    fn step(&mut self) -> Result<Frame<'a>, Damage> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let (head, rest) =
            FrameHead::ref_from_prefix(rest).map_err(|_| Damage::Field("segment.frames"))?;
        let len = head.len.get() as usize;
        let payload = rest.get(..len).ok_or(Damage::Field("frame.len"))?;
        self.at += FRAME_HEAD_BYTES + len.next_multiple_of(FRAME_ALIGN);
        let value = head.value.get();
        let body = match head.kind {
            1 => {
                let open =
                    OpenBytes::ref_from_bytes(payload).map_err(|_| Damage::Field("frame.len"))?;
                FrameBody::Open {
                    to_port: open.to_port.get(),
                    from_port: open.from_port.get(),
                    credit: value,
                }
            }
            8 => {
                let hold =
                    HoldBytes::ref_from_bytes(payload).map_err(|_| Damage::Field("frame.len"))?;
                FrameBody::Hold {
                    token: MoveToken(hold.token),
                    offset: value,
                }
            }
            12 => {
                let adopt =
                    AdoptBytes::ref_from_bytes(payload).map_err(|_| Damage::Field("frame.len"))?;
                FrameBody::Adopt(Adopt {
                    token: MoveToken(adopt.token),
                    giver: SeatId(adopt.giver_seat.get()),
                    giver_incarnation: Incarnation(adopt.giver_incarnation.get()),
                    key: StreamKey {
                        by_writer: adopt.flags.get() & 1 != 0,
                        number: adopt.stream.get(),
                    },
                    sent: adopt.sent.get(),
                    received: adopt.received.get(),
                    credit: value,
                })
            }
            3 if len > 0 => FrameBody::Data {
                offset: value,
                bytes: payload,
            },
            _ if len > 0 => return Err(Damage::Field("frame.len")),
            2 => FrameBody::Accept { credit: value },
            4 => FrameBody::Credit { limit: value },
            5 => FrameBody::Urgent { offset: value },
            6 => FrameBody::Fin { offset: value },
            7 => FrameBody::Reset { reason: value },
            9 => FrameBody::Held { offset: value },
            10 => FrameBody::Resume,
            11 => FrameBody::Resumed,
            13 => FrameBody::Moved,
            _ => return Err(Damage::Field("frame.kind")),
        };
        let key = StreamKey {
            by_writer: head.flags & 1 != 0,
            number: head.stream.get(),
        };
        Ok(Frame { key, body })
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, Damage>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let step = self.step();
        if step.is_err() {
            self.left = 0;
        }
        Some(step)
    }
}
