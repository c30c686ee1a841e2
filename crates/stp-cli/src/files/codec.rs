//! How each message is spelled in bytes. The messages themselves, their kinds and limits are in [`wire`](super::wire).
//!
//! - Decoding takes a body whole or not at all: neither a byte missing nor one too many.

use super::wire::*;

struct Fields<'a> {
    rest: &'a [u8],
    kind: u8,
}

impl<'a> Fields<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], WireError> {
        let (head, rest) = self
            .rest
            .split_at_checked(n)
            .ok_or(WireError::Length(self.kind))?;
        self.rest = rest;
        Ok(head)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }
    fn u8(&mut self) -> Result<u8, WireError> {
        Ok(self.array::<1>()?[0])
    }
    fn flag(&mut self) -> Result<bool, WireError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(WireError::Value(self.kind)),
        }
    }
    fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    /// A length that must leave room for arithmetic with file offsets.
    fn size(&mut self) -> Result<u64, WireError> {
        let n = self.u64()?;
        if n > i64::MAX as u64 {
            Err(WireError::Value(self.kind))
        } else {
            Ok(n)
        }
    }
    fn bytes(&mut self, max: usize) -> Result<Vec<u8>, WireError> {
        let n = usize::from(self.u16()?);
        if n > max {
            return Err(WireError::Value(self.kind));
        }
        Ok(self.take(n)?.to_vec())
    }
    fn path(&mut self) -> Result<Vec<u8>, WireError> {
        let path = self.bytes(PATH_MAX)?;
        if path.contains(&0) {
            Err(WireError::Value(self.kind))
        } else {
            Ok(path)
        }
    }
    fn name(&mut self) -> Result<Vec<u8>, WireError> {
        let name = self.bytes(NAME_MAX)?;
        if name_ok(&name) {
            Ok(name)
        } else {
            Err(WireError::Value(self.kind))
        }
    }
    fn mode(&mut self) -> Result<u32, WireError> {
        let mode = self.u32()?;
        if mode > 0o7777 {
            Err(WireError::Value(self.kind))
        } else {
            Ok(mode)
        }
    }
    fn mtime(&mut self) -> Result<Mtime, WireError> {
        let seconds = i64::from_le_bytes(self.array()?);
        let nanos = self.u32()?;
        if nanos >= 1_000_000_000 {
            Err(WireError::Value(self.kind))
        } else {
            Ok(Mtime { seconds, nanos })
        }
    }
    fn meta(&mut self) -> Result<Meta, WireError> {
        let kind = match self.u8()? {
            1 => Kind::File,
            2 => Kind::Folder,
            3 => Kind::Link,
            4 => Kind::Special,
            _ => return Err(WireError::Value(self.kind)),
        };
        Ok(Meta {
            kind,
            mode: self.mode()?,
            mtime: self.mtime()?,
            size: self.size()?,
            target: self.path()?,
        })
    }
    fn fault(&mut self) -> Result<Fault, WireError> {
        let code = Code::from_wire(self.u16()?);
        let text = self.bytes(TEXT_MAX)?;
        Ok(Fault {
            code,
            text: String::from_utf8_lossy(&text).into_owned(),
        })
    }
    fn end(self) -> Result<(), WireError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(WireError::Length(self.kind))
        }
    }
}

struct Out<'a>(&'a mut Vec<u8>);

impl Out<'_> {
    fn u8(&mut self, v: u8) -> &mut Self {
        self.0.push(v);
        self
    }
    fn raw(&mut self, v: &[u8]) -> &mut Self {
        self.0.extend_from_slice(v);
        self
    }
    fn u16(&mut self, v: u16) -> &mut Self {
        self.raw(&v.to_le_bytes())
    }
    fn u32(&mut self, v: u32) -> &mut Self {
        self.raw(&v.to_le_bytes())
    }
    fn u64(&mut self, v: u64) -> &mut Self {
        self.raw(&v.to_le_bytes())
    }
    /// Callers have checked the lengths of names and paths; texts are cut here.
    fn bytes(&mut self, v: &[u8], max: usize) -> &mut Self {
        let v = v.get(..max).unwrap_or(v);
        self.u16(v.len() as u16).raw(v)
    }
    fn mtime(&mut self, v: Mtime) -> &mut Self {
        self.raw(&v.seconds.to_le_bytes()).u32(v.nanos)
    }
    fn meta(&mut self, v: &Meta) -> &mut Self {
        self.u8(v.kind as u8)
            .u32(v.mode & 0o7777)
            .mtime(v.mtime)
            .u64(v.size)
            .bytes(&v.target, PATH_MAX)
    }
    fn fault(&mut self, v: &Fault) -> &mut Self {
        self.u16(v.code as u16).bytes(v.text.as_bytes(), TEXT_MAX)
    }
}

