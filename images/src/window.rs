// SPDX-License-Identifier: GPL-2.0-only
//! A part of a file, read without moving the file's position.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

/// What is left to read of the part.
pub(crate) struct Window<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl<'a> Window<'a> {
    /// `size` bytes from `offset` on; a file that ends before is an error to read.
    pub fn new(file: &'a File, offset: u64, size: u64) -> Self {
        Self {
            file,
            offset,
            left: size,
        }
    }
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX);
        let room = room.min(buffer.len());
        let n = self.file.read_at(&mut buffer[..room], self.offset)?;
        if n == 0 && room > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}
