// SPDX-License-Identifier: GPL-2.0-only
//! State of the console, its queues and its configuration space.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::metrics::ConsoleMetrics;
use super::stream::{WindowSize, non_blocking, window_size};
use crate::config::ConsoleConfig;
use crate::virtio::chain::{Buffers, Chain, ChainError};
use crate::virtio::device::{
    ActivateArgs, ActivateError, COMMON_FEATURES, DeviceState, VirtioDevice, read_config_from,
    start,
};
use crate::virtio::queue::{BUDGET, End, Progress, RingError, Verdict, process};

/// How many queues there are.
pub(super) const QUEUE_COUNT: u32 = 2;
const QUEUE_SIZES: [u16; QUEUE_COUNT as usize] = [64; QUEUE_COUNT as usize];
/// Input for the guest.
pub(super) const RX: usize = 0;
/// Output of the guest.
pub(super) const TX: usize = 1;
/// VIRTIO_CONSOLE_F_SIZE: the configuration space tells the terminal's size.
const F_SIZE: u64 = 1;
/// The most bytes moved for one chain at a time: what a pipe takes at once.
const MAX_PIECE: usize = 64 << 10;

/// The device.
#[derive(Debug)]
pub struct Console {
    pub(super) events: [EventFd; QUEUE_COUNT as usize],
    pub(super) input: Option<File>,
    pub(super) output: File,
    /// Written when the terminal's size may have changed.
    pub(super) resized: Option<EventFd>,
    state: DeviceState,
    /// The input may have bytes. (It is watched edge-triggered.)
    readable: bool,
    /// Bytes of the first output chain that the host's file has taken.
    written: usize,
    size: WindowSize,
    generation: u32,
    metrics: Arc<ConsoleMetrics>,
}

impl Console {
    /// A console between the guest and the files of `config`.
    ///
    /// # Errors
    /// The files cannot be used without blocking, or there are too many open files.
    pub fn new(config: ConsoleConfig) -> io::Result<Self> {
        let mut console = Self {
            events: [EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?],
            readable: config.input.is_some(),
            input: config.input.map(non_blocking).transpose()?,
            output: non_blocking(config.output)?,
            resized: config.resized,
            state: DeviceState::Inactive,
            written: 0,
            size: WindowSize::default(),
            generation: 0,
            metrics: Arc::default(),
        };
        console.update_size();
        Ok(console)
    }

    /// Its counters.
    pub fn metrics(&self) -> Arc<ConsoleMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Tells the guest the terminal's size, if it changed.
    pub(super) fn update_size(&mut self) {
        let size = window_size(&self.output)
            .or_else(|| self.input.as_ref().and_then(window_size))
            .unwrap_or_default();
        if size == self.size {
            return;
        }
        self.size = size;
        self.generation = self.generation.wrapping_add(1);
        self.tell_size();
    }

    fn tell_size(&mut self) {
        if let Some(active) = self.state.activated()
            && active.features & F_SIZE != 0
            && self.size != WindowSize::default()
        {
            active.interrupt.config_changed();
        }
    }

    /// The input has something new.
    pub(super) fn on_input(&mut self) {
        self.readable = true;
        self.process_rx();
    }

    /// Fills the guest's buffers for as long as there is input.
    pub(super) fn process_rx(&mut self) {
        if !self.readable {
            return;
        }
        let Some(input) = &self.input else {
            return;
        };
        let (readable, metrics) = (&mut self.readable, &self.metrics);
        let result = run(&mut self.state, RX, |chain| match chain {
            Ok(chain) if chain.readable.is_empty() && !chain.writable.is_empty() => {
                let (room, _) = chain.writable.split_at(MAX_PIECE);
                let len = read(&room, input.as_fd(), readable);
                metrics.input_bytes.add(len as u64);
                if len == 0 {
                    Verdict::Stop
                } else {
                    // At most MAX_PIECE.
                    Verdict::Used(u32::try_from(len).unwrap_or(0))
                }
            }
            Ok(_) | Err(_) => {
                metrics.bad_chains.inc();
                Verdict::Used(0)
            }
        });
        self.finish(result, RX);
    }

