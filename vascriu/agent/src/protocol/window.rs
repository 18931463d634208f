// SPDX-License-Identifier: GPL-2.0-only
//! Credit: how much of a stream may be under way.

use super::{Frame, FrameError, Stream};

/// Bytes that a receiver is ready to hold per stream.
pub const CREDIT: u32 = 256 << 10;

/// One direction of one stream, on either side: what may still be sent, or received.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    stream: Stream,
    open: u32,
    consumed: u32,
}

impl Window {
    /// A stream at its start, with its full credit.
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            open: CREDIT,
            consumed: 0,
        }
    }

    /// Bytes that may be sent (or that the peer may send) now.
    pub fn open(&self) -> usize {
        usize::try_from(self.open).expect("64 bits")
    }

    /// Takes `len` bytes out of the window.
    ///
    /// # Errors
    /// That much was not granted.
    pub fn take(&mut self, len: usize) -> Result<(), FrameError> {
        self.open = u32::try_from(len)
            .ok()
            .and_then(|len| self.open.checked_sub(len))
            .ok_or(FrameError::NoCredit {
                stream: self.stream,
            })?;
        Ok(())
    }

    /// The peer granted `bytes` more.
    ///
    /// # Errors
    /// It granted more than was ever taken.
    pub fn grant(&mut self, bytes: u32) -> Result<(), FrameError> {
        self.open = self
            .open
            .checked_add(bytes)
            .filter(|open| *open <= CREDIT)
            .ok_or(FrameError::TooMuchCredit {
                stream: self.stream,
            })?;
        Ok(())
    }

    /// `len` received bytes were consumed. Gives the grant to send, once it is worth a frame.
    pub fn consume(&mut self, len: usize) -> Option<Frame> {
        self.consumed += u32::try_from(len).unwrap_or(u32::MAX).min(CREDIT);
        if self.consumed < CREDIT / 4 {
            return None;
        }
        let bytes = std::mem::take(&mut self.consumed);
        self.open += bytes;
        Some(Frame::Credit {
            stream: self.stream,
            bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_sender_that_obeys_never_stalls_for_good(lens in proptest::collection::vec(1..65536usize, 1..200)) {
            let mut sender = Window::new(Stream::Stdin);
            let mut receiver = Window::new(Stream::Stdin);
            for len in lens {
                prop_assert!(sender.open() > 0);
                let len = len.min(sender.open());
                prop_assert!(sender.take(len).is_ok());
                prop_assert!(receiver.take(len).is_ok());
                if let Some(Frame::Credit { bytes, .. }) = receiver.consume(len) {
                    prop_assert!(sender.grant(bytes).is_ok());
                }
                prop_assert_eq!(sender.open(), receiver.open());
            }
        }
    }

    #[test]
    fn sending_without_credit_is_refused() {
        let mut window = Window::new(Stream::Stdout);
        window.take(window.open()).expect("within credit");
        assert_eq!(
            window.take(1),
            Err(FrameError::NoCredit {
                stream: Stream::Stdout
            })
        );
    }

    #[test]
    fn granting_more_than_was_taken_is_refused() {
        let mut window = Window::new(Stream::Stderr);
        window.take(10).expect("within credit");
        assert!(window.grant(11).is_err());
        assert!(window.grant(u32::MAX).is_err());
        assert!(window.grant(10).is_ok());
    }
}
