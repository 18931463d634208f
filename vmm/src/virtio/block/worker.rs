// SPDX-License-Identifier: GPL-2.0-only
//! The thread of a disk. Nobody else waits for the image's file, which may hang: on a network, on
//! a broken device, on a file system that is frozen.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::disk::Disk;
use super::metrics::BlockMetrics;
use super::request::execute;
use crate::end::EndSignal;
use crate::sandbox::{Role, Sandbox};
use crate::virtio::device::{ActivateArgs, DeviceState};
use crate::virtio::queue::{End, RingError, Verdict, process};

/// Bytes of the disk worked on, but for the last request, before the driver is told what is done.
const MAX_BATCH: u64 = 32 << 20;
/// What a request under way gets to be done at the end of a VM.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often whoever waits for a request looks whether it need not any more.
const LOOK: Duration = Duration::from_millis(20);

/// What a device shares with its thread.
#[derive(Debug)]
pub(super) struct Shared {
    /// Read by the thread, which waits in it.
    pub kick: EventFd,
    pub disk: Disk,
    pub metrics: Arc<BlockMetrics>,
    state: Mutex<State>,
    /// The thread has left off working.
    idle: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The thread has it while it works.
    device: DeviceState,
    works: bool,
    /// No more requests: for a reset, or for good.
    stop: bool,
    /// The thread is to end.
    over: bool,
}

impl Shared {
    pub fn new(kick: EventFd, disk: Disk) -> Self {
        Self {
            kick,
            disk,
            metrics: Arc::default(),
            state: Mutex::default(),
            idle: Condvar::new(),
        }
    }

    /// The driver has the device running. It may have filled the queue already.
    pub fn start(&self, args: ActivateArgs) -> io::Result<()> {
        self.lock().device = DeviceState::Activated(args);
        self.kick.write(1)
    }

    /// Stops at the end of the request under way, and waits for that: the host still reads or
    /// writes the buffers of it, which the driver may use for something else afterwards. Once
    /// `is_over`, no driver will, and nobody waits.
    pub fn stop(&self, is_over: impl Fn() -> bool) {
        self.lock().stop = true;
        let mut state = self.wait_until_idle(is_over);
        if !state.works {
            state.device = DeviceState::Inactive;
            state.stop = false;
        }
    }

    /// Works on the queue once, if the driver has the device running.
    pub fn process_queue(&self) {
        let Some(mut active) = self.begin() else {
            return;
        };
        let result = catch_unwind(AssertUnwindSafe(|| self.work(&mut active)));
        let is_good = matches!(result, Ok(Ok(())));
        if let Ok(Err(error)) = &result {
            let error = error as &dyn std::error::Error;
            tracing::warn!(error, "block device stopped");
        }
        let mut device = DeviceState::Activated(active);
        if !is_good {
            // A panic costs the driver its device, not the device its thread.
            device.fail();
        }
        self.leave_off(device);
    }

    fn begin(&self) -> Option<ActivateArgs> {
        let mut state = self.lock();
        if state.stop {
            return None;
        }
        let DeviceState::Activated(active) = std::mem::take(&mut state.device) else {
            return None;
        };
        state.works = true;
        Some(active)
    }

    fn leave_off(&self, device: DeviceState) {
        let mut state = self.lock();
        state.works = false;
        if !state.stop {
            state.device = device;
        }
        self.idle.notify_all();
    }

    fn work(&self, active: &mut ActivateArgs) -> Result<(), RingError> {
        let mem = Arc::clone(&active.mem);
        let before = self.metrics.bytes();
        let progress = process(&mut active.queues[0], &mem, |chain| {
            let done = self.metrics.bytes().wrapping_sub(before);
            if done >= MAX_BATCH || self.lock().stop {
                return Verdict::Stop;
            }
            Verdict::Used(execute(chain, &self.disk, &self.metrics))
        })?;
        if progress.notify {
            active.interrupt.queue_used();
        }
        if progress.end != End::Empty {
            // Cannot fail: the counter is far from its limit.
            let _ = self.kick.write(1);
        }
        Ok(())
    }