    /// Writes the guest's output for as long as the host takes it.
    pub(super) fn process_tx(&mut self) {
        let (output, written, metrics) = (&self.output, &mut self.written, &self.metrics);
        let mut left = BUDGET;
        let result = run(&mut self.state, TX, |chain| match chain {
            Ok(chain) if chain.writable.is_empty() => {
                let verdict = write(chain.readable, output, written, &mut left, metrics);
                if verdict != Verdict::Stop {
                    *written = 0;
                }
                verdict
            }
            Ok(_) | Err(_) => {
                metrics.bad_chains.inc();
                *written = 0;
                Verdict::Used(0)
            }
        });
        if left == 0 {
            // More of the same chain, after the others' turn.
            self.kick(TX);
        }
        self.finish(result, TX);
    }

    fn finish(&mut self, result: Result<Option<Progress>, RingError>, queue: usize) {
        match result {
            Ok(Some(progress)) if progress.end == End::Budget => self.kick(queue),
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "console stopped");
                self.state.fail();
            }
        }
    }

    fn kick(&self, queue: usize) {
        // Cannot fail: the counter is far from its limit.
        let _ = self.events[queue].write(1);
    }
}

/// Processes a queue, if the device is running, and interrupts if the driver wants it.
fn run(
    state: &mut DeviceState,
    queue: usize,
    handle: impl for<'m> FnMut(Result<Chain<'m>, ChainError>) -> Verdict,
) -> Result<Option<Progress>, RingError> {
    let Some(active) = state.activated() else {
        return Ok(None);
    };
    let mem = Arc::clone(&active.mem);
    let progress = process(&mut active.queues[queue], &mem, handle)?;
    if progress.notify {
        active.interrupt.queue_used();
    }
    Ok(Some(progress))
}

/// Reads what there is; nothing more is readable if that is nothing.
fn read(room: &Buffers<'_>, input: BorrowedFd<'_>, readable: &mut bool) -> usize {
    loop {
        match room.read_from(input) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(len @ 1..) => return len,
            // The end, nothing for now, or a terminal that is gone.
            Ok(0) | Err(_) => {
                *readable = false;
                return 0;
            }
        }
    }
}

