//! Addresses: the number of a system, and the IP addresses that stand for it.
//!
//! - A system's number is a hash of volume and name, 22 bits: the same on every host, whoever asks first.
//! - The same bits make three addresses. Inside the kernel: `127.64.0.0/10`, loopback. What programs see:
//!   `240.64.0.0/10`, never routed and not loopback, so that nobody grants a remote system what it grants
//!   to its own host; for IPv6, `100::5354:50:0:0/96` of the discard-only prefix.
//! - Number 0 and the highest one are the engine's own and no system's.
//! - Two names of one number are an error that names both, never a silent mix-up.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use stp_format::{SystemName, VolumeId};

/// The domain of a system's host name.
pub const DOMAIN: &str = "stp";

/// Bits of a number.
const BITS: u32 = 22;
const NUMBER_MAX: u32 = (1 << BITS) - 1;

const KERNEL_BASE: u32 = u32::from_be_bytes([127, 64, 0, 0]);
const VISIBLE_BASE: u32 = u32::from_be_bytes([240, 64, 0, 0]);
/// `100::5354:50:0:0`; "STP" stands in it.
const VISIBLE_V6_BASE: u128 = 0x0100_0000_0000_0000_5354_0050_0000_0000;

/// Where the engine's door stands: connections to other systems begin there.
pub const DOOR_V4: Ipv4Addr = Ipv4Addr::from_bits(KERNEL_BASE);
/// Where a connection from another system comes from if its true name is taken: its name has to be asked for.
pub const NAMELESS_V4: Ipv4Addr = Ipv4Addr::from_bits(KERNEL_BASE | NUMBER_MAX);

/// A system's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemNumber(u32);

impl SystemNumber {
    /// The loopback address that the kernel knows.
    pub fn kernel_v4(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(KERNEL_BASE | self.0)
    }

    /// The IPv4 address that programs see.
    pub fn visible_v4(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(VISIBLE_BASE | self.0)
    }

    /// The IPv6 address that programs see where only IPv6 will do.
    pub fn visible_v6(self) -> Ipv6Addr {
        Ipv6Addr::from_bits(VISIBLE_V6_BASE | u128::from(self.0))
    }

    /// From the kernel's address, also in IPv6's mapped form.
    pub fn from_kernel(ip: IpAddr) -> Option<Self> {
        Self::within(ip, KERNEL_BASE)
    }

    /// From an address that programs see: IPv4, IPv4 mapped to IPv6, or IPv6.
    pub fn from_visible(ip: IpAddr) -> Option<Self> {
        if let IpAddr::V6(v6) = ip {
            let bits = v6.to_bits() ^ VISIBLE_V6_BASE;
            if let Ok(number) = u32::try_from(bits) {
                return Self::new(number);
            }
        }
        Self::within(ip, VISIBLE_BASE)
    }

    fn within(ip: IpAddr, base: u32) -> Option<Self> {
        let IpAddr::V4(v4) = ip.to_canonical() else {
            return None;
        };
        Self::new(v4.to_bits() ^ base)
    }

    fn new(number: u32) -> Option<Self> {
        (1..NUMBER_MAX).contains(&number).then_some(Self(number))
    }
}

/// Whether the kernel's address stands for a system or for the engine.
pub fn is_kernel(ip: IpAddr) -> bool {
    in_range(ip, KERNEL_BASE)
}

/// Whether it is one of the engine's own addresses: who is behind it must be asked for.
pub fn is_reserved(ip: IpAddr) -> bool {
    is_kernel(ip) && SystemNumber::from_kernel(ip).is_none()
}

/// Whether it is of the ranges that programs see.
pub fn is_visible(ip: IpAddr) -> bool {
    let v6 = match ip {
        IpAddr::V6(v6) => v6.to_bits() >> 32 == VISIBLE_V6_BASE >> 32,
        IpAddr::V4(_) => false,
    };
    v6 || in_range(ip, VISIBLE_BASE)
}

fn in_range(ip: IpAddr, base: u32) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.to_bits() ^ base <= NUMBER_MAX,
        IpAddr::V6(_) => false,
    }
}

/// The system's name in a host name of the domain `stp`: `beta` of `beta.stp` and `beta.stp.`.
pub fn in_domain(host: &str) -> Option<&str> {
    let host = host.strip_suffix('.').unwrap_or(host);
    let (name, domain) = host.rsplit_once('.')?;
    (domain.eq_ignore_ascii_case(DOMAIN) && !name.is_empty()).then_some(name)
}

/// Two systems of one volume have the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collision {
    /// The one.
    pub first: SystemName,
    /// The other.
    pub second: SystemName,
}

impl fmt::Display for Collision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "systems {} and {} of this volume have the same address: give one of them another name with --system",
            self.first, self.second
        )
    }
}

impl std::error::Error for Collision {}

/// The addresses of one volume's systems.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    volume: VolumeId,
}

impl Addresses {
    /// Those of `volume`.
    pub const fn new(volume: VolumeId) -> Self {
        Self { volume }
    }

