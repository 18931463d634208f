// SPDX-License-Identifier: GPL-2.0-only
//! Power-off and reset: ACPI's sleep and reset registers, and the keyboard controller's
//! reset line, which Linux tries where there is no ACPI.

use std::convert::Infallible;

use vm_device::MutDevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};
use vm_superio::{I8042Device, Trigger};

use crate::end::{EndSignal, ExitReason};

/// First of the ACPI ports.
pub const ACPI_BASE: u16 = 0x600;
/// Number of ACPI ports.
pub const ACPI_SIZE: u16 = 3;
/// Sleep control register (ACPI 6.5, 4.8.3.7).
pub const SLEEP_CONTROL: u16 = ACPI_BASE;
/// Sleep status register; reads 0.
pub const SLEEP_STATUS: u16 = ACPI_BASE + 1;
/// Reset register.
pub const RESET: u16 = ACPI_BASE + 2;
/// What to write to [`RESET`].
pub const RESET_VALUE: u8 = 1;
/// Sleep type of S5, soft off; the `_S5_` object in the DSDT says the same.
pub const SLEEP_TYPE_S5: u8 = 5;
/// First port of the keyboard controller.
pub const I8042_BASE: u16 = 0x60;
/// Number of its ports.
pub const I8042_SIZE: u16 = 5;

const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;

/// The ACPI registers.
pub struct AcpiPower(EndSignal);

impl AcpiPower {
    /// Registers that end the VM through `end`.
    pub fn new(end: EndSignal) -> Self {
        Self(end)
    }
}

impl MutDevicePio for AcpiPower {
    fn pio_read(&mut self, _: PioAddress, _: PioAddressOffset, data: &mut [u8]) {
        data.fill(0);
    }

    fn pio_write(&mut self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let Some(value) = data.first() else { return };
        let off = SLEEP_ENABLE | SLEEP_TYPE_S5 << SLEEP_TYPE_SHIFT;
        match (base.0 + offset, *value) {
            (SLEEP_CONTROL, value) if value == off => self.0.end(Ok(ExitReason::PowerOff)),
            (RESET, RESET_VALUE) => self.0.end(Ok(ExitReason::Reset)),
            _ => {}
        }
    }
}

/// The keyboard controller, of which only the reset line exists.
pub struct Keyboard(I8042Device<ResetLine>);

struct ResetLine(EndSignal);

impl Trigger for ResetLine {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.end(Ok(ExitReason::Reset));
        Ok(())
    }
}

impl Keyboard {
    /// A controller that ends the VM through `end`.
    pub fn new(end: EndSignal) -> Self {
        Self(I8042Device::new(ResetLine(end)))
    }
}

impl MutDevicePio for Keyboard {
    fn pio_read(&mut self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let register = u8::try_from(offset).unwrap_or(u8::MAX);
        data.fill(self.0.read(register));
    }

    fn pio_write(&mut self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let (Ok(register), [value, ..]) = (u8::try_from(offset), data) {
            let Ok(()) = self.0.write(register, *value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(device: &mut dyn MutDevicePio, base: u16, port: u16, value: u8) {
        device.pio_write(PioAddress(base), port - base, &[value]);
    }

    fn cause_of(script: impl FnOnce(EndSignal)) -> Option<ExitReason> {
        let end = EndSignal::new().unwrap();
        script(end.clone());
        end.take_cause().map(|cause| cause.unwrap())
    }

    #[test]
    fn soft_off_powers_off() {
        let cause = cause_of(|end| write(&mut AcpiPower::new(end), ACPI_BASE, SLEEP_CONTROL, 0x34));
        assert_eq!(cause, Some(ExitReason::PowerOff));
    }

    #[test]
    fn both_reset_registers_reset() {
        let acpi = cause_of(|end| write(&mut AcpiPower::new(end), ACPI_BASE, RESET, RESET_VALUE));
        assert_eq!(acpi, Some(ExitReason::Reset));
        let keyboard = cause_of(|end| write(&mut Keyboard::new(end), I8042_BASE, 0x64, 0xfe));
        assert_eq!(keyboard, Some(ExitReason::Reset));
    }

    #[test]
    fn every_other_write_changes_nothing_and_reads_are_defined() {
        let cause = cause_of(|end| {
            let mut acpi = AcpiPower::new(end.clone());
            let mut keyboard = Keyboard::new(end);
            for value in 0..=255 {
                if value != 0x34 {
                    write(&mut acpi, ACPI_BASE, SLEEP_CONTROL, value);
                }
                if value != RESET_VALUE {
                    write(&mut acpi, ACPI_BASE, RESET, value);
                }
                write(&mut acpi, ACPI_BASE, SLEEP_STATUS, value);
                if value != 0xfe {
                    write(&mut keyboard, I8042_BASE, 0x64, value);
                }
                write(&mut keyboard, I8042_BASE, 0x60, value);
            }
            acpi.pio_write(PioAddress(ACPI_BASE), 0, &[]);
            let mut data = [1];
            acpi.pio_read(PioAddress(ACPI_BASE), 1, &mut data);
            assert_eq!(data, [0]);
            keyboard.pio_read(PioAddress(I8042_BASE), 4, &mut data);
        });
        assert_eq!(cause, None);
    }
}
