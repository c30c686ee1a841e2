//! Messages of the file service: pure encoding and decoding, no input or output.
//!
//! - A frame is a header of 5 bytes (body length as u32 little-endian, kind) and a body.
//! - Every kind has a greatest body length; a longer frame is refused before its body is read.
//! - Names and paths are bytes, not text: a name need not be UTF-8. A decoded name is one path component (never empty, `.`, `..`, or with `/` or NUL).
//! - Decoding never panics and never allocates more than the frame that it was given.

use std::fmt;

/// What a connection begins with.
pub const MAGIC: [u8; 8] = *b"STPFILES";
/// The newest protocol version spoken here.
pub const VERSION: u16 = 1;
/// The oldest protocol version spoken here.
pub const VERSION_MIN: u16 = 1;
/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 5;
/// Greatest body of a `Data` frame.
pub const DATA_MAX: usize = 1 << 20;
/// Greatest length of one name.
pub const NAME_MAX: usize = 255;
/// Greatest length of a path or of a symbolic link's target.
pub const PATH_MAX: usize = 4096;
/// Greatest length of an error's text; longer ones are cut.
pub const TEXT_MAX: usize = 1024;
/// How many entries a sender may have announced whose outcome it does not know yet.
pub const AHEAD_MAX: usize = 1024;
/// How deep folders may be nested.
pub const DEPTH_MAX: usize = 1024;

/// Bytes of a digest.
pub const DIGEST_LEN: usize = 32;
/// What a digest is on the wire.
pub type DigestBytes = [u8; DIGEST_LEN];

/// Why an operation failed, in a form both sides understand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Code {
    /// Something that has no code of its own; the text says what.
    Other = 0,
    /// No such file or folder.
    NotFound = 1,
    /// The system refused access.
    Permission = 2,
    /// The target's file system or quota is full.
    NoSpace = 3,
    /// The target is a folder, the source is not.
    IsFolder = 4,
    /// A folder is needed and something else is there.
    NotFolder = 5,
    /// The server or its file system takes no writes.
    ReadOnly = 6,
    /// The path leads out of the served folder.
    Outside = 7,
    /// Somebody else is at it, or too many are.
    Busy = 8,
    /// The source changed while it was copied.
    Changed = 9,
    /// The source was there and is not any more.
    Vanished = 10,
    /// Neither file, folder nor symbolic link.
    Special = 11,
    /// What arrived is not what was sent.
    Checksum = 12,
    /// A name that is not acceptable.
    BadName = 13,
    /// The folder that holds this entry could not be made; reported there.
    Parent = 14,
    /// No protocol version in common.
    Version = 15,
    /// The peer sent what the protocol does not allow.
    Protocol = 16,
}

impl Code {
    pub(super) fn from_wire(value: u16) -> Self {
        use Code::*;
        [
            Other, NotFound, Permission, NoSpace, IsFolder, NotFolder, ReadOnly, Outside, Busy,
            Changed, Vanished, Special, Checksum, BadName, Parent, Version, Protocol,
        ]
        .get(usize::from(value))
        .copied()
        .unwrap_or(Other)
    }
}

/// A failure as it travels: what kind, and one line for a human.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The kind.
    pub code: Code,
    /// One line, no path of its own at the front.
    pub text: String,
}

impl Fault {
    /// A fault of this kind with this text.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What an entry of a folder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A regular file.
    File = 1,
    /// A folder.
    Folder = 2,
    /// A symbolic link.
    Link = 3,
    /// A device, pipe or socket.
    Special = 4,
}

/// A time of modification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mtime {
    /// Seconds since 1970, may be negative.
    pub seconds: i64,
    /// Nanoseconds within the second, below 10^9.
    pub nanos: u32,
}

