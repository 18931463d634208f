// SPDX-License-Identifier: GPL-2.0-only
//! A queue's ring and its descriptor chains, against a model of both: a chain is taken if and only
//! if the model takes it, has the bytes that the model says, and what is written to it
//! changes these bytes and no other.

use std::iter;

use mvasvm::memory::GuestMemory;
use mvasvm::virtio::chain::{Chain, MAX_DESCRIPTORS};
use mvasvm::virtio::queue::{BUDGET, End, Verdict, process};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::input::Input;
use super::memory::{
    AVAIL, INDIRECT, Image, NEXT, TABLE, USED, WRITE, memory, put_descriptor, queue,
};

const SIZE: u16 = 16;
/// Where an indirect table may be.
const INDIRECT_TABLE: u64 = 0x4000;

pub fn run(input: &[u8]) {
    let mut input = Input(input);
    let mem = memory();
    let pattern: Vec<u8> = (0..0x8000u32).map(|i| (i * 7 + i / 256) as u8).collect();
    mem.write_slice(&pattern[..0x2000], GuestAddress(0x8000))
        .expect("memory");
    mem.write_slice(&pattern[..0x1000], GuestAddress(0x1_0000))
        .expect("memory");
    mem.write_slice(&pattern[..0x3000], GuestAddress(0x5000))
        .expect("memory");
    let mut queue = queue(SIZE, input.byte() % 2 == 1);
    // Nearly around, now and then.
    let start = input.pick(&[0, 0, 0xfff8]);
    queue.set_next_avail(start);
    queue.set_next_used(start);
    let mut available = start;
    for _ in 0..4 {
        available = drive(&mut input, &mem, available);
        work(&mut input, &mem, &mut queue);
        if input.is_empty() {
            break;
        }
    }
}

/// As a driver: writes descriptors, then makes some available. Gives the ring's index.
fn drive(input: &mut Input<'_>, mem: &GuestMemory, mut available: u16) -> u16 {
    for _ in 0..input.byte() % 24 {
        let slot = u64::from(input.byte() % 48);
        let at = match slot.checked_sub(u64::from(SIZE)) {
            None => TABLE + 16 * slot,
            Some(slot) => INDIRECT_TABLE + 16 * slot,
        };
        let addr = match input.byte() % 8 {
            0..=3 => 0x5000 + u64::from(input.u16() % 0x5000),
            4 => INDIRECT_TABLE,
            5 => 0x8000 - u64::from(input.byte()),
            6 => u64::from(input.u16()) * 2,
            _ => input.u64(),
        };
        let len = match input.byte() % 8 {
            0..=3 => u32::from(input.byte()),
            4 | 5 => u32::from(input.byte() % 33) * 16,
            6 => u32::from(input.u16()),
            _ => input.u32(),
        };
        let flags = match input.byte() {
            255 => input.u16(),
            byte => u16::from(byte) & (NEXT | WRITE | INDIRECT),
        };
        put_descriptor(mem, at, addr, len, flags, u16::from(input.byte() % 20));
    }
    for _ in 0..input.byte() % 20 {
        let slot = u64::from(available % SIZE);
        let head = u16::from(input.byte() % 17);
        mem.write_obj(head, GuestAddress(AVAIL + 4 + 2 * slot))
            .expect("memory");
        available = available.wrapping_add(1);
    }
    if input.byte() == 255 {
        available = input.u16();
    }
    mem.write_obj(available, GuestAddress(AVAIL + 2))
        .expect("memory");
    available
}

/// As a device: works on what is available, and checks all of it.
fn work(input: &mut Input<'_>, mem: &GuestMemory, queue: &mut Queue) {
    let (mut avail, first_used) = (queue.next_avail(), queue.next_used());
    let mut used = first_used;
    let (mut handled, mut stopped) = (0, false);
    // What was returned last.
    let mut returned = None;
    let result = process(queue, mem, |chain| {
        assert!(!stopped, "goes on after a stop");
        handled += 1;
        let image = Image::of(mem);
        check_returned(&image, used, returned);
        let head = image.u16(AVAIL + 4 + 2 * u64::from(avail % SIZE));
        avail = avail.wrapping_add(1);
        let written = check_chain(&image, mem, head, chain.ok(), input.byte());
        if input.byte() == 255 {
            stopped = true;
            avail = avail.wrapping_sub(1);
            // What was written may be where the last one was returned.
            returned = returned.filter(|_| written == 0);
            return Verdict::Stop;
        }
        returned = Some((head, written));
        used = used.wrapping_add(1);
        Verdict::Used(written)
    });
    assert!(handled <= BUDGET);
    let image = Image::of(mem);
    let ahead = image.u16(AVAIL + 2).wrapping_sub(avail);
    match result {
        Ok(progress) => {
            check_returned(&image, used, returned);
            assert_eq!((queue.next_avail(), queue.next_used()), (avail, used));
            assert_eq!(progress.end == End::Stopped, stopped);
            assert!(progress.end != End::Empty || ahead == 0, "{ahead} are left");
            assert!(!progress.notify || used != first_used);
        }
        // Only the driver can be at fault: too far ahead, or a head outside of the table.
        Err(_) => {
            let head = returned.map(|(head, _)| head);
            assert!(ahead > SIZE || head.is_some_and(|head| head >= SIZE));
        }
    }
}

