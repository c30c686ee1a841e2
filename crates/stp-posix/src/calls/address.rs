//! `struct sockaddr_stp`, and the addresses of STP.
//!
//! - Its layout is part of the interface and asserted here.
//! - What is shorter than the family is `EINVAL`, of another family `EAFNOSUPPORT`, as TCP has it.

use libc::{c_int, c_void, socklen_t};
use stp::{Addr, GroupName, SystemName};

use super::fault::{Code, Fault, Outcome};
use super::memory;

/// The address family, and the protocol family and protocol. The kernel's own end below 64.
pub const AF_STP: c_int = 0x5354;
/// The level of STP's options in `STPsetsockopt`.
pub const SOL_STP: c_int = 0x0053_5450;

/// Room for a name with its ending zero.
pub(super) const NAME_BYTES: usize = 64;
/// Longer addresses are refused: the length is a mistake.
const ADDRESS_BYTES_MAX: usize = 256;

const PORT_AT: usize = 2;
const SYSTEM_AT: usize = 4;
const GROUP_AT: usize = SYSTEM_AT + NAME_BYTES;
/// `sizeof (struct sockaddr_stp)`.
pub const ADDRESS_BYTES: usize = GROUP_AT + NAME_BYTES;
const _: () = assert!(ADDRESS_BYTES == 132);

/// What stands in a program's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Given {
    /// `AF_UNSPEC`.
    Nothing,
    /// An address of STP.
    Address(Addr),
}

/// Reads a program's address.
pub(super) fn read(from: *const c_void, len: socklen_t) -> Outcome<Given> {
    let len = len as usize;
    if !(2..=ADDRESS_BYTES_MAX).contains(&len) {
        return Err(Fault::new(
            libc::EINVAL,
            Code::Address,
            format!("an address of {len} bytes; struct sockaddr_stp has {ADDRESS_BYTES}"),
        ));
    }
    let mut bytes = [0; ADDRESS_BYTES_MAX];
    memory::read(from, &mut bytes[..len])?;
    parse(&bytes[..len])
}

fn parse(bytes: &[u8]) -> Outcome<Given> {
    let family = c_int::from(u16::from_ne_bytes([bytes[0], bytes[1]]));
    if family == libc::AF_UNSPEC {
        return Ok(Given::Nothing);
    }
    if bytes.len() < GROUP_AT {
        return Err(Fault::new(
            libc::EINVAL,
            Code::Address,
            format!(
                "an address of {} bytes; struct sockaddr_stp has {ADDRESS_BYTES}",
                bytes.len()
            ),
        ));
    }
    if family != AF_STP {
        return Err(Fault::new(
            libc::EAFNOSUPPORT,
            Code::Address,
            format!("address family {family}, not AF_STP ({AF_STP})"),
        ));
    }
    let name = |from: usize| -> Outcome<&str> {
        let field = &bytes[from.min(bytes.len())..(from + NAME_BYTES).min(bytes.len())];
        let end = field.iter().position(|byte| *byte == 0);
        let field = match end {
            Some(end) => &field[..end],
            None if field.len() < NAME_BYTES => field,
            None => {
                let what = "a name without its ending zero in struct sockaddr_stp";
                return Err(Fault::new(libc::EINVAL, Code::Address, what));
            }
        };
        std::str::from_utf8(field)
            .map_err(|_| Fault::new(libc::EINVAL, Code::Address, "a name that is not UTF-8"))
    };
    let bad = |what: &str, name: &str, why: stp::NameError| {
        Fault::new(
            libc::EINVAL,
            Code::Address,
            format!("{name:?} cannot be a {what}'s name: {why}"),
        )
    };
    let system = match name(SYSTEM_AT)? {
        "" => None,
        text => Some(
            text.parse::<SystemName>()
                .map_err(|why| bad("system", text, why))?,
        ),
    };
    let group = match name(GROUP_AT)? {
        "" => None,
        text => Some(
            text.parse::<GroupName>()
                .map_err(|why| bad("group", text, why))?,
        ),
    };
    let port = u16::from_be_bytes([bytes[PORT_AT], bytes[PORT_AT + 1]]);
    Ok(Given::Address(Addr {
        group,
        system,
        port,
    }))
}

/// The bytes of an address.
pub(super) fn bytes(addr: &Addr) -> [u8; ADDRESS_BYTES] {
    let mut bytes = [0; ADDRESS_BYTES];
    bytes[..2].copy_from_slice(&(AF_STP as u16).to_ne_bytes());
    bytes[PORT_AT..SYSTEM_AT].copy_from_slice(&addr.port.to_be_bytes());
    let mut put = |at: usize, name: &str| {
        let len = name.len().min(NAME_BYTES - 1);
        bytes[at..at + len].copy_from_slice(&name.as_bytes()[..len]);
    };
    if let Some(system) = &addr.system {
        put(SYSTEM_AT, system.as_str());
    }
    if let Some(group) = &addr.group {
        put(GROUP_AT, group.as_str());
    }
    bytes
}

/// `STPaddr`: from `SYSTEM:PORT`, `GROUP/SYSTEM:PORT` or `:PORT`.
pub fn from_text(text: &str) -> Outcome<[u8; ADDRESS_BYTES]> {
    match text.parse::<Addr>() {
        Ok(addr) => Ok(bytes(&addr)),
        Err(why) => Err(Fault::new(libc::EINVAL, Code::Address, why.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_back() {
        for text in ["beta:7000", "lab/beta:7000", ":7000", "lab/:1"] {
            let bytes = from_text(text).unwrap();
            let given = read(bytes.as_ptr().cast(), bytes.len() as socklen_t).unwrap();
            assert_eq!(given, Given::Address(text.parse().unwrap()));
        }
        let long = format!("{}/{}:65535", "g".repeat(63), "s".repeat(63));
        let bytes = from_text(&long).unwrap();
        assert_eq!(
            parse(&bytes).unwrap(),
            Given::Address(long.parse().unwrap())
        );
    }

    #[test]
    fn what_is_no_address_is_told_as_tcp_tells_it() {
        let good = from_text("lab/beta:7000").unwrap();
        let errno = |bytes: &[u8], len: usize| {
            let read = read(bytes.as_ptr().cast(), len as socklen_t);
            read.unwrap_err().errno
        };
        assert_eq!(errno(&good, 0), libc::EINVAL);
        assert_eq!(errno(&good, 1), libc::EINVAL);
        assert_eq!(errno(&good, 16), libc::EINVAL);
        assert_eq!(errno(&good, 100_000), libc::EINVAL);
        let mut other = good;
        other[0] = libc::AF_INET as u8;
        other[1] = 0;
        assert_eq!(errno(&other, ADDRESS_BYTES), libc::EAFNOSUPPORT);
        let mut endless = good;
        endless[SYSTEM_AT..GROUP_AT].fill(b'x');
        assert_eq!(errno(&endless, ADDRESS_BYTES), libc::EINVAL);
        let mut odd = good;
        odd[SYSTEM_AT] = b' ';
        assert_eq!(errno(&odd, ADDRESS_BYTES), libc::EINVAL);
        let null = read(std::ptr::null(), ADDRESS_BYTES as socklen_t);
        assert_eq!(null.unwrap_err().errno, libc::EFAULT);
        // Without the group's field, and with no family at all.
        let without = read(good.as_ptr().cast(), GROUP_AT as socklen_t).unwrap();
        assert_eq!(without, Given::Address("beta:7000".parse().unwrap()));
        assert_eq!(parse(&[0, 0]).unwrap(), Given::Nothing);
    }
}
