//! What an address means, and which one stands for a system: the rules of `stp run`, without a system call.
//!
//! - A real address of the map means its system; a synthetic one means the system with that number; loopback means
//!   this system; any other address is the kernel's alone.
//! - A system has one face: the first address that the map gives it, else its synthetic one. What programs are told
//!   is always the face, so that an address that was told can be connected to, also from another system.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use stp_format::SystemName;
use stp_host::address::{self, Addresses, SystemNumber};

/// Real addresses that mean systems: `IP=SYSTEM`, separated by commas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map(Vec<(IpAddr, SystemName)>);

/// What an address means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Nothing of ours: the kernel's.
    Foreign,
    /// This system, by loopback.
    Loopback,
    /// The system of this name.
    System(SystemName),
    /// The system with this number.
    Number(SystemNumber),
    /// A synthetic address that no system has.
    Nobody,
}

impl Map {
    /// From the text that `stp run` hands down. What does not read as an entry is left out: `stp run` has checked.
    pub fn parse(text: &str) -> Self {
        let entry = |entry: &str| {
            let (ip, system) = entry.split_once('=')?;
            let ip: IpAddr = ip.trim().parse().ok()?;
            Some((ip.to_canonical(), system.trim().parse().ok()?))
        };
        Self(text.split(',').filter_map(entry).collect())
    }

    /// What `ip` means as a destination.
    pub(super) fn meaning(&self, ip: IpAddr) -> Meaning {
        let ip = ip.to_canonical();
        if let Some((_, system)) = self.0.iter().find(|(mapped, _)| *mapped == ip) {
            Meaning::System(*system)
        } else if let Some(number) = SystemNumber::from_visible(ip) {
            Meaning::Number(number)
        } else if address::is_visible(ip) {
            Meaning::Nobody
        } else if ip.is_loopback() || ip.is_unspecified() {
            Meaning::Loopback
        } else {
            Meaning::Foreign
        }
    }

    /// The address by which programs know the system of this number on IPv4 sockets.
    pub(super) fn face_v4(&self, number: SystemNumber, addresses: &Addresses) -> Ipv4Addr {
        self.faces(number, addresses)
            .find_map(|ip| match ip {
                IpAddr::V4(v4) => Some(v4),
                IpAddr::V6(_) => None,
            })
            .unwrap_or_else(|| number.visible_v4())
    }

    /// As [`Map::face_v4`], where only IPv6 will do.
    pub(super) fn face_v6(&self, number: SystemNumber, addresses: &Addresses) -> Ipv6Addr {
        self.faces(number, addresses)
            .find_map(|ip| match ip {
                IpAddr::V6(v6) => Some(v6),
                IpAddr::V4(_) => None,
            })
            .unwrap_or_else(|| number.visible_v6())
    }

    fn faces(&self, number: SystemNumber, addresses: &Addresses) -> impl Iterator<Item = IpAddr> {
        let ours = move |entry: &&(IpAddr, SystemName)| addresses.number(&entry.1) == number;
        self.0.iter().filter(ours).map(|(ip, _)| *ip)
    }
}

/// The address in the form that a socket of this family has: IPv4 in IPv6's mapped form on an IPv6 socket.
pub(super) fn in_family(address: SocketAddr, v6: bool) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v6 => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        address => address,
    }
}

/// The same address with another IP, keeping the family that it is written in.
pub(super) fn with_ip(address: SocketAddr, ip: IpAddr) -> SocketAddr {
    in_family(SocketAddr::new(ip, address.port()), address.is_ipv6())
}

#[cfg(test)]
mod tests {
    use super::*;
    use stp_format::VolumeId;

    const HERE: Addresses = Addresses::new(VolumeId([7; 16]));

    fn name(text: &str) -> SystemName {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_map_speaks_before_the_ranges() {
        let map = Map::parse(
            "10.0.0.5=beta, ::ffff:10.0.0.6=gamma,,nonsense,1.2.3=x,fd00::5=beta,9.9.9.9=no name",
        );
        assert_eq!(map.meaning(ip("10.0.0.5")), Meaning::System(name("beta")));
        assert_eq!(
            map.meaning(ip("::ffff:10.0.0.5")),
            Meaning::System(name("beta"))
        );
        assert_eq!(map.meaning(ip("10.0.0.6")), Meaning::System(name("gamma")));
        assert_eq!(map.meaning(ip("fd00::5")), Meaning::System(name("beta")));
        assert_eq!(map.meaning(ip("9.9.9.9")), Meaning::Foreign);
    }

    #[test]
    fn ranges_mean_what_they_mean() {
        let map = Map::default();
        let number = HERE.number(&name("beta"));
        for ip in [
            IpAddr::from(number.visible_v4()),
            number.visible_v4().to_ipv6_mapped().into(),
            number.visible_v6().into(),
        ] {
            assert_eq!(map.meaning(ip), Meaning::Number(number));
        }
        for text in ["127.0.0.1", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1"] {
            assert_eq!(map.meaning(ip(text)), Meaning::Loopback, "{text}");
        }
        for text in ["240.64.0.0", "240.127.255.255"] {
            assert_eq!(map.meaning(ip(text)), Meaning::Nobody, "{text}");
        }
        for text in ["10.0.0.1", "192.168.1.1", "240.1.2.3", "2001:db8::1"] {
            assert_eq!(map.meaning(ip(text)), Meaning::Foreign, "{text}");
        }
        // The kernel's addresses are no names: a program that has one from elsewhere talks to loopback.
        assert_eq!(map.meaning(number.kernel_v4().into()), Meaning::Loopback);
    }

    #[test]
    fn a_face_leads_back_to_its_system() {
        let map = Map::parse("10.0.0.5=beta,10.0.0.6=beta,fd00::5=beta");
        let beta = HERE.number(&name("beta"));
        let gamma = HERE.number(&name("gamma"));
        assert_eq!(map.face_v4(beta, &HERE), Ipv4Addr::new(10, 0, 0, 5));
        assert_eq!(IpAddr::from(map.face_v6(beta, &HERE)), ip("fd00::5"));
        assert_eq!(map.face_v4(gamma, &HERE), gamma.visible_v4());
        assert_eq!(map.face_v6(gamma, &HERE), gamma.visible_v6());
        for face in [
            map.face_v4(beta, &HERE).into(),
            IpAddr::from(map.face_v6(beta, &HERE)),
        ] {
            assert_eq!(map.meaning(face), Meaning::System(name("beta")));
        }
    }

    #[test]
    fn an_address_keeps_its_family() {
        let v4: SocketAddr = "10.0.0.1:80".parse().unwrap();
        let mapped: SocketAddr = "[::ffff:10.0.0.1]:80".parse().unwrap();
        assert_eq!(in_family(v4, true), mapped);
        assert_eq!(in_family(v4, false), v4);
        assert_eq!(
            with_ip(mapped, ip("1.2.3.4")),
            "[::ffff:1.2.3.4]:80".parse().unwrap()
        );
        assert_eq!(with_ip(v4, ip("1.2.3.4")), "1.2.3.4:80".parse().unwrap());
    }
}