fn check_returned(image: &Image, used: u16, returned: Option<(u16, u32)>) {
    let Some((head, len)) = returned else {
        return;
    };
    let at = USED + 4 + 8 * u64::from(used.wrapping_sub(1) % SIZE);
    let found = (image.u32(at), image.u32(at + 4), image.u16(USED + 2));
    assert_eq!(found, (u32::from(head), len, used));
}

/// Compares a chain with the model's, and writes some bytes to it; gives how many.
fn check_chain(
    image: &Image,
    mem: &GuestMemory,
    head: u16,
    chain: Option<Chain<'_>>,
    write: u8,
) -> u32 {
    let model = walk(image, head);
    let (chain, (readable, writable)) = match (chain, model) {
        (Some(chain), Some(model)) => (chain, model),
        (None, None) => return 0,
        (chain, model) => panic!("{chain:x?} or {model:x?}"),
    };
    let expected: Vec<u8> = readable
        .iter()
        .filter(|(_, len)| *len > 0)
        .flat_map(|(addr, len)| image.get(*addr, *len).expect("walked"))
        .copied()
        .collect();
    let mut got = vec![0; expected.len() + 1];
    assert_eq!(chain.readable.copy_to(&mut got), expected.len());
    assert_eq!(got[..expected.len()], expected);
    let (front, back) = chain.readable.clone().split_at(usize::from(write));
    assert_eq!(front.len() + back.len(), expected.len());

    let addresses = || writable.iter().flat_map(|(addr, len)| *addr..addr + len);
    assert_eq!(chain.writable.len(), addresses().count());
    let bytes: Vec<u8> = iter::repeat_n(write, usize::from(write)).collect();
    let written = chain.writable.copy_from(&bytes);
    let mut after = image.clone();
    for addr in addresses().take(bytes.len()) {
        after.set(addr, write);
    }
    assert_eq!(written, addresses().take(bytes.len()).count());
    assert_eq!(after.differs(&Image::of(mem)), None, "another byte changed");
    u32::try_from(written).expect("few")
}

/// Address and length of a buffer.
type Range = (u64, u64);

/// The readable and the writable buffers of a chain, if it is one (virtio 1.2, 2.7).
fn walk(image: &Image, head: u16) -> Option<(Vec<Range>, Vec<Range>)> {
    let (mut readable, mut writable) = (Vec::new(), Vec::new());
    let (mut table, mut size, mut index, mut indirect) = (TABLE, u32::from(SIZE), head, false);
    let (mut left, mut total) = (size, 0u64);
    loop {
        if left == 0 || u32::from(index) >= size {
            return None;
        }
        let at = table.checked_add(16 * u64::from(index))?;
        image.get(at, 16)?;
        let (addr, len) = (
            u64::from(image.u32(at)) | u64::from(image.u32(at + 4)) << 32,
            image.u32(at + 8),
        );
        let (flags, next) = (image.u16(at + 12), image.u16(at + 14));
        if flags & INDIRECT != 0 {
            if indirect || len % 16 != 0 || len / 16 > u32::from(u16::MAX) {
                return None;
            }
            (table, size, index, left, indirect) = (addr, len / 16, 0, len / 16, true);
            continue;
        }
        total += u64::from(len);
        let order = flags & WRITE != 0 || writable.iter().all(|(_, len)| *len == 0);
        if total > u64::from(u32::MAX) || !order {
            return None;
        }
        // No byte is nowhere.
        if len > 0 {
            image.get(addr, len.into())?;
        }
        let buffers = if flags & WRITE != 0 {
            &mut writable
        } else {
            &mut readable
        };
        buffers.push((addr, u64::from(len)));
        if readable.len() + writable.len() > MAX_DESCRIPTORS {
            return None;
        }
        if flags & NEXT == 0 {
            return Some((readable, writable));
        }
        left -= 1;
        index = next;
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    // slot, kind of address and address, kind of length and length, flags, next
    let descriptor = |slot: u8, addr: u16, len: u8, flags: u16, next: u8| {
        let [low, high] = addr.to_le_bytes();
        vec![slot, 0, low, high, 0, len, flags as u8, next]
    };
    let request = [
        descriptor(0, 0, 16, NEXT, 1),
        descriptor(1, 0x2ff0, 64, NEXT | WRITE, 2),
        descriptor(2, 0x100, 1, WRITE, 0),
    ]
    .concat();
    let table = [
        vec![3, 4, 4, 3, INDIRECT as u8, 0],
        descriptor(16, 0x200, 44, NEXT, 1),
        descriptor(17, 0x300, 100, NEXT, 2),
        descriptor(18, 0x400, 100, 0, 0),
    ]
    .concat();
    let end_loop = [
        descriptor(4, 0, 1, NEXT, 5),
        descriptor(5, 0, 1, NEXT, 4),
        descriptor(0, 0x2000, 1, 0, 0),
    ]
    .concat();
    // event_idx, start; descriptors, heads, index as it is; for each chain: bytes, go on
    let seed = |event: u8, start: u8, program: &[u8], count: u8, heads: &[u8]| {
        let mut seed = vec![event, start, count];
        seed.extend(program);
        seed.push(heads.len() as u8);
        seed.extend(heads);
        seed.push(0);
        seed.extend([5, 0].repeat(heads.len()));
        seed
    };
    vec![
        seed(1, 0, &request, 3, &[0]),
        seed(0, 2, &request, 3, &[0; 12]),
        seed(1, 0, &table, 4, &[3, 0]),
        seed(0, 0, &end_loop, 3, &[4, 0, 5, 16]),
    ]
}
