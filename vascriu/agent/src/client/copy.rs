// SPDX-License-Identifier: GPL-2.0-only
//! Files into and out of the guest.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::{ClientError, Session};
use crate::archive::{self, Trust};
use crate::protocol::{DataReader, DataWriter, Frame, OsText, Reply, Request, Stream};

/// Told now and then: bytes moved, bytes in all.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

impl Session {
    /// Copies the file or folder `source` to `dest` in the guest; into it, if that is a
    /// folder.
    ///
    /// # Errors
    /// `source` cannot be read, the guest cannot write `dest`, or the session broke. Then
    /// `dest` is as it was.
    pub fn copy_in(
        mut self,
        source: &Path,
        dest: &OsStr,
        progress: Progress<'_>,
    ) -> Result<(), ClientError> {
        let total = archive::measure(source)?;
        let request = Request::CopyIn {
            dest: OsText::from(dest),
            name: OsText::from(base_name(source)?),
        };
        match self.ask(request)? {
            Reply::Ready { .. } => {}
            other => return Err(Frame::Reply(other).unexpected().into()),
        }
        let mut data = DataWriter::new(&mut self.link, Stream::Stdin);
        let counted = Counted {
            inner: &mut data,
            done: 0,
            total,
            progress,
        };
        let packed = archive::pack(source, io::BufWriter::with_capacity(1 << 16, counted));
        if let Some(stopped) = data.stopped.take() {
            return Err(stopped.into());
        }
        packed?;
        Ok(data.finish(true)?)
    }

    /// Copies the guest's file or folder `source` to `dest`; into it, if that is a folder.
    /// Gives the path that was made.
    ///
    /// # Errors
    /// The guest cannot read `source`, `dest` cannot be written, or the session broke. Then
    /// `dest` is as it was.
    pub fn copy_out(
        mut self,
        source: &OsStr,
        dest: &Path,
        progress: Progress<'_>,
    ) -> Result<PathBuf, ClientError> {
        let name = Path::new(source).file_name().unwrap_or_default().to_owned();
        let request = Request::CopyOut {
            path: OsText::from(source),
        };
        let total = match self.ask(request)? {
            Reply::Ready { bytes } => bytes,
            other => return Err(Frame::Reply(other).unexpected().into()),
        };
        let mut data = DataReader::new(&mut self.link, Stream::Stdout);
        let counted = Counted {
            inner: &mut data,
            done: 0,
            total,
            progress,
        };
        let unpacked = archive::unpack(counted, dest, &name, Trust::PermissionsOnly);
        if let Some(stopped) = data.stopped.take() {
            return Err(stopped.into());
        }
        let made = unpacked?;
        data.finish()?;
        match self.link.recv_reply(None)? {
            Reply::Done => Ok(made),
            other => Err(Frame::Reply(other).unexpected().into()),
        }
    }
}

/// The name that `source` has where it lies, also for `.` or `x/..`.
fn base_name(source: &Path) -> Result<PathBuf, ClientError> {
    let read = |error| archive::ArchiveError::Read {
        path: source.to_owned(),
        source: error,
    };
    if let Some(name) = source.file_name() {
        return Ok(name.into());
    }
    let whole = source.canonicalize().map_err(read)?;
    Ok(whole.file_name().unwrap_or_default().into())
}

struct Counted<'a, T> {
    inner: T,
    done: u64,
    total: u64,
    progress: Progress<'a>,
}

impl<T> Counted<'_, T> {
    fn count(&mut self, bytes: usize) {
        self.done += u64::try_from(bytes).unwrap_or(u64::MAX);
        (self.progress)(self.done.min(self.total), self.total);
    }
}

impl<T: Read> Read for Counted<'_, T> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        self.count(n);
        Ok(n)
    }
}

impl<T: Write> Write for Counted<'_, T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.count(n);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