    /// A system's number.
    pub fn number(&self, system: &SystemName) -> SystemNumber {
        let bytes = self.volume.0.iter().chain(system.as_str().as_bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        // The last bytes have not reached the high bits yet.
        let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        let spread = (hash >> 32) % u64::from(NUMBER_MAX - 1);
        SystemNumber(1 + spread as u32)
    }

    /// The loopback address that the kernel knows.
    pub fn kernel_v4(&self, system: &SystemName) -> Ipv4Addr {
        self.number(system).kernel_v4()
    }

    /// The IPv4 address that programs see.
    pub fn visible_v4(&self, system: &SystemName) -> Ipv4Addr {
        self.number(system).visible_v4()
    }

    /// The IPv6 address that programs see where only IPv6 will do.
    pub fn visible_v6(&self, system: &SystemName) -> Ipv6Addr {
        self.number(system).visible_v6()
    }

    #[allow(clippy::result_large_err, reason = "asked where there is no heap")]
    /// Which of `systems` has this number; a name may be there more than once.
    pub fn find(
        &self,
        number: SystemNumber,
        systems: impl IntoIterator<Item = SystemName>,
    ) -> Result<Option<SystemName>, Collision> {
        let mut found: Option<SystemName> = None;
        for system in systems {
            if self.number(&system) != number {
                continue;
            }
            match found {
                Some(first) if first != system => {
                    let second = system;
                    return Err(Collision { first, second });
                }
                _ => found = Some(system),
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> SystemName {
        text.parse().unwrap()
    }

    const HERE: Addresses = Addresses::new(VolumeId([7; 16]));

    const ALPHA: u32 = 4_106_789;
    const BETA: u32 = 4_118_396;

    #[test]
    fn a_number_is_the_same_everywhere_and_for_ever() {
        // Other hosts and releases must find the same.
        assert_eq!(HERE.number(&name("alpha")).0, ALPHA);
        assert_eq!(HERE.number(&name("beta")).0, BETA);
        let other = Addresses::new(VolumeId([8; 16]));
        assert_ne!(other.number(&name("alpha")).0, ALPHA);
    }

    #[test]
    fn every_address_leads_back() {
        for text in ["alpha", "beta", "a", "x.y-z_0", &"s".repeat(63)] {
            let number = HERE.number(&name(text));
            let kernel = number.kernel_v4();
            assert!(kernel.is_loopback());
            assert!(is_kernel(kernel.into()) && !is_reserved(kernel.into()));
            assert!(!is_visible(kernel.into()));
            assert_eq!(SystemNumber::from_kernel(kernel.into()), Some(number));
            let mapped = kernel.to_ipv6_mapped();
            assert_eq!(SystemNumber::from_kernel(mapped.into()), Some(number));
            let seen = number.visible_v4();
            assert!(!seen.is_loopback() && !is_kernel(seen.into()));
            let forms: [IpAddr; 3] = [
                seen.into(),
                seen.to_ipv6_mapped().into(),
                number.visible_v6().into(),
            ];
            for ip in forms {
                assert!(is_visible(ip), "{ip}");
                assert_eq!(SystemNumber::from_visible(ip), Some(number), "{ip}");
                assert_eq!(SystemNumber::from_kernel(ip), None, "{ip}");
            }
        }
    }

    #[test]
    fn other_addresses_are_nobodys() {
        for text in [
            "127.0.0.1",
            "127.63.255.255",
            "127.128.0.0",
            "::1",
            "::",
            "0.0.0.0",
            "240.63.0.1",
            "240.128.0.0",
            "255.255.255.255",
            "10.0.0.1",
            "100::1",
            "100::5354:51:0:1",
            "::ffff:127.0.0.1",
        ] {
            let ip: IpAddr = text.parse().unwrap();
            assert!(
                !is_kernel(ip) && !is_visible(ip) && !is_reserved(ip),
                "{ip}"
            );
            assert_eq!(SystemNumber::from_kernel(ip), None, "{ip}");
            assert_eq!(SystemNumber::from_visible(ip), None, "{ip}");
        }
        for ip in [DOOR_V4, NAMELESS_V4] {
            assert!(is_reserved(ip.into()) && is_kernel(ip.into()));
            assert_eq!(SystemNumber::from_kernel(ip.into()), None);
        }
    }

    #[test]
    fn numbers_spread() {
        let mut numbers: Vec<u32> = (0..2000)
            .map(|i| HERE.number(&name(&format!("host{i}"))).0)
            .collect();
        numbers.sort_unstable();
        numbers.dedup();
        // 2000 of 4 million: about half a collision is expected.
        assert!(numbers.len() >= 1995, "{}", numbers.len());
        let high = numbers.iter().filter(|n| **n > NUMBER_MAX / 2).count();
        assert!((800..1200).contains(&high), "{high}");
    }

    #[test]
    fn two_names_of_one_number_are_told() {
        let mut seen = std::collections::HashMap::new();
        let (first, second) = (0..)
            .find_map(|i| {
                let system = name(&format!("h{i}"));
                let other = seen.insert(HERE.number(&system), system)?;
                Some((other, system))
            })
            .unwrap();
        let all = [name("alpha"), first, first, second];
        let number = HERE.number(&first);
        assert_eq!(HERE.find(number, all), Err(Collision { first, second }));
        assert_eq!(HERE.find(number, [first, first]), Ok(Some(first)));
        assert_eq!(HERE.find(number, [name("alpha")]), Ok(None));
        let text = Collision { first, second }.to_string();
        assert!(
            text.contains(first.as_str()) && text.contains("--system"),
            "{text}"
        );
    }

    #[test]
    fn host_names_of_the_domain() {
        assert_eq!(in_domain("beta.stp"), Some("beta"));
        assert_eq!(in_domain("beta.x.STP."), Some("beta.x"));
        for other in ["beta", "beta.stpx", "stp", ".stp", "beta.stp.org", ""] {
            assert_eq!(in_domain(other), None, "{other}");
        }
    }
}
