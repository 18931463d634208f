// SPDX-License-Identifier: GPL-2.0-only
//! Port and memory-mapped I/O of the guest.

use std::sync::Arc;

use serde::Serialize;
use thiserror::Error;
use vm_device::bus::{MmioAddress, MmioRange, PioAddress, PioRange};
use vm_device::device_manager::{IoManager, MmioManager, PioManager};
use vm_device::{DeviceMmio, DevicePio};

use crate::metrics::Counter;

/// Why a device could not be put on the bus: its range is taken.
#[derive(Debug, Error)]
#[error("device range {base:#x}+{size:#x} is taken or not valid")]
pub struct BusError {
    /// Start of the range.
    pub base: u64,
    /// Its size, bytes.
    pub size: u64,
    /// The bus's reason.
    source: vm_device::bus::Error,
}

/// Accesses to where no device is.
#[derive(Debug, Default, Serialize)]
pub struct BusMetrics {
    /// Bytes read from or written to ports without a device. Linux probes some at boot.
    pub absent_ports: Counter,
    /// Accesses to device memory without a device.
    pub absent_mmio: Counter,
}

/// All devices that the guest reaches by ports and device memory. Where there is none,
/// reads give all ones and writes vanish, as on a PC.
#[derive(Default)]
pub struct Bus {
    devices: IoManager,
    metrics: Arc<BusMetrics>,
}

impl Bus {
    /// An empty bus.
    pub fn new() -> Self {
        Self::default()
    }

    /// Its counters.
    pub fn metrics(&self) -> Arc<BusMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Puts a device at `size` ports from `base` on.
    ///
    /// # Errors
    /// The range is taken.
    pub fn add_port_device(
        &mut self,
        base: u16,
        size: u16,
        device: Arc<dyn DevicePio + Send + Sync>,
    ) -> Result<(), BusError> {
        PioRange::new(PioAddress(base), size)
            .and_then(|range| self.devices.register_pio(range, device))
            .map_err(|source| BusError {
                base: base.into(),
                size: size.into(),
                source,
            })
    }

    /// Puts a device at `size` bytes from `base` on.
    ///
    /// # Errors
    /// The range is taken.
    pub fn add_mmio_device(
        &mut self,
        base: u64,
        size: u64,
        device: Arc<dyn DeviceMmio + Send + Sync>,
    ) -> Result<(), BusError> {
        MmioRange::new(MmioAddress(base), size)
            .and_then(|range| self.devices.register_mmio(range, device))
            .map_err(|source| BusError { base, size, source })
    }

    /// The guest reads a port. KVM joins the accesses of a string instruction, so `data`
    /// can be longer than any register; our ports are all one byte wide, so each byte is
    /// an access of its own.
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        for byte in data {
            *byte = 0xff;
            let read = self
                .devices
                .pio_read(PioAddress(port), std::slice::from_mut(byte));
            if read.is_err() {
                self.absent_port(port);
            }
        }
    }

    /// The guest writes a port; `data` as in [`Self::port_read`].
    pub fn port_write(&self, port: u16, data: &[u8]) {
        for byte in data {
            let written = self
                .devices
                .pio_write(PioAddress(port), std::slice::from_ref(byte));
            if written.is_err() {
                self.absent_port(port);
            }
        }
    }

    /// The guest reads device memory.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if self.devices.mmio_read(MmioAddress(address), data).is_err() {
            self.absent_mmio(address);
        }
    }

    /// The guest writes device memory.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        if self.devices.mmio_write(MmioAddress(address), data).is_err() {
            self.absent_mmio(address);
        }
    }

    fn absent_port(&self, port: u16) {
        if self.metrics.absent_ports.is_first() {
            tracing::debug!("the guest uses port {port:#x}, where no device is");
        }
    }

    fn absent_mmio(&self, address: u64) {
        if self.metrics.absent_mmio.is_first() {
            tracing::warn!(
                "the guest uses address {address:#x}, where neither memory nor a device is; \
                 more of that is counted (bus.absent_mmio)"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use vm_device::bus::{MmioAddressOffset, PioAddressOffset};
    use vm_device::{MutDeviceMmio, MutDevicePio};

    /// Remembers the last byte written to each of 8 registers.
    #[derive(Default)]
    struct Registers([u8; 8], usize);

    impl MutDevicePio for Registers {
        fn pio_read(&mut self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
            data.fill(self.0[usize::from(offset)]);
        }
        fn pio_write(&mut self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
            self.0[usize::from(offset)] = data[0];
            self.1 += data.len();
        }
    }

    impl MutDeviceMmio for Registers {
        fn mmio_read(&mut self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
            data.fill(self.0[usize::try_from(offset).unwrap()]);
        }
        fn mmio_write(&mut self, _: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
            self.0[usize::try_from(offset).unwrap()] = data[0];
        }
    }

    #[test]
    fn nothing_there_reads_all_ones_ignores_writes_and_is_counted() {
        let bus = Bus::new();
        let mut data = [0; 4];
        bus.port_read(0xcf8, &mut data);
        assert_eq!(data, [0xff; 4]);
        data = [0; 4];
        bus.mmio_read(0xd000_0000, &mut data);
        assert_eq!(data, [0xff; 4]);
        bus.port_write(0x80, &[1]);
        bus.mmio_write(u64::MAX, &[1, 2, 3, 4]);
        let metrics = bus.metrics();
        assert_eq!(metrics.absent_ports.get(), 5);
        assert_eq!(metrics.absent_mmio.get(), 2);
    }

    #[test]
    fn a_string_instruction_reaches_one_port_byte_by_byte() {
        let device = Arc::new(Mutex::new(Registers::default()));
        let mut bus = Bus::new();
        bus.add_port_device(0x3f8, 8, device.clone()).unwrap();
        bus.port_write(0x3f9, b"hello");
        assert_eq!(device.lock().unwrap().0, [0, b'o', 0, 0, 0, 0, 0, 0]);
        assert_eq!(device.lock().unwrap().1, 5);
    }

    #[test]
    fn an_access_across_a_devices_end_is_no_access_to_it() {
        let mut bus = Bus::new();
        bus.add_mmio_device(0x1000, 8, Arc::new(Mutex::new(Registers::default())))
            .unwrap();
        bus.mmio_write(0x1006, &[7; 4]);
        let mut data = [0; 4];
        bus.mmio_read(0x1006, &mut data);
        assert_eq!(data, [0xff; 4]);
        bus.mmio_read(0x1006, &mut data[..2]);
        assert_eq!(data[..2], [0, 0]);
    }

    #[test]
    fn a_taken_or_overflowing_range_is_refused() {
        let device = || Arc::new(Mutex::new(Registers::default()));
        let mut bus = Bus::new();
        bus.add_port_device(0x60, 5, device()).unwrap();
        assert!(bus.add_port_device(0x64, 1, device()).is_err());
        assert!(bus.add_port_device(0xffff, 2, device()).is_err());
        let error = bus.add_mmio_device(u64::MAX, 2, device()).unwrap_err();
        assert!(
            error.to_string().contains("0xffffffffffffffff+0x2"),
            "{error}"
        );
    }
}
