//! What is said between a side that wants a port listened on (`-R`) and the side that listens
//! (`--accept-remote`).
//!
//! ```text
//! asker  -> service, on its port 2122:   {"stp_forward":1,"port":8080,"back":40000,"token":"..."}\n
//! service -> asker:                      {"port":8080}\n   or   {"error":"..."}\n
//! service -> asker's port `back`, once a connection: the token's 32 hex digits, then the bytes
//! ```
//!
//! - The first stream stays open; when either side ends it, the service stops listening.
//! - The asker takes connections only from the system that it asked, and only with the token.
//! - A line has at most [`LINE_BYTES_MAX`] bytes; anything else ends the conversation.

use serde::{Deserialize, Serialize};

/// The port on the volume that `--accept-remote` listens on.
pub const SERVICE_PORT: u16 = 2122;
/// Bytes of a line at the most, its end included.
pub const LINE_BYTES_MAX: usize = 1024;
/// Bytes of a token, as hex digits.
pub const TOKEN_BYTES: usize = 32;
/// The version of this conversation.
const VERSION: u32 = 1;

/// What the asker says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    stp_forward: u32,
    /// The TCP port to listen on; 0: a free one.
    pub port: u16,
    /// The asker's port on the volume that connections are brought to.
    pub back: u16,
    /// What they begin with.
    pub token: String,
}

/// What the service says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The port it listens on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Request {
    /// A request of this version.
    pub fn new(port: u16, back: u16, token: &str) -> Self {
        Self {
            stp_forward: VERSION,
            port,
            back,
            token: token.to_owned(),
        }
    }

    /// As a line.
    pub fn line(&self) -> Vec<u8> {
        line(self)
    }

    /// From a line without its end; the error is for the asker.
    pub fn parse(line: &[u8]) -> Result<Self, String> {
        let request: Self = serde_json::from_slice(line)
            .map_err(|_| "this is no request of stp forward".to_owned())?;
        if request.stp_forward != VERSION {
            let (theirs, ours) = (request.stp_forward, VERSION);
            return Err(format!("version {theirs} is not known here, only {ours}"));
        }
        let hex = request.token.bytes().all(|b| b.is_ascii_hexdigit());
        if request.back == 0 || request.token.len() != TOKEN_BYTES || !hex {
            return Err("this is no request of stp forward".to_owned());
        }
        Ok(request)
    }
}

impl Answer {
    /// It listens.
    pub fn listening(port: u16) -> Self {
        Self {
            port: Some(port),
            error: None,
        }
    }

    /// It does not.
    pub fn refused(error: &str) -> Self {
        let end = error.floor_char_boundary(LINE_BYTES_MAX / 4);
        Self {
            port: None,
            error: Some(error[..end].to_owned()),
        }
    }

    /// As a line.
    pub fn line(&self) -> Vec<u8> {
        line(self)
    }

    /// From a line without its end: the port, or why not.
    pub fn parse(line: &[u8]) -> Result<u16, String> {
        match serde_json::from_slice::<Self>(line) {
            Ok(Self {
                port: Some(port),
                error: None,
            }) if port != 0 => Ok(port),
            Ok(Self {
                error: Some(error), ..
            }) => Err(error),
            _ => Err("its answer makes no sense".to_owned()),
        }
    }
}

fn line(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Whether two tokens are the same, in a time that does not tell where they differ.
pub fn same_token(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "00112233445566778899aabbccddeeff";

    #[test]
    fn a_conversation() {
        let request = Request::new(8080, 40000, TOKEN);
        let line = request.line();
        assert!(line.len() <= LINE_BYTES_MAX && line.ends_with(b"\n"));
        assert_eq!(Request::parse(&line[..line.len() - 1]).unwrap(), request);
        let line = Answer::listening(8080).line();
        assert_eq!(Answer::parse(&line[..line.len() - 1]), Ok(8080));
        let line = Answer::refused(&"ü".repeat(5000)).line();
        assert!(line.len() <= LINE_BYTES_MAX);
        assert!(Answer::parse(&line[..line.len() - 1]).is_err());
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in [
            "",
            "{}",
            "[]",
            "null",
            "{\"stp_forward\":2,\"port\":1,\"back\":1,\"token\":\"00112233445566778899aabbccddeeff\"}",
            "{\"stp_forward\":1,\"port\":70000,\"back\":1,\"token\":\"00112233445566778899aabbccddeeff\"}",
            "{\"stp_forward\":1,\"port\":1,\"back\":0,\"token\":\"00112233445566778899aabbccddeeff\"}",
            "{\"stp_forward\":1,\"port\":1,\"back\":1,\"token\":\"0011\"}",
            "{\"stp_forward\":1,\"port\":1,\"back\":1,\"token\":\"zz112233445566778899aabbccddeeff\"}",
        ] {
            assert!(Request::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        for bad in [
            "",
            "{}",
            "[]",
            "{\"port\":0}",
            "{\"port\":1,\"error\":\"no\"}",
        ] {
            assert!(Answer::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn tokens_compare() {
        assert!(same_token(TOKEN.as_bytes(), TOKEN.as_bytes()));
        assert!(!same_token(TOKEN.as_bytes(), &TOKEN.as_bytes()[1..]));
        assert!(!same_token(b"a", b"b"));
    }
}
