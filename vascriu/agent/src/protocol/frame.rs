// SPDX-License-Identifier: GPL-2.0-only
//! Frames: kind, length, payload.

use std::fmt;

use thiserror::Error;

use super::hello::Hello;
use super::{Reply, Request, WindowSize};

/// Most bytes of data in one frame.
pub const MAX_DATA: usize = 64 << 10;

/// Most bytes of a request or a reply: an `execve` takes 2 MiB of arguments and environment,
/// and JSON may double them.
pub const MAX_MESSAGE: usize = 4 << 20;

const HEADER_LEN: usize = 8;

const REQUEST: u8 = 1;
const REPLY: u8 = 2;
const CREDIT: u8 = 3;
const SIGNAL: u8 = 4;
const RESIZE: u8 = 5;
const STDIN: u8 = 16;
const STDOUT: u8 = 17;
const STDERR: u8 = 18;

/// A stream of data within a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// From client to server.
    Stdin,
    /// From server to client.
    Stdout,
    /// From server to client, beside `Stdout`.
    Stderr,
}

impl Stream {
    fn kind(self) -> u8 {
        match self {
            Self::Stdin => STDIN,
            Self::Stdout => STDOUT,
            Self::Stderr => STDERR,
        }
    }

    fn from_kind(kind: u8) -> Result<Self, FrameError> {
        match kind {
            STDIN => Ok(Self::Stdin),
            STDOUT => Ok(Self::Stdout),
            STDERR => Ok(Self::Stderr),
            _ => Err(FrameError::Kind(kind)),
        }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stdin => "stdin",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        })
    }
}

/// What can come out of a stream of frames.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// What the client wants.
    Request(Request),
    /// What the server answers.
    Reply(Reply),
    /// Bytes of a stream; none: its end.
    Data {
        /// Which stream.
        stream: Stream,
        /// At most [`MAX_DATA`] bytes.
        bytes: Vec<u8>,
    },
    /// So many more bytes of a stream may be sent.
    Credit {
        /// Which stream.
        stream: Stream,
        /// How many.
        bytes: u32,
    },
    /// Send this signal to the command.
    Signal(i32),
    /// The client's terminal changed its size.
    Resize(WindowSize),
}

/// What a peer did wrong.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// No frame has this kind.
    #[error("unknown kind of frame: {0}")]
    Kind(u8),
    /// Reserved bytes are not zero.
    #[error("reserved bytes in a frame's header are not zero")]
    Reserved,
    /// The payload is too long, or not of the length that its kind has.
    #[error("a frame of kind {kind} cannot have {len} bytes")]
    Length {
        /// Kind of the frame.
        kind: u8,
        /// Its length as announced, bytes.
        len: usize,
    },
    /// A request or reply is not what this version understands.
    #[error("not a message of this protocol: {0}")]
    Message(String),
    /// Data without credit.
    #[error("more data on {stream} than was granted")]
    NoCredit {
        /// Which stream.
        stream: Stream,
    },
    /// Credit beyond the window.
    #[error("more credit for {stream} than its window holds")]
    TooMuchCredit {
        /// Which stream.
        stream: Stream,
    },
    /// A frame that has no place here.
    #[error("a {0} frame has no place here")]
    Unexpected(&'static str),
    /// The peer began a new session in the middle of this one.
    #[error("the peer began a new session")]
    Restart,
}

impl Frame {
    /// Its name, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Request(_) => "request",
            Self::Reply(_) => "reply",
            Self::Data { .. } => "data",
            Self::Credit { .. } => "credit",
            Self::Signal(_) => "signal",
            Self::Resize(_) => "resize",
        }
    }

    /// The error of getting this frame where it has no place.
    pub fn unexpected(&self) -> FrameError {
        FrameError::Unexpected(self.name())
    }

    /// Appends the frame's bytes to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Request(request) => put_json(out, REQUEST, request),
            Self::Reply(reply) => put_json(out, REPLY, reply),
            Self::Data { stream, bytes } => put(out, stream.kind(), &[bytes]),
            Self::Credit { stream, bytes } => {
                put(out, CREDIT, &[&[stream.kind()], &bytes.to_le_bytes()]);
            }
            Self::Signal(number) => put(out, SIGNAL, &[&number.to_le_bytes()]),
            Self::Resize(WindowSize { rows, cols }) => {
                put(out, RESIZE, &[&rows.to_le_bytes(), &cols.to_le_bytes()]);
            }
        }
    }
}

