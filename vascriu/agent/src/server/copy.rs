// SPDX-License-Identifier: GPL-2.0-only
//! Files in and out of this machine.

use std::io;
use std::path::Path;

use super::{Failure, ServeError};
use crate::archive::{self, ArchiveError, Trust};
use crate::protocol::{
    DataReader, DataWriter, FailureKind, Frame, FrameError, Link, OsText, Reply, Stopped, Stream,
};

/// Serves a `CopyIn`. The host owns this machine: its archive may set every mode bit.
pub(super) fn serve_in(link: &mut Link, dest: &OsText, name: &OsText) -> Result<(), ServeError> {
    link.queue(&Frame::Reply(Reply::Ready { bytes: 0 }));
    let mut data = DataReader::new(link, Stream::Stdin);
    let unpacked = archive::unpack(
        &mut data,
        Path::new(dest.as_os_str()),
        name.as_os_str(),
        Trust::Full,
    );
    if let Some(stopped) = data.stopped.take() {
        return Err(stopped.into());
    }
    unpacked?;
    data.finish()?;
    link.queue(&Frame::Reply(Reply::Done));
    Ok(link.flush()?)
}

/// Serves a `CopyOut`.
pub(super) fn serve_out(link: &mut Link, path: &OsText) -> Result<(), ServeError> {
    let path = Path::new(path.as_os_str());
    let bytes = archive::measure(path)?;
    link.queue(&Frame::Reply(Reply::Ready { bytes }));
    let mut data = DataWriter::new(link, Stream::Stdout);
    let packed = archive::pack(path, io::BufWriter::with_capacity(1 << 16, &mut data));
    if let Some(stopped) = data.stopped.take() {
        return Err(stopped.into());
    }
    packed?;
    data.finish(false)?;
    link.queue(&Frame::Reply(Reply::Done));
    Ok(link.flush()?)
}

impl From<Stopped> for ServeError {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::Link(error) => Self::Link(error),
            // Only servers fail requests.
            Stopped::Failed { .. } => FrameError::Unexpected("reply").into(),
        }
    }
}

impl From<ArchiveError> for ServeError {
    fn from(error: ArchiveError) -> Self {
        Failure::new(FailureKind::Os, crate::chain(&error)).into()
    }
}