    fn wait_until_idle(&self, give_up: impl Fn() -> bool) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        while state.works && !give_up() {
            let waited = self.idle.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole at any time: a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread, as long as there is the device: so it is started before the guest, and not by a
/// vCPU's thread, in which drivers start devices.
#[derive(Debug)]
pub(super) struct DiskThread {
    shared: Arc<Shared>,
    end: EndSignal,
    thread: Option<JoinHandle<()>>,
}

impl DiskThread {
    /// Starts the thread of disk `index`, and has it enter its sandbox.
    pub fn start(
        index: usize,
        shared: &Arc<Shared>,
        end: &EndSignal,
        sandbox: &Sandbox,
    ) -> io::Result<Self> {
        let shared = Arc::clone(shared);
        let of_thread = Arc::clone(&shared);
        let thread = sandbox.spawn(Role::Disk, format!("disk{index}"), move || run(&of_thread))?;
        Ok(Self {
            shared,
            end: end.clone(),
            thread: Some(thread),
        })
    }

    /// Whether the VM has ended: no driver runs any more, or soon none will.
    pub fn is_over(&self) -> bool {
        self.end.is_ended()
    }
}

impl Drop for DiskThread {
    /// Waits a moment for the request under way. A thread that hangs is left behind with what it
    /// works on: the image, and guest memory, which then stays mapped. All of it goes with the
    /// process.
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        (state.stop, state.over) = (true, true);
        drop(state);
        // Cannot fail: the counter is far from its limit.
        let _ = self.shared.kick.write(1);
        let deadline = Instant::now() + PATIENCE;
        let state = self.shared.wait_until_idle(|| Instant::now() >= deadline);
        let hangs = state.works;
        drop(state);
        if hangs {
            tracing::warn!("a disk image hangs at the end of its VM: nobody waits for it");
        } else if let Some(thread) = self.thread.take() {
            // Panics cost it the device, and were reported then.
            let _ = thread.join();
        }
    }
}

fn run(shared: &Shared) {
    loop {
        match shared.kick.read() {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                return tracing::error!(%error, "cannot wait for a disk's queue");
            }
            _ if shared.lock().over => return,
            _ => shared.process_queue(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::thread;

    use nix::unistd::Pid;

    use super::*;
    use crate::test_frozen::{Frozen, in_ext4};
    use crate::virtio::block::Block;
    use crate::virtio::device::VirtioDevice;
    use crate::virtio::test_utils::{Driver, Piece};

    /// A device with its thread.
    fn block(image: &Path) -> Block {
        File::create(image)
            .and_then(|file| file.write_all_at(&[7; 4096], 0))
            .unwrap();
        let mut block = Block::new(Disk::open(image, false).unwrap()).unwrap();
        let end = EndSignal::new().unwrap();
        block.start_thread(0, &end, &Sandbox::default()).unwrap();
        block
    }

    fn in_memory() -> Block {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        block(&dir.path().join("disk"))
    }

    /// A request for the first sector: 0 reads it, 1 writes it.
    fn request(kind: u32) -> [Piece; 3] {
        let mut header = [0; 16];
        header[0..4].copy_from_slice(&kind.to_le_bytes());
        let data = match kind {
            0 => Piece::write(512),
            _ => Piece::read(&[9; 512]),
        };
        [Piece::read(&header), data, Piece::write(1)]
    }

    fn kick(block: &Block) {
        block.queue_events()[0].write(1).unwrap();
    }

    fn wait_for_used(driver: &mut Driver, count: usize) {
        let mut used = 0;
        while used < count {
            used += driver.used(0).len();
            thread::yield_now();
        }
    }

    fn wait_until_hung(frozen: &Frozen) {
        while !frozen.hangs(Pid::this()) {
            thread::yield_now();
        }
    }

    #[test]
    fn requests_are_done_whenever_the_driver_kicks() {
        let mut block = in_memory();
        // Before the driver has it running: nothing happens.
        kick(&block);
        let mut driver = Driver::start(&mut block);
        for count in 1..4 {
            let sent = driver.send(0, &request(0));
            kick(&block);
            wait_for_used(&mut driver, 1);
            assert_eq!(driver.read(&sent, 1), [7; 512]);
            assert_eq!(block.metrics().reads.get(), count);
        }
    }

    #[test]
    fn what_the_driver_sent_before_it_had_the_device_running_is_done() {
        let mut block = in_memory();
        let mut driver = Driver::start(&mut block);
        block.reset();
        driver.send(0, &request(0));
        let args = ActivateArgs {
            mem: Arc::new(driver.mem.clone()),
            queues: vec![driver.device_queue(0)],
            interrupt: Arc::clone(&driver.interrupt),
            features: block.features(),
        };
        block.activate(args).unwrap();
        wait_for_used(&mut driver, 1);
    }

    #[test]
    fn a_reset_waits_for_the_request_under_way_and_for_no_other() {
        in_ext4(|mounted| {
            let mut block = block(&mounted.join("disk"));
            let mut driver = Driver::start(&mut block);
            let frozen = Frozen::new(mounted);
            for _ in 0..3 {
                driver.send(0, &request(1));
            }
            kick(&block);
            wait_until_hung(&frozen);
            thread::scope(|scope| {
                let frozen = frozen;
                let reset = scope.spawn(|| block.reset());
                thread::sleep(Duration::from_millis(200));
                assert!(!reset.is_finished());
                assert_eq!(driver.used(0), []);
                drop(frozen);
                reset.join().unwrap();
            });
            let done = driver.used(0).len();
            assert!(done <= 1, "{done}");
            // Nothing comes after it.
            kick(&block);
            thread::sleep(Duration::from_millis(50));
            assert_eq!(driver.used(0), []);
            assert_eq!(block.metrics().writes.get(), done as u64);
            // It starts again.
            let mut driver = Driver::start(&mut block);
            driver.send(0, &request(1));
            kick(&block);
            wait_for_used(&mut driver, 1);
        });
    }

    #[test]
    fn resets_in_the_middle_of_requests_lose_nobodys_memory() {
        let mut block = in_memory();
        for round in 0..200 {
            let mut driver = Driver::start(&mut block);
            for _ in 0..round % 60 {
                driver.send(0, &request(round % 2));
            }
            kick(&block);
            if round % 3 == 0 {
                thread::yield_now();
            }
            block.reset();
            driver.used(0);
            thread::yield_now();
            assert_eq!(driver.used(0), []);
        }
    }

    #[test]
    fn the_thread_ends_with_the_device() {
        let block = in_memory();
        let shared = Arc::downgrade(block.shared());
        drop(block);
        assert!(shared.upgrade().is_none());
    }

    #[test]
    fn a_thread_that_hangs_is_left_behind() {
        in_ext4(|mounted| {
            let mut block = block(&mounted.join("disk"));
            let mut driver = Driver::start(&mut block);
            let shared = Arc::downgrade(block.shared());
            let frozen = Frozen::new(mounted);
            driver.send(0, &request(1));
            kick(&block);
            wait_until_hung(&frozen);
            drop(block);
            assert!(shared.upgrade().is_some());
            drop(frozen);
            // It ends by itself when it can.
            while shared.upgrade().is_some() {
                thread::yield_now();
            }
        });
    }
}