/// Writes a chain from where `written` says on, in pieces, as many as `left` says at most.
fn write(
    data: Buffers<'_>,
    output: &File,
    written: &mut usize,
    left: &mut usize,
    metrics: &ConsoleMetrics,
) -> Verdict {
    let (_, mut rest) = data.split_at(*written);
    while !rest.is_empty() {
        if *left == 0 {
            return Verdict::Stop;
        }
        *left -= 1;
        let (piece, tail) = rest.clone().split_at(MAX_PIECE);
        match piece.write_to(output.as_fd()) {
            Ok(len) => {
                metrics.output_bytes.add(len as u64);
                *written += len;
                rest = rest.split_at(len).1;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Verdict::Stop,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => {
                // Nobody reads any more: the guest must not be stopped by that.
                metrics.lost_bytes.add(piece.len() as u64);
                *written += piece.len();
                rest = tail;
            }
        }
    }
    Verdict::Used(0)
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn features(&self) -> u64 {
        COMMON_FEATURES | F_SIZE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn queue_events(&self) -> &[EventFd] {
        &self.events
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // struct virtio_console_config: cols, rows, max_nr_ports, emerg_wr.
        let mut config = [0; 12];
        config[0..2].copy_from_slice(&self.size.columns.to_le_bytes());
        config[2..4].copy_from_slice(&self.size.rows.to_le_bytes());
        config[4..8].copy_from_slice(&1u32.to_le_bytes());
        read_config_from(&config, offset, data);
    }

    fn config_generation(&self) -> u32 {
        self.generation
    }

    fn activate(&mut self, args: ActivateArgs) -> Result<(), ActivateError> {
        self.written = 0;
        start(&mut self.state, &self.events, args)?;
        // Linux reads the size only when it hears of a change.
        self.tell_size();
        Ok(())
    }

    fn reset(&mut self) {
        self.state = DeviceState::Inactive;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::virtio::test_utils::{Driver, Piece, hostile_queue_tests};

    struct Rig {
        device: Console,
        driver: Driver,
        /// What the console reads.
        input: io::PipeWriter,
        /// What the console writes.
        output: io::PipeReader,
    }

    fn rig() -> Rig {
        let (from, input) = io::pipe().unwrap();
        let (output, to) = io::pipe().unwrap();
        let mut device = Console::new(ConsoleConfig {
            input: Some(from.into()),
            output: to.into(),
            resized: None,
        })
        .unwrap();
        let driver = Driver::start(&mut device);
        Rig {
            device,
            driver,
            input,
            output,
        }
    }

    #[test]
    fn what_is_typed_reaches_the_guest() {
        let mut rig = rig();
        let sent = rig.driver.send(RX, &[Piece::write(64)]);
        rig.device.process_rx();
        assert_eq!(rig.driver.used(RX), []);
        rig.input.write_all(b"ls\n").unwrap();
        rig.device.on_input();
        assert_eq!(rig.driver.used(RX), [(sent.head, 3)]);
        assert_eq!(&rig.driver.read(&sent, 0)[..3], b"ls\n");
        assert_eq!(rig.driver.interrupts(), 1);
    }

    #[test]
    fn input_waits_for_the_guests_buffers() {
        let mut rig = rig();
        rig.input.write_all(b"abcdef").unwrap();
        rig.device.on_input();
        for expected in [b"abcd", b"ef\0\0"] {
            let sent = rig.driver.send(RX, &[Piece::write(4)]);
            rig.device.process_rx();
            assert_eq!(rig.driver.used(RX).len(), 1);
            assert_eq!(rig.driver.read(&sent, 0), expected);
        }
    }

    #[test]
    fn output_of_several_chains_comes_in_order_with_one_interrupt() {
        let mut rig = rig();
        rig.driver
            .send(TX, &[Piece::read(b"hello, "), Piece::read(b"wor")]);
        rig.driver.send(TX, &[Piece::read(b"ld")]);
        rig.device.process_tx();
        assert_eq!(rig.driver.used(TX).len(), 2);
        assert_eq!(rig.driver.interrupts(), 1);
        let mut text = [0; 12];
        rig.output.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"hello, world");
    }

    #[test]
    fn output_that_the_host_does_not_take_waits_in_the_queue_and_is_not_doubled() {
        let mut rig = rig();
        let data: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
        for part in data.chunks(100_000) {
            rig.driver.send(TX, &[Piece::read(part)]);
        }
        rig.device.process_tx();
        assert_eq!(rig.driver.used(TX), []);
        let mut got = Vec::new();
        let mut part = vec![0; 7_001];
        while got.len() < data.len() {
            let len = rig.output.read(&mut part).unwrap();
            got.extend_from_slice(&part[..len]);
            rig.device.process_tx();
        }
        assert!(got == data);
        assert_eq!(rig.driver.used(TX).len(), 3);
    }

    #[test]
    fn output_that_nobody_will_ever_read_does_not_stop_the_guest() {
        let mut rig = rig();
        drop(rig.output);
        rig.driver.send(TX, &[Piece::read(&[b'x'; 100_000])]);
        rig.device.process_tx();
        assert_eq!(rig.driver.used(TX).len(), 1);
        assert_eq!(rig.device.metrics().lost_bytes.get(), 100_000);
    }

    #[test]
    fn a_console_without_input_leaves_the_guests_buffers_alone() {
        let output = UnixStream::pair().unwrap().0;
        let mut device = Console::new(ConsoleConfig {
            input: None,
            output: output.into(),
            resized: None,
        })
        .unwrap();
        let mut driver = Driver::start(&mut device);
        driver.send(RX, &[Piece::write(64)]);
        device.process_rx();
        assert_eq!(driver.used(RX), []);
    }

    #[test]
    fn input_from_a_regular_file_is_read_to_its_end() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"script").unwrap();
        io::Seek::rewind(&mut file).unwrap();
        let mut device = Console::new(ConsoleConfig {
            input: Some(OwnedFd::from(file)),
            output: OwnedFd::from(tempfile::tempfile().unwrap()),
            resized: None,
        })
        .unwrap();
        let mut driver = Driver::start(&mut device);
        let first = driver.send(RX, &[Piece::write(64)]);
        driver.send(RX, &[Piece::write(64)]);
        device.process_rx();
        assert_eq!(driver.used(RX), [(first.head, 6)]);
    }

    fn set_size(terminal: &File, columns: u16, rows: u16) {
        let size = libc::winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: the request reads a winsize, which `size` is.
        let result = unsafe {
            libc::ioctl(
                std::os::fd::AsRawFd::as_raw_fd(terminal),
                libc::TIOCSWINSZ,
                &size,
            )
        };
        assert_eq!(result, 0);
    }

    #[test]
    fn a_resized_terminal_is_told_to_the_guest_once() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let terminal = File::from(pty.slave.try_clone().unwrap());
        set_size(&terminal, 80, 24);
        let mut device = Console::new(ConsoleConfig {
            input: None,
            output: pty.slave,
            resized: None,
        })
        .unwrap();
        let config = |device: &Console| {
            let mut config = [0xff; 14];
            device.read_config(0, &mut config);
            config
        };
        assert_eq!(
            config(&device),
            [80, 0, 24, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff]
        );
        let driver = Driver::start(&mut device);
        assert_eq!(driver.interrupts(), 1);
        let generation = device.config_generation();
        device.update_size();
        assert_eq!(driver.interrupts(), 0);
        set_size(&terminal, 300, 50);
        device.update_size();
        assert_eq!(driver.interrupts(), 1);
        assert_eq!(driver.interrupt.status(), 2);
        assert_ne!(device.config_generation(), generation);
        assert_eq!(config(&device)[..4], [44, 1, 50, 0]);
    }

    #[test]
    fn a_driver_without_the_size_feature_is_not_interrupted() {
        let pty = nix::pty::openpty(None, None).unwrap();
        let terminal = File::from(pty.slave.try_clone().unwrap());
        let mut device = Console::new(ConsoleConfig {
            input: None,
            output: pty.slave,
            resized: None,
        })
        .unwrap();
        let driver = Driver::start_with(&mut device, COMMON_FEATURES);
        set_size(&terminal, 300, 50);
        device.update_size();
        assert_eq!(driver.interrupts(), 0);
    }

    #[test]
    fn wrong_directions_are_returned_empty() {
        let mut rig = rig();
        rig.input.write_all(b"x").unwrap();
        let rx = rig.driver.send(RX, &[Piece::read(b"x")]);
        let tx = rig.driver.send(TX, &[Piece::write(8)]);
        rig.device.on_input();
        rig.device.process_tx();
        assert_eq!(rig.driver.used(RX), [(rx.head, 0)]);
        assert_eq!(rig.driver.used(TX), [(tx.head, 0)]);
        assert_eq!(rig.device.metrics().bad_chains.get(), 2);
    }

    hostile_queue_tests!(
        || {
            let (from, mut input) = io::pipe().unwrap();
            input.write_all(&[7; 60_000]).unwrap();
            let mut device = Console::new(ConsoleConfig {
                input: Some(from.into()),
                output: OwnedFd::from(File::options().write(true).open("/dev/null").unwrap()),
                resized: None,
            })
            .unwrap();
            let driver = Driver::start(&mut device);
            (device, driver)
        },
        |device: &mut Console, queue| {
            if queue == RX {
                device.on_input();
            } else {
                device.process_tx();
            }
        }
    );
}
