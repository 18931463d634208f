// SPDX-License-Identifier: GPL-2.0-only
//! The serial port `ttyS0`: a 16550 whose output is gathered into lines.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

use event_manager::{EventOps, Events, MutEventSubscriber};
use vm_device::MutDevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use super::Interrupt;

/// First port.
pub const BASE: u16 = 0x3f8;
/// Number of ports.
pub const SIZE: u16 = 8;
/// Its interrupt.
pub const IRQ: u32 = 4;

/// How long an unfinished line waits for its rest.
const LINE_WAIT: Duration = Duration::from_millis(20);
/// How long a line may get.
const LINE_MAX: usize = 4096;

/// Gathers bytes into lines: the UART model writes and flushes every byte alone.
struct LineWriter {
    line: Vec<u8>,
    out: Box<dyn Write + Send>,
    timer: TimerFd,
    failed: bool,
}

impl LineWriter {
    /// Writes out what is gathered. Errors do not reach the guest: it loses output, not
    /// its console.
    fn write_out(&mut self) {
        let written = self
            .out
            .write_all(&self.line)
            .and_then(|()| self.out.flush());
        self.line.clear();
        match written {
            Err(error) if !self.failed => {
                tracing::warn!(%error, "the guest's console output cannot be written; it is lost");
                self.failed = true;
            }
            _ => {}
        }
    }
}

impl Write for LineWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let was_empty = self.line.is_empty();
        self.line.extend_from_slice(data);
        if data.contains(&b'\n') || self.line.len() >= LINE_MAX {
            self.write_out();
        } else if was_empty {
            self.timer.reset(LINE_WAIT, None)?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Line(Box<dyn Interrupt>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.trigger()
    }
}

/// Tells the event loop that the guest has room for more input.
struct RoomEvent(EventFd);

impl SerialEvents for RoomEvent {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        // Fails only when the counter is full, and then the event is pending anyway.
        let _ = self.0.write(1);
    }
}

/// The serial port: ports for the guest, a subscriber for the event loop.
pub struct SerialPort {
    uart: Serial<Line, RoomEvent, LineWriter>,
    input: Option<File>,
    room: EventFd,
}

const INPUT: u32 = 0;
const ROOM: u32 = 1;
const TIMER: u32 = 2;

impl SerialPort {
    /// A port that raises `interrupt`, writes to `output` and reads from `input`.
    ///
    /// # Errors
    /// The host has no file descriptor left.
    pub fn new(
        interrupt: Box<dyn Interrupt>,
        output: Box<dyn Write + Send>,
        input: Option<File>,
    ) -> io::Result<Self> {
        let room = EventFd::new(EFD_NONBLOCK)?;
        let out = LineWriter {
            line: Vec::new(),
            out: output,
            timer: TimerFd::new()?,
            failed: false,
        };
        let events = RoomEvent(room.try_clone()?);
        Ok(Self {
            uart: Serial::with_events(Line(interrupt), events, out),
            input,
            room,
        })
    }

    /// Moves input into the UART. Stops listening while the UART is full, for good at the
    /// end of the input.
    fn take_input(&mut self, ops: &mut EventOps) {
        let Some(input) = &mut self.input else { return };
        let listening = Events::with_data(input, INPUT, EventSet::IN);
        let mut buffer = [0; 64];
        let room = self.uart.fifo_capacity().min(buffer.len());
        if room == 0 {
            // `in_buffer_empty` brings it back.
            let _ = ops.remove(listening);
            return;
        }
        match input.read(&mut buffer[..room]) {
            Ok(0) => {
                let _ = ops.remove(listening);
                self.input = None;
            }
            Ok(n) => {
                if let Err(error) = self.uart.enqueue_raw_bytes(&buffer[..n]) {
                    tracing::debug!(?error, "serial input lost");
                }
            }
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            Err(error) => {
                tracing::warn!(%error, "the serial port's input cannot be read any more");
                let _ = ops.remove(listening);
                self.input = None;
            }
        }
    }
}

impl Drop for SerialPort {
    fn drop(&mut self) {
        self.uart.writer_mut().write_out();
    }
}

impl MutDevicePio for SerialPort {
    fn pio_read(&mut self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let register = u8::try_from(offset).unwrap_or(u8::MAX);
        for byte in data {
            *byte = self.uart.read(register);
        }
    }

    fn pio_write(&mut self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let register = u8::try_from(offset).unwrap_or(u8::MAX);
        for byte in data {
            if let Err(error) = self.uart.write(register, *byte) {
                tracing::debug!(?error, "serial port");
            }
        }
    }
}

