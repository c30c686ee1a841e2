//! Which TCP sockets of this network namespace listen, as the kernel lists them.
//!
//! - The kernel lists listening sockets first: nothing else is read.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The state of a listening socket in the list.
const LISTEN: &str = "0A";

/// The addresses of all listening sockets; IPv4 ones in IPv4's form.
pub(super) fn listening() -> io::Result<HashSet<SocketAddr>> {
    let mut found = HashSet::new();
    read(File::open("/proc/thread-self/net/tcp")?, &mut found)?;
    // Without IPv6 there is no such list.
    if let Ok(file) = File::open("/proc/thread-self/net/tcp6") {
        read(file, &mut found)?;
    }
    Ok(found)
}

fn read(list: impl io::Read, found: &mut HashSet<SocketAddr>) -> io::Result<()> {
    for line in BufReader::new(list).lines().skip(1) {
        let line = line?;
        let mut words = line.split_ascii_whitespace().skip(1);
        let (at, state) = (words.next(), words.nth(1));
        if state != Some(LISTEN) {
            break;
        }
        found.extend(at.and_then(address));
    }
    Ok(())
}

/// `0100007F:1F90`: words of 32 bits in the host's byte order, then the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| -> Option<[u8; 4]> {
        let digits = ip.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut bytes = [0; 16];
            for (at, four) in bytes.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&word(at)?);
            }
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn listeners_are_found_and_gone_ones_are_not() {
        let mut all = vec![TcpListener::bind("127.64.3.4:0").unwrap()];
        all.extend(TcpListener::bind("[::1]:0"));
        let places: Vec<_> = all.iter().map(|l| l.local_addr().unwrap()).collect();
        let found = listening().unwrap();
        assert!(places.iter().all(|at| found.contains(at)), "{found:?}");
        drop(all);
        let found = listening().unwrap();
        assert!(places.iter().all(|at| !found.contains(at)), "{found:?}");
    }

    #[test]
    fn what_is_no_list_is_empty() {
        let mut found = HashSet::new();
        read(&b"head\n  0: nonsense 0:0 0A\n"[..], &mut found).unwrap();
        read(&b"head\n  0: 0100007F:1F90 0:0 01\n"[..], &mut found).unwrap();
        assert!(found.is_empty());
        read(&b""[..], &mut found).unwrap();
    }
}
