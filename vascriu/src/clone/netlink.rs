// SPDX-License-Identifier: GPL-2.0-only
//! The few requests to the kernel's routing netlink (rtnetlink(7)) that give a copy its
//! network: a pair of virtual Ethernet devices, addresses, a route.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// `lo` is the first device of every network namespace.
pub const LOOPBACK: u32 = 1;

const ALIGN: usize = 4;
const VETH_INFO_PEER: u16 = 1;
const UP: u32 = libc::IFF_UP as u32;
/// `AF_INET` as the structs have it.
const INET: u8 = 2;

/// A request: a header, a struct, attributes.
struct Message(Vec<u8>);

impl Message {
    /// `kind` is `RTM_…`; `flags` besides `NLM_F_REQUEST` and `NLM_F_ACK`.
    fn new(kind: u16, flags: i32, head: &[&[u8]]) -> Self {
        let flags = flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        let mut bytes = vec![0; 4]; // the length of all, when it is known
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(u16::try_from(flags).unwrap_or_default().to_ne_bytes());
        bytes.extend([0; 8]); // sequence and port: one request at a time
        bytes.extend(head.concat());
        Self(bytes)
    }

    fn attribute(&mut self, kind: u16, content: &[u8]) {
        self.nest(kind, |m| m.0.extend(content));
    }

    /// An attribute of attributes.
    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.0.extend([0; 2]);
        self.0.extend(kind.to_ne_bytes());
        fill(self);
        let len = u16::try_from(self.0.len() - start).expect("what is sent is far shorter");
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(ALIGN), 0);
    }

    fn bytes(mut self) -> Vec<u8> {
        let len = u32::try_from(self.0.len()).expect("what is sent is far shorter");
        self.0[..4].copy_from_slice(&len.to_ne_bytes());
        self.0
    }
}

/// `struct ifinfomsg`: of a new device, which is down.
const NEW_DEVICE: [u8; 16] = [0; 16];

/// `struct ifinfomsg`: of the device `index`, or of a new one; it is to be up.
fn device_up(index: u32) -> [u8; 16] {
    let mut info = NEW_DEVICE;
    info[4..8].copy_from_slice(&index.to_ne_bytes());
    info[8..12].copy_from_slice(&UP.to_ne_bytes());
    info[12..16].copy_from_slice(&UP.to_ne_bytes());
    info
}

/// The error that the kernel answered with, if it did.
fn verdict(answer: &[u8]) -> io::Result<()> {
    // nlmsghdr (16 bytes), then nlmsgerr, which begins with the negative errno.
    match answer.get(16..20).and_then(|e| e.try_into().ok()) {
        Some(bytes) => match i32::from_ne_bytes(bytes) {
            0 => Ok(()),
            e => Err(io::Error::from_raw_os_error(-e)),
        },
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A connection to the network namespace that the thread was in when it was made.
#[derive(Debug)]
pub struct Network(OwnedFd);

impl Network {
    /// Connects.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> io::Result<Self> {
        Ok(Self(socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?))
    }

    fn ask(&self, message: Message) -> io::Result<()> {
        send(self.0.as_raw_fd(), &message.bytes(), MsgFlags::empty())?;
        let mut answer = [0; 4096];
        let len = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        verdict(&answer[..len])
    }

    /// Brings a device up.
    ///
    /// # Errors
    /// The kernel's.
    pub fn bring_up(&self, device: u32) -> io::Result<()> {
        self.ask(Message::new(libc::RTM_NEWLINK, 0, &[&device_up(device)]))
    }

    /// Makes a pair of devices: `name` here, on `bridge` and up, and `peer_name` in the network
    /// namespace `peer`. They go with that.
    ///
    /// # Errors
    /// The kernel's: `EEXIST` where there is a `name`.
    pub fn connect(
        &self,
        name: &str,
        bridge: u32,
        peer_name: &str,
        peer: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let new = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let mut message = Message::new(libc::RTM_NEWLINK, new, &[&device_up(0)]);
        message.attribute(libc::IFLA_IFNAME, name.as_bytes());
        message.attribute(libc::IFLA_MASTER, &bridge.to_ne_bytes());
        message.nest(libc::IFLA_LINKINFO, |info| {
            info.attribute(libc::IFLA_INFO_KIND, b"veth");
            info.nest(libc::IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |other| {
                    // It cannot be up before it has a peer.
                    other.0.extend(NEW_DEVICE);
                    other.attribute(libc::IFLA_IFNAME, peer_name.as_bytes());
                    other.attribute(libc::IFLA_NET_NS_FD, &peer.as_raw_fd().to_ne_bytes());
                });
            });
        });
        self.ask(message)
    }

    /// Gives a device an address in a subnet of `prefix` bits.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_address(&self, device: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        // struct ifaddrmsg
        let head = [&[INET, prefix, 0, 0][..], &device.to_ne_bytes()];
        let mut message = Message::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE, &head);
        message.attribute(libc::IFA_LOCAL, &address.octets());
        message.attribute(libc::IFA_ADDRESS, &address.octets());
        self.ask(message)
    }

    /// Everything else is reached through `gateway`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add_default_route(&self, gateway: Ipv4Addr) -> io::Result<()> {
        // struct rtmsg
        let head = [
            INET,
            0,
            0,
            0,
            libc::RT_TABLE_MAIN,
            libc::RTPROT_STATIC,
            libc::RT_SCOPE_UNIVERSE,
            libc::RTN_UNICAST,
        ];
        let message = [&head[..], &[0; 4]];
        let mut message = Message::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE, &message);
        message.attribute(libc::RTA_GATEWAY, &gateway.octets());
        self.ask(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_aligned_and_know_their_lengths() {
        let mut message = Message::new(1, 0, &[]);
        message.nest(2, |m| m.attribute(3, b"ab\0\0c"));
        let bytes = message.bytes();
        assert_eq!(bytes.len(), 16 + 4 + 4 + 8);
        assert_eq!(bytes[..4], 32u32.to_ne_bytes());
        assert_eq!(bytes[16..20], [[16, 0], [2, 0]].concat());
        assert_eq!(bytes[20..24], [[9, 0], [3, 0]].concat());
    }

    #[test]
    fn an_answer_is_an_errno_or_none() {
        let mut answer = [0; 36];
        assert!(verdict(&answer).is_ok());
        answer[16..20].copy_from_slice(&(-libc::EEXIST).to_ne_bytes());
        let e = verdict(&answer).expect_err("refused");
        assert_eq!(e.raw_os_error(), Some(libc::EEXIST));
        assert!(verdict(&answer[..18]).is_err());
    }

    #[test]
    fn the_kernel_understands_what_is_asked() {
        let network = Network::open().expect("a socket");
        let e = network.bring_up(u32::MAX >> 1).expect_err("no such device");
        // EPERM where the tests run without rights.
        assert!(
            matches!(e.raw_os_error(), Some(libc::ENODEV | libc::EPERM)),
            "{e}"
        );
    }
}