impl MutEventSubscriber for SerialPort {
    fn init(&mut self, ops: &mut EventOps) {
        let timer = self.uart.writer().timer.as_raw_fd();
        let mut wanted = vec![
            Events::with_data(&self.room, ROOM, EventSet::IN),
            Events::with_data_raw(timer, TIMER, EventSet::IN),
        ];
        wanted.extend(
            self.input
                .as_ref()
                .map(|i| Events::with_data(i, INPUT, EventSet::IN)),
        );
        for events in wanted {
            if let Err(error) = ops.add(events) {
                // A regular file as input: it cannot be waited for.
                tracing::warn!(?error, "the serial port cannot wait for an event");
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            INPUT => self.take_input(ops),
            ROOM => {
                let _ = self.room.read();
                if let Some(input) = &self.input {
                    // Fails where it was never taken away.
                    let _ = ops.add(Events::with_data(input, INPUT, EventSet::IN));
                }
            }
            _ => {
                let writer = self.uart.writer_mut();
                let _ = writer.timer.wait();
                writer.write_out();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_manager::{EventManager, SubscriberOps};
    use std::os::fd::OwnedFd;
    use std::sync::{Arc, Mutex};

    /// Keeps every write apart.
    #[derive(Clone, Default)]
    struct Writes(Arc<Mutex<Vec<Vec<u8>>>>);

    impl Write for Writes {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            if !data.is_empty() {
                self.0.lock().unwrap().push(data.to_vec());
            }
            Ok(data.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    type Shared = Arc<Mutex<SerialPort>>;

    fn port(output: impl Write + Send + 'static, input: Option<File>) -> Shared {
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let port = SerialPort::new(Box::new(interrupt), Box::new(output), input).unwrap();
        Arc::new(Mutex::new(port))
    }

    fn send(port: &Shared, data: &[u8]) {
        for byte in data {
            port.lock()
                .unwrap()
                .pio_write(PioAddress(BASE), 0, &[*byte]);
        }
    }

    fn receive(port: &Shared) -> u8 {
        let mut data = [0];
        port.lock()
            .unwrap()
            .pio_read(PioAddress(BASE), 0, &mut data);
        data[0]
    }

    fn event_loop(port: &Shared) -> EventManager<Shared> {
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(port.clone());
        manager
    }

    #[test]
    fn a_line_is_one_write() {
        let writes = Writes::default();
        let port = port(writes.clone(), None);
        send(&port, b"one\ntwo\nrest");
        assert_eq!(*writes.0.lock().unwrap(), [b"one\n", b"two\n"]);
        drop(port);
        assert_eq!(writes.0.lock().unwrap().concat(), b"one\ntwo\nrest");
    }

    #[test]
    fn an_unfinished_line_appears_after_a_moment() {
        let writes = Writes::default();
        let port = port(writes.clone(), None);
        let mut events = event_loop(&port);
        send(&port, b"login: ");
        assert!(writes.0.lock().unwrap().is_empty());
        events.run_with_timeout(10_000).unwrap();
        assert_eq!(*writes.0.lock().unwrap(), [b"login: "]);
    }

    #[test]
    fn a_line_without_end_is_written_in_parts() {
        let writes = Writes::default();
        let port = port(writes.clone(), None);
        send(&port, &[b'x'; LINE_MAX * 2]);
        assert_eq!(writes.0.lock().unwrap().len(), 2);
    }

    #[test]
    fn output_that_cannot_be_written_does_not_stop_the_guest() {
        let port = port(Broken, None);
        send(&port, b"lost\nlost too\n");
        let mut status = [0];
        port.lock()
            .unwrap()
            .pio_read(PioAddress(BASE), 5, &mut status);
        assert_ne!(status[0] & 0x20, 0, "the transmitter takes more");
    }

    #[test]
    fn more_input_than_the_uart_holds_arrives_whole_and_in_order() {
        let (reader, mut writer) = io::pipe().unwrap();
        let port = port(io::sink(), Some(File::from(OwnedFd::from(reader))));
        let mut events = event_loop(&port);
        let sent: Vec<u8> = (0..=255).collect();
        writer.write_all(&sent).unwrap();
        drop(writer);
        let mut received = Vec::new();
        while received.len() < sent.len() {
            events.run_with_timeout(10).unwrap();
            let mut status = [0];
            loop {
                port.lock()
                    .unwrap()
                    .pio_read(PioAddress(BASE), 5, &mut status);
                if status[0] & 1 == 0 {
                    break;
                }
                received.push(receive(&port));
            }
        }
        assert_eq!(received, sent);
        // The end of the input is no busy loop: nothing is left to wait for but `room`.
        while events.run_with_timeout(10).unwrap() > 0 {}
        assert!(port.lock().unwrap().input.is_none());
    }
}
