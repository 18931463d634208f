// SPDX-License-Identifier: GPL-2.0-only
//! What network a copy gets, and which address.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::Path;
use std::str::FromStr;

use nix::sched::{CloneFlags, unshare};

use super::netlink::{LOOPBACK, Network};

/// Where the kernel lists network devices.
const DEVICES: &str = "/sys/class/net";
/// A copy's own device.
const DEVICE: &str = "eth0";

/// Why there is no network for the copies.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such bridge.
    #[error("no bridge `{0}` here: `ip link add {0} type bridge && ip link set {0} up` makes one")]
    NoBridge(String),
    /// Too many copies for the subnet.
    #[error("{subnet} has {free} free addresses, {wanted} are wanted: give a larger subnet")]
    Full {
        /// The subnet.
        subnet: Subnet,
        /// How many are free.
        free: usize,
        /// How many are wanted.
        wanted: usize,
    },
}

/// Not a subnet.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no IPv4 subnet, such as 10.1.0.0/16")]
pub struct Invalid(String);

/// An IPv4 subnet, and from which address on it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    first: Ipv4Addr,
    prefix: u8,
}

impl Subnet {
    fn host_bits(self) -> u32 {
        u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0)
    }

    fn network(self) -> u32 {
        self.first.to_bits() & !self.host_bits()
    }

    /// The addresses for hosts, from `first` on.
    fn hosts(self) -> impl Iterator<Item = Ipv4Addr> {
        let (low, high) = (self.network(), self.network() | self.host_bits());
        let first = self.first.to_bits().max(low.saturating_add(1));
        (first..high).map(Ipv4Addr::from_bits)
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

impl FromStr for Subnet {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (first, prefix) = text
            .split_once('/')
            .and_then(|(first, prefix)| Some((first.parse().ok()?, prefix.parse().ok()?)))
            .ok_or_else(|| Invalid(text.into()))?;
        if prefix > 30 {
            return Err(Invalid(text.into()));
        }
        Ok(Self { first, prefix })
    }
}

/// A bridge that connects the copies.
#[derive(Debug, Clone)]
pub struct Bridge {
    index: u32,
    /// Its own address, where it has one: the way out.
    address: Option<Ipv4Addr>,
    subnet: Subnet,
}

/// The network of all copies.
#[derive(Debug, Clone)]
pub enum Net {
    /// That of the caller.
    Host,
    /// One of its own, with the loopback only.
    Own,
    /// One of its own, with a device on a bridge.
    Bridged(Bridge),
}

impl Bridge {
    /// Finds the bridge `name`.
    ///
    /// # Errors
    /// [`Error::NoBridge`].
    pub fn find(name: &str, subnet: Subnet) -> Result<Self, Error> {
        let none = || Error::NoBridge(name.into());
        let dir = Path::new(DEVICES).join(name);
        if name.contains('/') || !dir.join("bridge").is_dir() {
            return Err(none());
        }
        let index = fs::read_to_string(dir.join("ifindex")).map_err(|_| none())?;
        Ok(Self {
            index: index.trim().parse().map_err(|_| none())?,
            address: address_of(name),
            subnet,
        })
    }

    /// `count` addresses that neither the bridge nor another copy has.
    ///
    /// # Errors
    /// [`Error::Full`].
    pub fn free_addresses(&self, count: usize) -> Result<Vec<Ipv4Addr>, Error> {
        let taken = |a: &Ipv4Addr| {
            self.address == Some(*a) || Path::new(DEVICES).join(device_for(*a)).exists()
        };
        let hosts = self.subnet.hosts().filter(|a| !taken(a));
        let found: Vec<Ipv4Addr> = hosts.take(count).collect();
        if found.len() < count {
            return Err(Error::Full {
                subnet: self.subnet,
                free: found.len(),
                wanted: count,
            });
        }
        Ok(found)
    }

    fn connect(&self, outside: &Network, address: Ipv4Addr) -> io::Result<()> {
        let here = fs::File::open("/proc/self/ns/net")?;
        outside.connect(&device_for(address), self.index, DEVICE, here.as_fd())?;
        let inside = Network::open()?;
        inside.bring_up(LOOPBACK)?;
        let device = nix::net::if_::if_nametoindex(DEVICE)?;
        inside.bring_up(device)?;
        inside.add_address(device, address, self.subnet.prefix)?;
        match self.address {
            Some(gateway) => inside.add_default_route(gateway),
            None => Ok(()),
        }
    }
}

/// The bridge's end of a copy's connection. Its name keeps the address for that copy:
/// there is only one device of a name.
fn device_for(address: Ipv4Addr) -> String {
    format!("vas{:08x}", address.to_bits())
}

/// The first IPv4 address of a device.
fn address_of(device: &str) -> Option<Ipv4Addr> {
    let mut all = nix::ifaddrs::getifaddrs().ok()?;
    all.find_map(|a| {
        let own = a.interface_name == device;
        own.then(|| Some(a.address?.as_sockaddr_in()?.ip()))?
    })
}

impl Net {
    /// Puts this process into its network, as `address` where that is a bridge's.
    ///
    /// # Errors
    /// The kernel's.
    pub fn enter(&self, address: Option<Ipv4Addr>) -> io::Result<()> {
        if matches!(self, Self::Host) {
            return Ok(());
        }
        let outside = Network::open()?;
        unshare(CloneFlags::CLONE_NEWNET)?;
        match (self, address) {
            (Self::Bridged(bridge), Some(address)) => bridge.connect(&outside, address),
            _ => Network::open()?.bring_up(LOOPBACK),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(text: &str) -> Subnet {
        text.parse().expect("a subnet")
    }

    #[test]
    fn hosts_are_neither_the_network_nor_its_broadcast() {
        let all: Vec<String> = subnet("10.0.0.0/29")
            .hosts()
            .map(|a| a.to_string())
            .collect();
        assert_eq!(all.len(), 6);
        assert_eq!((all[0].as_str(), all[5].as_str()), ("10.0.0.1", "10.0.0.6"));
        assert_eq!(
            subnet("0.0.0.0/0").hosts().next(),
            Some(Ipv4Addr::new(0, 0, 0, 1))
        );
    }

    #[test]
    fn an_address_within_the_subnet_is_the_first_one() {
        let mut hosts = subnet("10.0.0.100/24").hosts();
        assert_eq!(hosts.next(), Some(Ipv4Addr::new(10, 0, 0, 100)));
        assert_eq!(hosts.count(), 154);
    }

    #[test]
    fn what_is_no_subnet_is_refused() {
        for bad in [
            "",
            "10.0.0.0",
            "10.0.0/8",
            "10.0.0.0/33",
            "10.0.0.0/31",
            "::1/64",
            "a/8",
        ] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_small_subnet_says_how_many_it_has_room_for() {
        let bridge = Bridge {
            index: 1,
            address: Some(Ipv4Addr::new(10, 0, 0, 1)),
            subnet: subnet("10.0.0.0/29"),
        };
        let free = bridge.free_addresses(5).expect("five");
        assert_eq!(free[0], Ipv4Addr::new(10, 0, 0, 2));
        let e = bridge.free_addresses(6).expect_err("too many").to_string();
        assert!(e.contains("5 free") && e.contains("6 are wanted"), "{e}");
    }

    #[test]
    fn a_device_is_no_bridge() {
        for name in ["lo", "nothing", "../net/lo"] {
            assert!(Bridge::find(name, subnet("10.0.0.0/8")).is_err(), "{name}");
        }
    }
}
