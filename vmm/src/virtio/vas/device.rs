// SPDX-License-Identifier: GPL-2.0-only
//! State and configuration space of a virtio-vas device.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use mvas_abi::virtio_vas::{
    VIRTIO_VAS_DEVICE_ID, VIRTIO_VAS_MAX_ENTRIES, VIRTIO_VAS_MAX_META, VIRTIO_VAS_VERSION,
    VirtioVasConfig,
};
use mvas_host::server::Server;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use zerocopy::IntoBytes;

use super::metrics::VasMetrics;
use super::worker::{Shared, Worker};
use crate::sandbox::Sandbox;
use crate::virtio::device::{
    ActivateArgs, ActivateError, COMMON_FEATURES, VirtioDevice, read_config_from,
};

const QUEUE_SIZES: [u16; 2] = [256; 2];

/// The device.
#[derive(Debug)]
pub struct Vas {
    events: [EventFd; 2],
    server: Arc<Server>,
    /// That of each queue.
    workers: [Worker; 2],
    metrics: Arc<VasMetrics>,
}

impl Vas {
    /// A device in front of a server, with threads in `sandbox`.
    ///
    /// # Errors
    /// An event or a thread cannot be made.
    pub fn new(server: Arc<Server>, sandbox: &Sandbox) -> io::Result<Self> {
        let events = [EventFd::new(EFD_NONBLOCK)?, EventFd::new(EFD_NONBLOCK)?];
        Ok(Self {
            workers: [
                Worker::start(0, &events[0], sandbox)?,
                Worker::start(1, &events[1], sandbox)?,
            ],
            events,
            server,
            metrics: Arc::default(),
        })
    }

    /// Its counters.
    pub fn metrics(&self) -> Arc<VasMetrics> {
        Arc::clone(&self.metrics)
    }
}

impl VirtioDevice for Vas {
    fn device_type(&self) -> u32 {
        VIRTIO_VAS_DEVICE_ID
    }