fn put(out: &mut Vec<u8>, kind: u8, payload: &[&[u8]]) {
    let len: usize = payload.iter().map(|part| part.len()).sum();
    let len = u32::try_from(len).expect("a frame is short");
    out.extend([kind, 0, 0, 0]);
    out.extend(len.to_le_bytes());
    for part in payload {
        out.extend(*part);
    }
}

fn put_json(out: &mut Vec<u8>, kind: u8, message: &impl serde::Serialize) {
    let json = serde_json::to_vec(message).expect("plain enums, strings and numbers");
    put(out, kind, &[&json]);
}

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Takes bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.start);
        self.start = 0;
        self.bytes.extend(bytes);
    }

    /// The next frame, if it is complete.
    ///
    /// # Errors
    /// The peer broke the protocol: what follows in the stream means nothing, until a
    /// greeting.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let rest = &self.bytes[self.start..];
        if rest.first() == Some(&Hello::FIRST_BYTE) {
            return Err(FrameError::Restart);
        }
        let Some((header, rest)) = rest.split_first_chunk::<HEADER_LEN>() else {
            return Ok(None);
        };
        let [kind, reserved @ .., l0, l1, l2, l3] = *header;
        if reserved != [0; 3] {
            return Err(FrameError::Reserved);
        }
        let len = usize::try_from(u32::from_le_bytes([l0, l1, l2, l3])).expect("64 bits");
        check_len(kind, len)?;
        let Some(payload) = rest.get(..len) else {
            return Ok(None);
        };
        let frame = decode(kind, payload)?;
        self.start += HEADER_LEN + len;
        Ok(Some(frame))
    }

    /// The next greeting, if it is complete; whatever is before it is thrown away.
    pub fn next_hello(&mut self) -> Option<Hello> {
        let (hello, used) = Hello::find(&self.bytes[self.start..]);
        self.start += used;
        hello
    }
}

fn check_len(kind: u8, len: usize) -> Result<(), FrameError> {
    let right = match kind {
        REQUEST | REPLY => len <= MAX_MESSAGE,
        STDIN | STDOUT | STDERR => len <= MAX_DATA,
        CREDIT => len == 5,
        SIGNAL | RESIZE => len == 4,
        _ => return Err(FrameError::Kind(kind)),
    };
    if right {
        Ok(())
    } else {
        Err(FrameError::Length { kind, len })
    }
}

