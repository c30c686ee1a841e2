//! Identifiers and names. Two integers that could be swapped are two types.

use core::fmt;
use core::str::FromStr;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($int:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $int);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A seat's number, from 0; also the number of the peer at the far end of a link.
    SeatId(u16)
}
number! {
    /// The number of a node's life in its seat. Rises with every claim, never reused. 0: nobody yet.
    Incarnation(u64)
}
number! {
    /// A segment's number on its link, from 1. 0: none yet.
    Seq(u64)
}
number! {
    /// The number of a link's session, from 1, rising within one incarnation. 0: no session.
    Epoch(u32)
}

impl Seq {
    /// The one after this.
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

/// A volume's identity, random at format.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub [u8; 16]);

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The longest system or group name, in bytes.
pub const NAME_BYTES_MAX: usize = 63;

/// Why a text is no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// No characters at all.
    Empty,
    /// More than [`NAME_BYTES_MAX`] bytes; holds the length found.
    TooLong(usize),
    /// A character other than ASCII letters, digits, `-`, `_` and `.`, or a `-` or `.` in front.
    BadCharacter(char),
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the name is empty"),
            Self::TooLong(found) => {
                write!(
                    f,
                    "the name has {found} bytes, {NAME_BYTES_MAX} is the most"
                )
            }
            Self::BadCharacter(c) => write!(
                f,
                "the name has {c:?}: letters, digits, '-', '_' and '.' are allowed, not '-' or '.' in front"
            ),
        }
    }
}

impl core::error::Error for NameError {}

/// A name as it stands on the volume: at most 63 bytes of `[A-Za-z0-9._-]`, zero-padded to 64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Name([u8; 64]);

impl Name {
    fn parse(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        if text.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong(text.len()));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let in_front = text.chars().next().filter(|c| matches!(c, '-' | '.'));
        if let Some(bad) = in_front.or_else(|| text.chars().find(|c| !allowed(*c))) {
            return Err(NameError::BadCharacter(bad));
        }
        let mut bytes = [0; 64];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self(bytes))
    }

    fn from_padded(padded: &[u8; 64]) -> Result<Self, NameError> {
        let end = padded.iter().position(|b| *b == 0).unwrap_or(64);
        if padded[end..].iter().any(|b| *b != 0) {
            return Err(NameError::BadCharacter('\0'));
        }
        match core::str::from_utf8(&padded[..end]) {
            Ok(text) => Self::parse(text),
            Err(_) => Err(NameError::BadCharacter(char::REPLACEMENT_CHARACTER)),
        }
    }

    fn as_str(&self) -> &str {
        let end = self.0.iter().position(|b| *b == 0).unwrap_or(64);
        core::str::from_utf8(&self.0[..end]).unwrap_or_default()
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Name);

        impl $name {
            /// From its zero-padded form on the volume.
            pub fn from_padded(padded: &[u8; 64]) -> Result<Self, NameError> {
                Name::from_padded(padded).map(Self)
            }

            /// Its zero-padded form on the volume.
            pub fn padded(&self) -> [u8; 64] {
                self.0.0
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Name::parse(text).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
            }
        }
    };
}

name! {
    /// A host's name in its group.
    SystemName
}
name! {
    /// The name of the set of systems that share one volume.
    GroupName
}
name! {
    /// The name by which a program takes what others give to it.
    ProcessName
}