    fn features(&self) -> u64 {
        COMMON_FEATURES
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn queue_events(&self) -> &[EventFd] {
        &self.events
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = VirtioVasConfig {
            version: VIRTIO_VAS_VERSION.into(),
            max_entries: VIRTIO_VAS_MAX_ENTRIES.into(),
            max_meta: VIRTIO_VAS_MAX_META.into(),
            reserved: 0.into(),
        };
        read_config_from(config.as_bytes(), offset, data);
    }

    fn activate(&mut self, args: ActivateArgs) -> Result<(), ActivateError> {
        let shared = Arc::new(Shared {
            mem: args.mem,
            interrupt: args.interrupt,
            server: Arc::clone(&self.server),
            metrics: Arc::clone(&self.metrics),
            stopping: AtomicBool::new(false),
        });
        for ((worker, queue), event) in self.workers.iter_mut().zip(args.queues).zip(&self.events) {
            // The driver may have filled it already.
            event.write(1)?;
            worker.serve(&shared, queue)?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        for worker in &mut self.workers {
            worker.stop();
        }
        self.workers[0].reset(&self.server);
    }
}

#[cfg(test)]
mod tests {
    use mvas_abi::virtio_vas::*;
    use mvas_host::server::{BLOCK, Grant, GuestMapping, ServerConfig};
    use mvas_host::store::StoreRun;
    use tempfile::TempDir;
    use vm_memory::{Bytes, GuestAddress};
    use zerocopy::FromBytes;

    use super::*;
    use crate::config::MemSize;
    use crate::memory::{GuestRam, PhysBits};
    use crate::metrics::Counter;
    use crate::test_store::test_store;
    use crate::virtio::test_utils::{Driver, Piece, Sent, hostile_queue_tests};

    const REQUESTQ: usize = VIRTIO_VAS_REQUESTQ as usize;
    const RELEASEQ: usize = VIRTIO_VAS_RELEASEQ as usize;

    /// A device, and the VM's memory, which is apart from the memory that its queues are in.
    struct Rig {
        vas: Vas,
        ram: Arc<GuestRam>,
        _run: StoreRun,
        _folder: TempDir,
    }

    impl std::ops::Deref for Rig {
        type Target = Vas;
        fn deref(&self) -> &Vas {
            &self.vas
        }
    }

    impl std::ops::DerefMut for Rig {
        fn deref_mut(&mut self) -> &mut Vas {
            &mut self.vas
        }
    }

    fn rig() -> Rig {
        let (folder, store) = test_store();
        let mem = MemSize::from_bytes(32 << 20).unwrap();
        let run = store.start_run("test", mem.bytes()).unwrap();
        let ram = Arc::new(GuestRam::new(run.ram(), mem, PhysBits(40)).unwrap());
        let server = Server::new(ServerConfig {
            run: run.clone(),
            memory: Arc::clone(&ram) as Arc<dyn GuestMapping>,
            ram: ram.blocks(),
            grant: Grant::Own,
            max_mappings: 1000,
            populate: true,
        });
        Rig {
            vas: Vas::new(Arc::new(server), &Sandbox::default()).unwrap(),
            ram,
            _run: run,
            _folder: folder,
        }
    }

    /// Starts a device and waits for its first look at its queues.
    fn start(rig: &mut Rig) -> Driver {
        let before: Vec<u64> = rig.metrics.rounds.iter().map(Counter::get).collect();
        let driver = Driver::start(&mut rig.vas);
        for (queue, before) in before.into_iter().enumerate() {
            wait(rig, queue, before);
        }
        driver
    }

    fn device() -> (Rig, Driver) {
        let mut rig = rig();
        let driver = start(&mut rig);
        (rig, driver)
    }

    /// Waits for a look at a queue after the first `before`, or for the end of its thread.
    fn wait(device: &Vas, queue: usize, before: u64) {
        let is_over = || device.workers[queue].is_finished();
        while device.metrics.rounds[queue].get() <= before && !is_over() {
            std::thread::yield_now();
        }
    }

    /// Kicks a queue that is idle, and waits until it is again.
    fn kick(device: &Vas, queue: usize) {
        let before = device.metrics.rounds[queue].get();
        device.events[queue].write(1).unwrap();
        wait(device, queue, before);
    }

    fn request(op: u32, count: u32, handle: u64, payload: &[u8]) -> Piece {
        let head = VirtioVasRequest {
            op: op.into(),
            count: count.into(),
            handle: handle.into(),
            arg: 0.into(),
            reserved: 0.into(),
        };
        Piece::Read([head.as_bytes(), payload].concat())
    }

    fn named(op: u32, name: &str) -> Piece {
        let mut field = name.as_bytes().to_vec();
        field.resize(VIRTIO_VAS_NAME_MAX, 0);
        request(op, 0, 0, &field)
    }

    fn response(driver: &Driver, sent: &Sent, piece: usize) -> (u32, u32, u64) {
        let bytes = driver.read(sent, piece);
        let response = VirtioVasResponse::read_from_prefix(&bytes).unwrap().0;
        let VirtioVasResponse {
            status,
            done,
            value,
        } = response;
        (status.get(), done.get(), value.get())
    }

    /// Sends a request of one buffer each way; returns status, done and value.
    fn call(device: &Vas, driver: &mut Driver, queue: usize, request: Piece) -> (u32, u32, u64) {
        let sent = driver.send(queue, &[request, Piece::write(16)]);
        kick(device, queue);
        assert_eq!(driver.used(queue), [(sent.head, 16)]);
        response(driver, &sent, 1)
    }

    #[test]
    fn configuration_space_tells_the_limits() {
        let device = rig();
        let mut config = [0xff; 20];
        device.read_config(0, &mut config);
        let expected: Vec<u8> = [VIRTIO_VAS_VERSION, 65536, 64, 0, u32::MAX]
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect();
        assert_eq!(config.to_vec(), expected);
        assert_eq!(device.device_type(), 0x8056);
    }

    #[test]
    fn both_queues_take_requests_and_interrupt_for_them() {
        let (device, mut driver) = device();
        let create = named(VIRTIO_VAS_OP_CREATE, "db");
        assert_eq!(
            call(&device, &mut driver, REQUESTQ, create.clone()),
            (0, 0, 1)
        );
        assert_eq!(driver.interrupts(), 1);
        let exists = (VIRTIO_VAS_S_EXISTS, 0, 0);
        assert_eq!(call(&device, &mut driver, RELEASEQ, create), exists);
        assert_eq!(driver.interrupts(), 1);
        let close = request(VIRTIO_VAS_OP_CLOSE, 0, 1, &[]);
        assert_eq!(call(&device, &mut driver, RELEASEQ, close), (0, 0, 0));
        assert_eq!(device.metrics().requests.get(), 3);
        assert_eq!(device.metrics().errors.get(), 1);
    }

    #[test]
    fn a_request_and_its_answer_may_be_cut_anywhere() {
        let (device, mut driver) = device();
        let Piece::Read(bytes) = named(VIRTIO_VAS_OP_CREATE, "db") else {
            unreachable!()
        };
        let pieces = [
            Piece::read(&bytes[..7]),
            Piece::read(&bytes[7..50]),
            Piece::read(&bytes[50..]),
            Piece::write(3),
            Piece::write(10),
            Piece::write(100),
        ];
        let sent = driver.send_indirect(REQUESTQ, &pieces);
        kick(&device, REQUESTQ);
        assert_eq!(driver.used(REQUESTQ), [(sent.head, 16)]);
        let answer: Vec<u8> = (3..6).flat_map(|piece| driver.read(&sent, piece)).collect();
        assert_eq!(
            answer[..16],
            [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn what_cannot_hold_a_response_is_returned_empty_and_not_done() {
        let (device, mut driver) = device();
        let create = named(VIRTIO_VAS_OP_CREATE, "db");
        for pieces in [vec![create.clone()], vec![create.clone(), Piece::write(15)]] {
            let sent = driver.send(REQUESTQ, &pieces);
            kick(&device, REQUESTQ);
            assert_eq!(driver.used(REQUESTQ), [(sent.head, 0)]);
        }
        assert_eq!(device.metrics().bad_chains.get(), 2);
        assert_eq!(
            call(&device, &mut driver, REQUESTQ, create).0,
            VIRTIO_VAS_S_OK
        );
    }

    #[test]
    fn a_request_longer_than_any_is_refused_without_reading_it() {
        let (device, mut driver) = device();
        let long = Piece::Read(vec![0; 4 << 20]);
        let refused = (VIRTIO_VAS_S_BAD_REQUEST, 0, 0);
        assert_eq!(call(&device, &mut driver, REQUESTQ, long), refused);
        let empty = driver.send(REQUESTQ, &[Piece::write(16)]);
        kick(&device, REQUESTQ);
        assert_eq!(driver.used(REQUESTQ), [(empty.head, 16)]);
        assert_eq!(response(&driver, &empty, 0), refused);
    }

    #[test]
    fn a_reset_closes_what_was_open_and_leaves_guest_memory_as_it_is() {
        let mut device = rig();
        let ram = Arc::clone(&device.ram);
        ram.memory().write_obj(7u32, GuestAddress(BLOCK)).unwrap();
        let mut driver = start(&mut device);
        let create = named(VIRTIO_VAS_OP_CREATE, "db");
        assert_eq!(
            call(&device, &mut driver, REQUESTQ, create.clone()),
            (0, 0, 1)
        );
        let publish = request(VIRTIO_VAS_OP_PUBLISH, 1, 1, &BLOCK.to_le_bytes());
        assert_eq!(call(&device, &mut driver, REQUESTQ, publish), (0, 1, 0));
        device.reset();
        assert!(device.workers.iter().all(Worker::is_finished));
        let mut driver = start(&mut device);
        // The name is free again, and the old handle is gone.
        let publish = request(VIRTIO_VAS_OP_COMMIT, 0, 1, &[]);
        let bad_handle = (VIRTIO_VAS_S_BAD_HANDLE, 0, 0);
        assert_eq!(call(&device, &mut driver, REQUESTQ, publish), bad_handle);
        assert_eq!(call(&device, &mut driver, REQUESTQ, create), (0, 0, 2));
        assert_eq!(
            ram.memory().read_obj::<u32>(GuestAddress(BLOCK)).unwrap(),
            7
        );
    }

    #[test]
    fn a_reset_stops_a_long_request_and_the_device_starts_again() {
        let (mut device, mut driver) = device();
        let create = named(VIRTIO_VAS_OP_CREATE, "db");
        assert_eq!(call(&device, &mut driver, REQUESTQ, create.clone()).0, 0);
        let gpas: Vec<u8> = (0..8192u64).flat_map(|p| (p << 12).to_le_bytes()).collect();
        let copy = request(VIRTIO_VAS_OP_COPY, 8192, 1, &gpas);
        driver.send(REQUESTQ, &[copy, Piece::write(16)]);
        device.events[REQUESTQ].write(1).unwrap();
        device.reset();
        // Done just before, or never.
        assert!(driver.used(REQUESTQ).len() <= 1);
        let mut driver = start(&mut device);
        assert_eq!(call(&device, &mut driver, REQUESTQ, create).0, 0);
    }

    /// A full queue of garbage, again and again: each is answered, and nothing piles up.
    #[test]
    fn a_flood_of_garbage_is_answered_and_leaves_nothing() {
        let (device, mut driver) = device();
        let mut requests = Vec::new();
        for op in 0..15u32 {
            for count in [0, 1, u32::MAX] {
                requests.push(request(op, count, 1, &[0xff; 16]));
                requests.push(request(op, count, 0, &[0xff; 128]));
            }
        }
        for name in 0..200 {
            requests.push(named(VIRTIO_VAS_OP_CREATE, &format!("n{name}")));
            requests.push(named(VIRTIO_VAS_OP_OPEN, &format!("n{name}")));
        }
        let (mut answered, mut sent) = (0, 0);
        for _ in 0..5 {
            for batch in requests.chunks(120) {
                for (queue, request) in batch.iter().enumerate() {
                    driver.send(queue % 2, &[request.clone(), Piece::write(200)]);
                    sent += 1;
                }
                for queue in [REQUESTQ, RELEASEQ] {
                    kick(&device, queue);
                    answered += driver.used(queue).len();
                }
            }
        }
        assert_eq!(answered, sent);
        assert!(!driver.interrupt.needs_reset());
        // 64 handles were given; the rest was refused.
        let another = call(
            &device,
            &mut driver,
            REQUESTQ,
            named(VIRTIO_VAS_OP_CREATE, "x"),
        );
        assert_eq!(another.0, VIRTIO_VAS_S_LIMIT);
    }

    hostile_queue_tests!(device, |device: &mut Rig, queue| kick(device, queue));
}
