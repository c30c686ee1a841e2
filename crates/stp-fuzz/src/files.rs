//! Messages of the file service: frames as they would come over a stream.
//!
//! - A frame that is refused is refused by its header or by its body, never by a panic.
//! - A message that is taken says the same when it is written again, and is never longer than it was.

use stp_cli::files::wire::{HEADER_LEN, Message, body_max, decode_header, name_ok};

/// Reads frames until one is refused or the input ends.
pub fn messages(data: &[u8]) {
    let mut rest = data;
    while let Some((header, behind)) = rest.split_first_chunk::<HEADER_LEN>() {
        let Ok((kind, len)) = decode_header(header) else {
            // Any kind and body, whatever the header says.
            let _ = Message::decode(header[4], behind);
            return;
        };
        assert!(Some(len) <= body_max(kind));
        let Some((body, next)) = behind.split_at_checked(len) else {
            // It ends in the middle: what is there of it is no message, or a shorter one.
            check(kind, behind);
            return;
        };
        check(kind, body);
        rest = next;
    }
}

fn check(kind: u8, body: &[u8]) {
    let Ok(message) = Message::decode(kind, body) else {
        return;
    };
    assert_eq!(message.kind(), kind);
    if let Message::Data = message {
        return;
    }
    if let Message::Enter { name, .. } | Message::File { name, .. } | Message::Link { name, .. } =
        &message
    {
        assert!(name_ok(name), "a name that leads elsewhere");
    }
    let mut again = Vec::new();
    message.encode(&mut again);
    let Some((header, rest)) = again.split_first_chunk::<HEADER_LEN>() else {
        panic!("a frame without a header");
    };
    assert_eq!(decode_header(header), Ok((kind, rest.len())));
    assert_eq!(Message::decode(kind, rest), Ok(message));
}