fn decode(kind: u8, payload: &[u8]) -> Result<Frame, FrameError> {
    let json = |error: serde_json::Error| FrameError::Message(error.to_string());
    let wrong_len = || FrameError::Length {
        kind,
        len: payload.len(),
    };
    match kind {
        REQUEST => serde_json::from_slice(payload)
            .map(Frame::Request)
            .map_err(json),
        REPLY => serde_json::from_slice(payload)
            .map(Frame::Reply)
            .map_err(json),
        CREDIT => {
            let [stream, b0, b1, b2, b3] = *payload.as_array().ok_or_else(wrong_len)?;
            Ok(Frame::Credit {
                stream: Stream::from_kind(stream)?,
                bytes: u32::from_le_bytes([b0, b1, b2, b3]),
            })
        }
        SIGNAL => {
            let number = payload.as_array().ok_or_else(wrong_len)?;
            Ok(Frame::Signal(i32::from_le_bytes(*number)))
        }
        RESIZE => {
            let [r0, r1, c0, c1] = *payload.as_array().ok_or_else(wrong_len)?;
            Ok(Frame::Resize(WindowSize {
                rows: u16::from_le_bytes([r0, r1]),
                cols: u16::from_le_bytes([c0, c1]),
            }))
        }
        _ => Ok(Frame::Data {
            stream: Stream::from_kind(kind)?,
            bytes: payload.to_vec(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{CommandEnd, Exec};
    use super::*;

    fn frames() -> impl Strategy<Value = Frame> {
        let stream = prop_oneof![
            Just(Stream::Stdin),
            Just(Stream::Stdout),
            Just(Stream::Stderr)
        ];
        prop_oneof![
            proptest::collection::vec(any::<String>(), 1..5)
                .prop_map(|argv| Frame::Request(Request::Exec(Exec::new(argv)))),
            any::<u8>().prop_map(|code| Frame::Reply(Reply::Ended(CommandEnd::Code(code)))),
            (
                stream.clone(),
                proptest::collection::vec(any::<u8>(), 0..5000)
            )
                .prop_map(|(stream, bytes)| Frame::Data { stream, bytes }),
            (stream, any::<u32>()).prop_map(|(stream, bytes)| Frame::Credit { stream, bytes }),
            any::<i32>().prop_map(Frame::Signal),
            any::<(u16, u16)>().prop_map(|(rows, cols)| Frame::Resize(WindowSize { rows, cols })),
        ]
    }

    proptest! {
        #[test]
        fn frames_survive_any_cutting_of_the_stream(
            sent in proptest::collection::vec(frames(), 0..10),
            cut in 1..4000usize,
        ) {
            let mut bytes = Vec::new();
            for frame in &sent {
                frame.encode(&mut bytes);
            }
            let mut decoder = Decoder::default();
            let mut got = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.push(piece);
                while let Some(frame) = decoder.next_frame().expect("own frames are right") {
                    got.push(frame);
                }
            }
            prop_assert_eq!(got, sent);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic_or_loop(bytes: Vec<u8>, cut in 1..64usize) {
            let mut decoder = Decoder::default();
            let mut frames = 0;
            'pieces: for piece in bytes.chunks(cut) {
                decoder.push(piece);
                loop {
                    match decoder.next_frame() {
                        Ok(Some(_)) => frames += 1,
                        Ok(None) => break,
                        Err(_) => break 'pieces,
                    }
                }
            }
            prop_assert!(frames <= bytes.len() / HEADER_LEN);
        }
    }

    fn decode_bytes(bytes: &[u8]) -> Result<Option<Frame>, FrameError> {
        let mut decoder = Decoder::default();
        decoder.push(bytes);
        decoder.next_frame()
    }

    #[test]
    fn a_huge_length_is_refused_before_its_payload_is_awaited() {
        let mut bytes = vec![STDOUT, 0, 0, 0];
        bytes.extend(u32::MAX.to_le_bytes());
        assert_eq!(
            decode_bytes(&bytes),
            Err(FrameError::Length {
                kind: STDOUT,
                len: 0xffff_ffff
            })
        );
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        assert_eq!(
            decode_bytes(&[99, 0, 0, 0, 0, 0, 0, 0]),
            Err(FrameError::Kind(99))
        );
    }

    #[test]
    fn reserved_bytes_are_refused() {
        assert_eq!(
            decode_bytes(&[STDIN, 1, 0, 0, 0, 0, 0, 0]),
            Err(FrameError::Reserved)
        );
    }

    #[test]
    fn credit_for_no_stream_is_refused() {
        assert_eq!(
            decode_bytes(&[CREDIT, 0, 0, 0, 5, 0, 0, 0, 77, 1, 0, 0, 0]),
            Err(FrameError::Kind(77))
        );
    }

    #[test]
    fn json_that_is_no_message_is_refused() {
        let mut bytes = Vec::new();
        put(&mut bytes, REQUEST, &[b"{\"Exec\":7}"]);
        assert!(matches!(decode_bytes(&bytes), Err(FrameError::Message(_))));
    }

    #[test]
    fn a_greeting_between_frames_is_a_restart() {
        let mut decoder = Decoder::default();
        decoder.push(&Hello::new([3; 16]).encode());
        assert_eq!(decoder.next_frame(), Err(FrameError::Restart));
        assert_eq!(decoder.next_hello(), Some(Hello::new([3; 16])));
    }
}