/// What is known of a file, folder or link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// What it is.
    pub kind: Kind,
    /// Permission bits, 0o7777 at most.
    pub mode: u32,
    /// Time of modification.
    pub mtime: Mtime,
    /// Bytes of a file (holes included), 0 otherwise.
    pub size: u64,
    /// Where a symbolic link points, empty otherwise.
    pub target: Vec<u8>,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Client's first: versions spoken, features wanted, and a number that is the same on every connection of one transfer.
    Hello {
        version_min: u16,
        version_max: u16,
        features: u32,
        transfer: [u8; 16],
    },
    /// Server's answer: version and features chosen.
    Welcome {
        version: u16,
        features: u32,
        read_only: bool,
    },
    /// The command, or the connection, failed.
    Error(Fault),
    /// Command: what is at this path? `follow`: through a symbolic link at its end.
    Stat { path: Vec<u8>, follow: bool },
    /// Answer to `Stat`.
    StatReply(Option<Meta>),
    /// Command: list a folder, or one file.
    List { path: Vec<u8> },
    /// One line of a listing.
    Entry { name: Vec<u8>, meta: Meta },
    /// End of a listing.
    ListEnd,
    /// Command: the client will send entries into this folder.
    Put { path: Vec<u8> },
    /// Command: send what is at this path, under this name (empty: the contents of the folder).
    Get {
        path: Vec<u8>,
        recursive: bool,
        name: Vec<u8>,
    },
    /// Answer to `Put` and `Get`: go.
    Ready,
    /// Sender: how much there will be, for the progress display. May come anywhere.
    Total { files: u64, bytes: u64 },
    /// Sender: a folder, entered.
    Enter {
        id: u32,
        name: Vec<u8>,
        mode: u32,
        mtime: Mtime,
    },
    /// Sender: the innermost folder is complete.
    Leave,
    /// Sender: a file, announced.
    File {
        id: u32,
        name: Vec<u8>,
        mode: u32,
        mtime: Mtime,
        size: u64,
    },
    /// Sender: a symbolic link.
    Link {
        id: u32,
        name: Vec<u8>,
        mtime: Mtime,
        target: Vec<u8>,
    },
    /// Sender: the contents of an announced file follow, from this byte on.
    Begin { id: u32, start: u64 },
    /// Sender: the next bytes of the file; the body is the bytes and is not kept in the message.
    Data,
    /// Sender: the next bytes of the file are this many zeros that occupy no storage.
    Hole { len: u64 },
    /// Sender: the file is complete and has this digest.
    End { digest: DigestBytes },
    /// Sender: the announced file is what the receiver holds already.
    Same { id: u32 },
    /// Sender: the announced file will not come, or not further.
    Abort { id: u32, fault: Fault },
    /// Sender: something was not announced at all. `skipped`: on purpose (a device, pipe or socket). Receiver, before
    /// `Finished`: a folder that is in place did not get its mode or time.
    Notice {
        skipped: bool,
        path: Vec<u8>,
        fault: Fault,
    },
    /// Sender: that was all.
    Finish,
    /// Receiver: send this file from `offset`; `digest` is of what comes before. `whole`: that is a complete file of the same size and time.
    Want {
        id: u32,
        offset: u64,
        whole: bool,
        digest: DigestBytes,
    },
    /// Receiver: this came earlier in the same transfer.
    Have { id: u32 },
    /// Receiver: the entry is in place.
    Done { id: u32 },
    /// Receiver: the entry could not be taken.
    Failed { id: u32, fault: Fault },
    /// Receiver: everything is in place and on storage.
    Finished,
}

impl Message {
    /// A notice of this path, as much of it as may be sent.
    pub fn notice(skipped: bool, path: &[u8], fault: Fault) -> Self {
        let path = path.get(..PATH_MAX).unwrap_or(path).to_vec();
        Self::Notice {
            skipped,
            path,
            fault,
        }
    }
}

/// Why a frame was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WireError {
    /// No such kind.
    Kind(u8),
    /// The body is longer than this kind may be.
    TooLong { kind: u8, len: usize },
    /// The body ends within a field, or goes on after the last.
    Length(u8),
    /// A field holds what it may not.
    Value(u8),
    /// The peer does not speak this protocol.
    Magic,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(kind) => write!(f, "unknown message kind {kind}"),
            Self::TooLong { kind, len } => {
                write!(f, "message of kind {kind} with {len} bytes is too long")
            }
            Self::Length(kind) => write!(f, "message of kind {kind} has a wrong length"),
            Self::Value(kind) => write!(f, "message of kind {kind} has an impossible value"),
            Self::Magic => f.write_str(
                "the other side does not speak the stp file protocol (is it `stp serve`?)",
            ),
        }
    }
}