impl Message {
    /// The kind of this message.
    pub fn kind(&self) -> u8 {
        use kind::*;
        match self {
            Self::Hello { .. } => HELLO,
            Self::Welcome { .. } => WELCOME,
            Self::Error(_) => ERROR,
            Self::Stat { .. } => STAT,
            Self::StatReply(_) => STAT_REPLY,
            Self::List { .. } => LIST,
            Self::Entry { .. } => ENTRY,
            Self::ListEnd => LIST_END,
            Self::Put { .. } => PUT,
            Self::Get { .. } => GET,
            Self::Ready => READY,
            Self::Total { .. } => TOTAL,
            Self::Enter { .. } => ENTER,
            Self::Leave => LEAVE,
            Self::File { .. } => FILE,
            Self::Link { .. } => LINK,
            Self::Begin { .. } => BEGIN,
            Self::Data => DATA,
            Self::Hole { .. } => HOLE,
            Self::End { .. } => END,
            Self::Same { .. } => SAME,
            Self::Abort { .. } => ABORT,
            Self::Notice { .. } => NOTICE,
            Self::Finish => FINISH,
            Self::Want { .. } => WANT,
            Self::Have { .. } => HAVE,
            Self::Done { .. } => DONE,
            Self::Failed { .. } => FAILED,
            Self::Finished => FINISHED,
        }
    }

