// SPDX-License-Identifier: GPL-2.0-only
//! A block device, its image and its driver, for tests.

use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{Block, Disk};
use crate::virtio::test_utils::{Driver, Piece};

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;
pub const DISK_SIZE: u64 = 1 << 20;

pub struct Rig {
    pub image: tempfile::NamedTempFile,
    pub device: Block,
    pub driver: Driver,
}

pub fn rig(read_only: bool) -> Rig {
    rig_in(&std::env::temp_dir(), read_only)
}

/// With the image in this folder; the byte of each sector is its number, modulo 251.
pub fn rig_in(folder: &Path, read_only: bool) -> Rig {
    let image = tempfile::NamedTempFile::new_in(folder).unwrap();
    let content: Vec<u8> = (0..DISK_SIZE).map(|at| (at / 512 % 251) as u8).collect();
    image.as_file().write_all_at(&content, 0).unwrap();
    let mut device = Block::new(Disk::open(image.path(), read_only).unwrap()).unwrap();
    let driver = Driver::start(&mut device);
    Rig {
        image,
        device,
        driver,
    }
}

impl Rig {
    /// Sends one request; returns its status byte, used length and data.
    pub fn request(&mut self, kind: u32, sector: u64, data: &[Piece]) -> (u8, u32, Vec<u8>) {
        let mut pieces = vec![header(kind, sector)];
        pieces.extend_from_slice(data);
        pieces.push(Piece::write(1));
        let sent = self.driver.send(0, &pieces);
        self.device.process_queue();
        let used = self.driver.used(0);
        assert_eq!(used.len(), 1);
        assert_eq!(used[0].0, sent.head);
        let bytes = (1..=data.len()).flat_map(|i| self.driver.read(&sent, i));
        let bytes = bytes.collect();
        let status = self.driver.read(&sent, pieces.len() - 1)[0];
        (status, used[0].1, bytes)
    }

    pub fn image_at(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.image
            .as_file()
            .read_exact_at(&mut bytes, offset)
            .unwrap();
        bytes
    }
}

pub fn header(kind: u32, sector: u64) -> Piece {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&sector.to_le_bytes());
    Piece::Read(bytes)
}
