// SPDX-License-Identifier: GPL-2.0-only
//! The device status field (virtio 1.2, sections 2.1 and 3.1.1).

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};

/// The bits in the order in which a driver sets them.
const STEPS: [u32; 4] = [
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_DRIVER_OK,
];

/// How far the driver's initialization has come. `DEVICE_NEEDS_RESET` is not part of it: the
/// device says that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Status(u32);

/// What a write to the status register means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// Zero: reset the device.
    Reset,
    /// The driver is one step further; the bit of that step.
    Step(u32),
    /// The driver gave up; only a reset goes on from here.
    Failed,
    /// Nothing new.
    Same,
    /// Bits cleared, or set out of order: ignored.
    Invalid,
}

impl Status {
    /// The register's value.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Whether the driver has set `bit`.
    pub fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }

    /// Whether features may be negotiated now.
    pub fn negotiating(self) -> bool {
        self.0 == VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER
    }

    /// Whether queues may be set up now.
    pub fn setting_up(self) -> bool {
        self.has(VIRTIO_CONFIG_S_FEATURES_OK)
            && !self.has(VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_FAILED)
    }

    /// What writing `value` means. Nothing changes before [`Self::accept`].
    pub fn write(self, value: u32) -> Write {
        let value = value & !VIRTIO_CONFIG_S_NEEDS_RESET;
        if value == 0 {
            return Write::Reset;
        }
        if self.0 & !value != 0 {
            return Write::Invalid;
        }
        let new = value & !self.0;
        if new == 0 {
            Write::Same
        } else if new & VIRTIO_CONFIG_S_FAILED != 0 {
            Write::Failed
        } else if !self.has(VIRTIO_CONFIG_S_FAILED)
            && STEPS.iter().find(|step| !self.has(**step)) == Some(&new)
        {
            Write::Step(new)
        } else {
            Write::Invalid
        }
    }

    /// Sets a bit that [`Self::write`] allowed.
    pub fn accept(&mut self, bit: u32) {
        self.0 |= bit;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_steps_of_a_driver_are_accepted_in_order() {
        let mut status = Status::default();
        for step in STEPS {
            assert_eq!(status.write(status.bits() | step), Write::Step(step));
            status.accept(step);
        }
        assert_eq!(status.bits(), 0xf);
        assert_eq!(status.write(0xf), Write::Same);
        assert_eq!(status.write(0), Write::Reset);
    }

    #[test]
    fn a_driver_that_failed_can_only_reset() {
        let mut status = Status::default();
        status.accept(VIRTIO_CONFIG_S_ACKNOWLEDGE);
        assert_eq!(status.write(0x81), Write::Failed);
        status.accept(VIRTIO_CONFIG_S_FAILED);
        assert_eq!(status.write(0x83), Write::Invalid);
        assert_eq!(status.write(0), Write::Reset);
    }

    proptest! {
        /// Whatever is written, the status is always a beginning of the steps (and FAILED).
        #[test]
        fn no_sequence_of_writes_skips_a_step(writes in proptest::collection::vec(any::<u32>().prop_map(|v| v & 0x1ff), 0..200)) {
            let mut status = Status::default();
            for value in writes {
                match status.write(value) {
                    Write::Reset => status = Status::default(),
                    Write::Step(bit) => status.accept(bit),
                    Write::Failed => status.accept(VIRTIO_CONFIG_S_FAILED),
                    Write::Same | Write::Invalid => {}
                }
                let steps = status.bits() & !VIRTIO_CONFIG_S_FAILED;
                prop_assert!([0, 1, 3, 0xb, 0xf].contains(&steps), "{:#x}", steps);
            }
        }
    }
}