impl std::error::Error for WireError {}

/// Kinds of frames; `docs/FILES.md` has the same table.
pub mod kind {
    #![allow(missing_docs)]
    pub const HELLO: u8 = 1;
    pub const WELCOME: u8 = 2;
    pub const ERROR: u8 = 3;
    pub const STAT: u8 = 8;
    pub const STAT_REPLY: u8 = 9;
    pub const LIST: u8 = 10;
    pub const ENTRY: u8 = 11;
    pub const LIST_END: u8 = 12;
    pub const PUT: u8 = 13;
    pub const GET: u8 = 14;
    pub const READY: u8 = 15;
    pub const TOTAL: u8 = 32;
    pub const ENTER: u8 = 33;
    pub const LEAVE: u8 = 34;
    pub const FILE: u8 = 35;
    pub const LINK: u8 = 36;
    pub const BEGIN: u8 = 37;
    pub const DATA: u8 = 38;
    pub const HOLE: u8 = 39;
    pub const END: u8 = 40;
    pub const SAME: u8 = 41;
    pub const ABORT: u8 = 42;
    pub const NOTICE: u8 = 43;
    pub const FINISH: u8 = 44;
    pub const WANT: u8 = 64;
    pub const HAVE: u8 = 65;
    pub const DONE: u8 = 66;
    pub const FAILED: u8 = 67;
    pub const FINISHED: u8 = 68;
}

/// The greatest body of a kind, `None` for a kind that does not exist.
pub fn body_max(kind: u8) -> Option<usize> {
    use kind::*;
    const FAULT: usize = 4 + TEXT_MAX;
    const META: usize = 1 + 4 + 12 + 8 + 2 + PATH_MAX;
    Some(match kind {
        HELLO => 8 + 2 + 2 + 4 + 16,
        WELCOME => 8 + 2 + 4 + 1,
        ERROR => FAULT,
        STAT | LIST | PUT => 2 + PATH_MAX + 1,
        STAT_REPLY => 1 + META,
        ENTRY => 2 + NAME_MAX + META,
        GET => 2 + PATH_MAX + 1 + 2 + NAME_MAX,
        TOTAL => 16,
        ENTER => 4 + 2 + NAME_MAX + 4 + 12,
        FILE => 4 + 2 + NAME_MAX + 4 + 12 + 8,
        LINK => 4 + 2 + NAME_MAX + 12 + 2 + PATH_MAX,
        BEGIN => 12,
        DATA => DATA_MAX,
        HOLE => 8,
        END => DIGEST_LEN,
        ABORT | FAILED => 4 + FAULT,
        NOTICE => 1 + 2 + PATH_MAX + FAULT,
        WANT => 4 + 8 + 1 + DIGEST_LEN,
        SAME | HAVE | DONE => 4,
        LIST_END | READY | LEAVE | FINISH | FINISHED => 0,
        _ => return None,
    })
}

/// Reads a frame's header: kind and body length, both checked.
pub fn decode_header(bytes: &[u8; HEADER_LEN]) -> Result<(u8, usize), WireError> {
    let [a, b, c, d, kind] = *bytes;
    let len = u32::from_le_bytes([a, b, c, d]) as usize;
    let max = body_max(kind).ok_or(WireError::Kind(kind))?;
    if len > max {
        return Err(WireError::TooLong { kind, len });
    }
    Ok((kind, len))
}

/// The header of a frame.
pub fn encode_header(kind: u8, len: usize) -> [u8; HEADER_LEN] {
    let [a, b, c, d] = (len as u32).to_le_bytes();
    [a, b, c, d, kind]
}

/// Whether these bytes may name an entry of a folder.
pub fn name_ok(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= NAME_MAX
        && name != b"."
        && name != b".."
        && !name.iter().any(|&b| b == b'/' || b == 0)
}