    /// Appends the whole frame, header included. A `Data` message gets an empty body: its bytes are framed by the caller.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&encode_header(self.kind(), 0));
        let mut o = Out(out);
        match self {
            Self::Hello {
                version_min,
                version_max,
                features,
                transfer,
            } => {
                o.raw(&MAGIC)
                    .u16(*version_min)
                    .u16(*version_max)
                    .u32(*features)
                    .raw(transfer);
            }
            Self::Welcome {
                version,
                features,
                read_only,
            } => {
                o.raw(&MAGIC)
                    .u16(*version)
                    .u32(*features)
                    .u8(u8::from(*read_only));
            }
            Self::Error(fault) => {
                o.fault(fault);
            }
            Self::Stat { path, follow } => {
                o.bytes(path, PATH_MAX).u8(u8::from(*follow));
            }
            Self::StatReply(meta) => {
                o.u8(u8::from(meta.is_some()));
                if let Some(meta) = meta {
                    o.meta(meta);
                }
            }
            Self::List { path } | Self::Put { path } => {
                o.bytes(path, PATH_MAX);
            }
            Self::Entry { name, meta } => {
                o.bytes(name, NAME_MAX).meta(meta);
            }
            Self::Get {
                path,
                recursive,
                name,
            } => {
                o.bytes(path, PATH_MAX)
                    .u8(u8::from(*recursive))
                    .bytes(name, NAME_MAX);
            }
            Self::Total { files, bytes } => {
                o.u64(*files).u64(*bytes);
            }
            Self::Enter {
                id,
                name,
                mode,
                mtime,
            } => {
                o.u32(*id).bytes(name, NAME_MAX).u32(*mode).mtime(*mtime);
            }
            Self::File {
                id,
                name,
                mode,
                mtime,
                size,
            } => {
                o.u32(*id)
                    .bytes(name, NAME_MAX)
                    .u32(*mode)
                    .mtime(*mtime)
                    .u64(*size);
            }
            Self::Link {
                id,
                name,
                mtime,
                target,
            } => {
                o.u32(*id)
                    .bytes(name, NAME_MAX)
                    .mtime(*mtime)
                    .bytes(target, PATH_MAX);
            }
            Self::Begin { id, start } => {
                o.u32(*id).u64(*start);
            }
            Self::Hole { len } => {
                o.u64(*len);
            }
            Self::End { digest } => {
                o.raw(digest);
            }
            Self::Same { id } | Self::Have { id } | Self::Done { id } => {
                o.u32(*id);
            }
            Self::Abort { id, fault } | Self::Failed { id, fault } => {
                o.u32(*id).fault(fault);
            }
            Self::Notice {
                skipped,
                path,
                fault,
            } => {
                o.u8(u8::from(*skipped)).bytes(path, PATH_MAX).fault(fault);
            }
            Self::Want {
                id,
                offset,
                whole,
                digest,
            } => {
                o.u32(*id).u64(*offset).u8(u8::from(*whole)).raw(digest);
            }
            Self::ListEnd
            | Self::Ready
            | Self::Leave
            | Self::Data
            | Self::Finish
            | Self::Finished => {}
        }
        let len = out.len() - start - HEADER_LEN;
        out[start..start + HEADER_LEN].copy_from_slice(&encode_header(self.kind(), len));
    }

    /// Reads a body whose header [`decode_header`] accepted.
    pub fn decode(kind: u8, body: &[u8]) -> Result<Self, WireError> {
        use kind::*;
        let max = body_max(kind).ok_or(WireError::Kind(kind))?;
        if body.len() > max {
            return Err(WireError::TooLong {
                kind,
                len: body.len(),
            });
        }
        if kind == DATA {
            return Ok(Self::Data);
        }
        let mut f = Fields { rest: body, kind };
        let message = match kind {
            HELLO => {
                if f.array()? != MAGIC {
                    return Err(WireError::Magic);
                }
                let (version_min, version_max) = (f.u16()?, f.u16()?);
                Self::Hello {
                    version_min,
                    version_max,
                    features: f.u32()?,
                    transfer: f.array()?,
                }
            }
            WELCOME => {
                if f.array()? != MAGIC {
                    return Err(WireError::Magic);
                }
                Self::Welcome {
                    version: f.u16()?,
                    features: f.u32()?,
                    read_only: f.flag()?,
                }
            }
            ERROR => Self::Error(f.fault()?),
            STAT => Self::Stat {
                path: f.path()?,
                follow: f.flag()?,
            },
            STAT_REPLY => Self::StatReply(if f.flag()? { Some(f.meta()?) } else { None }),
            LIST => Self::List { path: f.path()? },
            ENTRY => Self::Entry {
                name: f.name()?,
                meta: f.meta()?,
            },
            LIST_END => Self::ListEnd,
            PUT => Self::Put { path: f.path()? },
            GET => {
                let (path, recursive, name) = (f.path()?, f.flag()?, f.bytes(NAME_MAX)?);
                if !name.is_empty() && !name_ok(&name) {
                    return Err(WireError::Value(kind));
                }
                Self::Get {
                    path,
                    recursive,
                    name,
                }
            }
            READY => Self::Ready,
            TOTAL => Self::Total {
                files: f.u64()?,
                bytes: f.u64()?,
            },
            ENTER => Self::Enter {
                id: f.u32()?,
                name: f.name()?,
                mode: f.mode()?,
                mtime: f.mtime()?,
            },
            LEAVE => Self::Leave,
            FILE => Self::File {
                id: f.u32()?,
                name: f.name()?,
                mode: f.mode()?,
                mtime: f.mtime()?,
                size: f.size()?,
            },
            LINK => {
                let (id, name, mtime, target) = (f.u32()?, f.name()?, f.mtime()?, f.path()?);
                if target.is_empty() {
                    return Err(WireError::Value(kind));
                }
                Self::Link {
                    id,
                    name,
                    mtime,
                    target,
                }
            }
            BEGIN => Self::Begin {
                id: f.u32()?,
                start: f.size()?,
            },
            HOLE => Self::Hole { len: f.size()? },
            END => Self::End { digest: f.array()? },
            SAME => Self::Same { id: f.u32()? },
            ABORT => Self::Abort {
                id: f.u32()?,
                fault: f.fault()?,
            },
            NOTICE => Self::Notice {
                skipped: f.flag()?,
                path: f.path()?,
                fault: f.fault()?,
            },
            FINISH => Self::Finish,
            WANT => Self::Want {
                id: f.u32()?,
                offset: f.size()?,
                whole: f.flag()?,
                digest: f.array()?,
            },
            HAVE => Self::Have { id: f.u32()? },
            DONE => Self::Done { id: f.u32()? },
            FAILED => Self::Failed {
                id: f.u32()?,
                fault: f.fault()?,
            },
            FINISHED => Self::Finished,
            _ => return Err(WireError::Kind(kind)),
        };
        f.end()?;
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples() -> Vec<Message> {
        let mtime = Mtime {
            seconds: -5,
            nanos: 999_999_999,
        };
        let fault = Fault::new(Code::NoSpace, "full");
        let meta = Meta {
            kind: Kind::Link,
            mode: 0o777,
            mtime,
            size: 3,
            target: b"x/\xff".to_vec(),
        };
        let name = b"n\xfe".to_vec();
        vec![
            Message::Hello {
                version_min: 1,
                version_max: 2,
                features: 3,
                transfer: [4; 16],
            },
            Message::Welcome {
                version: 1,
                features: 0,
                read_only: true,
            },
            Message::Error(fault.clone()),
            Message::Stat {
                path: b"a/b".to_vec(),
                follow: true,
            },
            Message::StatReply(None),
            Message::StatReply(Some(meta.clone())),
            Message::List { path: vec![] },
            Message::Entry {
                name: name.clone(),
                meta,
            },
            Message::ListEnd,
            Message::Put {
                path: b"p".to_vec(),
            },
            Message::Get {
                path: b"p".to_vec(),
                recursive: true,
                name: vec![],
            },
            Message::Ready,
            Message::Total {
                files: 1,
                bytes: u64::MAX,
            },
            Message::Enter {
                id: 1,
                name: name.clone(),
                mode: 0o755,
                mtime,
            },
            Message::Leave,
            Message::File {
                id: 2,
                name: name.clone(),
                mode: 0o644,
                mtime,
                size: 1 << 40,
            },
            Message::Link {
                id: 3,
                name,
                mtime,
                target: b"../..".to_vec(),
            },
            Message::Begin { id: 2, start: 77 },
            Message::Hole { len: 1 << 50 },
            Message::End { digest: [9; 32] },
            Message::Same { id: 2 },
            Message::Abort {
                id: 2,
                fault: fault.clone(),
            },
            Message::Notice {
                skipped: true,
                path: b"q/r".to_vec(),
                fault: fault.clone(),
            },
            Message::Finish,
            Message::Want {
                id: 2,
                offset: 5,
                whole: false,
                digest: [1; 32],
            },
            Message::Have { id: 1 },
            Message::Done { id: 1 },
            Message::Failed { id: 1, fault },
            Message::Finished,
        ]
    }

    #[test]
    fn every_message_survives_the_wire_and_no_prefix_or_surplus_does() {
        for message in samples() {
            let mut frame = Vec::new();
            message.encode(&mut frame);
            let (header, body) = frame.split_first_chunk::<HEADER_LEN>().unwrap();
            let (kind, len) = decode_header(header).unwrap();
            assert_eq!(len, body.len());
            assert_eq!(Message::decode(kind, body).as_ref(), Ok(&message));
            for cut in 0..body.len() {
                assert!(
                    Message::decode(kind, &body[..cut]).is_err(),
                    "{message:?} cut at {cut}"
                );
            }
            let mut more = body.to_vec();
            more.push(0);
            assert!(
                Message::decode(kind, &more).is_err(),
                "{message:?} with a byte more"
            );
        }
    }

    #[test]
    fn the_document_has_every_message() {
        let document = include_str!("../../../../docs/FILES.md");
        for message in samples() {
            let shown = format!("{message:?}");
            let name = shown.split([' ', '(']).next().unwrap_or_default();
            let row = format!("| {} | {name} |", message.kind());
            assert!(document.contains(&row), "no row `{row}`");
        }
    }

    #[test]
    fn random_bytes_never_panic() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        for _ in 0..200_000 {
            let body: Vec<u8> = (0..next() % 64).map(|_| (next() % 7) as u8).collect();
            let _ = Message::decode((next() % 80) as u8, &body);
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0b", &[b'x'; 256]] {
            let body = [
                &1u32.to_le_bytes()[..],
                &(bad.len() as u16).to_le_bytes(),
                bad,
                &[0; 16],
            ]
            .concat();
            assert!(Message::decode(kind::ENTER, &body).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn too_long_frames_are_refused_by_their_header() {
        assert_eq!(
            decode_header(&encode_header(kind::DATA, DATA_MAX + 1)),
            Err(WireError::TooLong {
                kind: kind::DATA,
                len: DATA_MAX + 1
            })
        );
        assert_eq!(
            decode_header(&encode_header(99, 0)),
            Err(WireError::Kind(99))
        );
    }
}
