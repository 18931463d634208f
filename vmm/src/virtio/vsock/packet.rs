// SPDX-License-Identifier: GPL-2.0-only
//! The header of a vsock packet (virtio 1.2, section 5.10.6).
//!
//! rust-vmm's `virtio-vsock` has one too, but its packets are at most two descriptors, and a
//! Linux guest that sends with MSG_ZEROCOPY uses more.

/// Length of a header on the wire.
pub const HEADER_LEN: usize = 44;
/// The host's address.
pub const HOST_CID: u64 = 2;
/// The only type of socket here.
pub const TYPE_STREAM: u16 = 1;

/// Ask for a stream.
pub const OP_REQUEST: u16 = 1;
/// Accept one.
pub const OP_RESPONSE: u16 = 2;
/// Refuse or end one at once.
pub const OP_RST: u16 = 3;
/// End one in an orderly way.
pub const OP_SHUTDOWN: u16 = 4;
/// Bytes of a stream.
pub const OP_RW: u16 = 5;
/// Tell the free space of a buffer.
pub const OP_CREDIT_UPDATE: u16 = 6;
/// Ask for it.
pub const OP_CREDIT_REQUEST: u16 = 7;

/// `OP_SHUTDOWN`: the sender will receive no more.
pub const SHUTDOWN_RCV: u32 = 1;
/// `OP_SHUTDOWN`: the sender will send no more.
pub const SHUTDOWN_SEND: u32 = 2;
/// Both.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RCV | SHUTDOWN_SEND;

/// A packet's header.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// Address of the sender.
    pub src_cid: u64,
    /// Address of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes that follow the header.
    pub len: u32,
    /// Kind of socket.
    pub kind: u16,
    /// One of `OP_*`.
    pub op: u16,
    /// Of `OP_SHUTDOWN`.
    pub flags: u32,
    /// Size of the sender's receive buffer for this stream.
    pub buf_alloc: u32,
    /// Bytes of this stream that the sender has taken out of that buffer, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads the wire format.
    pub fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Self {
        let mut rest = &bytes[..];
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    /// Writes the wire format.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The reset that answers this packet.
    pub fn reset_reply(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: OP_RST,
            ..Self::default()
        }
    }
}

/// The next `N` bytes. The callers' fields add up to the header, so there always are so many.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let mut field = [0; N];
    let (head, tail) = rest.split_at(N.min(rest.len()));
    field[..head.len()].copy_from_slice(head);
    *rest = tail;
    field
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_are_where_virtio_puts_them() {
        let bytes = std::array::from_fn(|i| u8::try_from(i).unwrap());
        let header = Header::from_bytes(&bytes);
        assert_eq!(header.src_cid, 0x0706_0504_0302_0100);
        assert_eq!(header.dst_cid, 0x0f0e_0d0c_0b0a_0908);
        assert_eq!(
            (header.src_port, header.dst_port),
            (0x1312_1110, 0x1716_1514)
        );
        assert_eq!(
            (header.len, header.kind, header.op),
            (0x1b1a_1918, 0x1d1c, 0x1f1e)
        );
        assert_eq!(
            (header.flags, header.buf_alloc, header.fwd_cnt),
            (0x2322_2120, 0x2726_2524, 0x2b2a_2928)
        );
    }

    proptest! {
        #[test]
        fn reading_what_was_written_gives_the_same(bytes in any::<[u8; 32]>(), rest in any::<[u8; 12]>()) {
            let mut wire = [0; HEADER_LEN];
            wire[..32].copy_from_slice(&bytes);
            wire[32..].copy_from_slice(&rest);
            prop_assert_eq!(Header::from_bytes(&wire).to_bytes(), wire);
        }
    }
}
