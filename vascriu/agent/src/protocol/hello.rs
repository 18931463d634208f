// SPDX-License-Identifier: GPL-2.0-only
//! The greeting: 32 bytes that cannot be mistaken for a frame.

/// Version of the protocol. Both sides come from one build, so it must be equal.
pub const VERSION: u16 = 1;

/// Length of a greeting on the wire, bytes.
pub const HELLO_LEN: usize = 32;

const MAGIC: [u8; 14] = *b"\xf5mvas-agent\r\n\0";

/// A greeting. The client sends one with a nonce of its own; the server answers with the
/// same nonce, so that the client can tell its answer from the remains of older sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Protocol version of the sender.
    pub version: u16,
    /// Chosen by the client, repeated by the server.
    pub nonce: [u8; 16],
}

impl Hello {
    /// First byte of a greeting; no frame begins with it.
    pub(super) const FIRST_BYTE: u8 = MAGIC[0];

    /// A greeting of this version.
    pub fn new(nonce: [u8; 16]) -> Self {
        Self {
            version: VERSION,
            nonce,
        }
    }

    /// The bytes to send.
    pub fn encode(&self) -> [u8; HELLO_LEN] {
        let mut bytes = [0; HELLO_LEN];
        bytes[..14].copy_from_slice(&MAGIC);
        bytes[14..16].copy_from_slice(&self.version.to_le_bytes());
        bytes[16..].copy_from_slice(&self.nonce);
        bytes
    }

    /// Finds the first greeting in `bytes`. Gives it, if it is complete, and how many bytes
    /// from the start are of no more use.
    pub fn find(bytes: &[u8]) -> (Option<Self>, usize) {
        let start = (0..bytes.len())
            .find(|at| {
                let rest = &bytes[*at..];
                let seen = rest.len().min(MAGIC.len());
                rest[..seen] == MAGIC[..seen]
            })
            .unwrap_or(bytes.len());
        match bytes.get(start..start + HELLO_LEN) {
            None => (None, start),
            Some(hello) => {
                let mut nonce = [0; 16];
                nonce.copy_from_slice(&hello[16..]);
                let version = u16::from_le_bytes([hello[14], hello[15]]);
                (Some(Self { version, nonce }), start + HELLO_LEN)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_greeting_is_found_behind_any_garbage(
            garbage in proptest::collection::vec(any::<u8>(), 0..200),
            nonce: [u8; 16],
        ) {
            let hello = Hello::new(nonce);
            let mut bytes = garbage;
            bytes.extend(hello.encode());
            prop_assert_eq!(Hello::find(&bytes), (Some(hello), bytes.len()));
        }

        #[test]
        fn a_greeting_in_pieces_is_never_thrown_away(
            garbage in proptest::collection::vec(any::<u8>(), 0..50),
            nonce: [u8; 16],
            cut in 0..HELLO_LEN,
        ) {
            let hello = Hello::new(nonce).encode();
            let mut bytes = garbage;
            bytes.extend(&hello[..cut]);
            let (found, used) = Hello::find(&bytes);
            prop_assert_eq!(found, None);
            bytes.drain(..used);
            bytes.extend(&hello[cut..]);
            prop_assert_eq!(Hello::find(&bytes).0, Some(Hello::new(nonce)));
        }
    }

    #[test]
    fn a_magic_cut_by_another_greeting_does_not_hide_it() {
        let hello = Hello::new([7; 16]);
        let mut bytes = hello.encode()[..9].to_vec();
        bytes.extend(hello.encode());
        assert_eq!(Hello::find(&bytes).0, Some(hello));
    }
}
