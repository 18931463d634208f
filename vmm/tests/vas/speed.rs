//! How long it takes. Prints; compares nothing, for it depends on the host.

use std::time::{Duration, Instant};

use mvas_abi::virtio_vas::VIRTIO_VAS_KIND_BLOCKS;
use mvas_host::server::{BLOCK, PAGE};
use mvas_host::store::{Store, StoreOptions};

use crate::tmpfs::in_tmpfs;
use crate::vm::{Setup, Vm, done, meta};

/// 1 GiB.
const COUNT: u64 = 512;

/// cargo test -p mvasvm --test vas speed -- --ignored --nocapture
#[test]
#[ignore = "takes 6 GiB of memory; prints times"]
fn speed_of_a_gibibyte() {
    println!(
        "{:>12} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "pages", "PUBLISH", "scattered", "COPY", "again", "MAP", "RELEASE"
    );
    for (pages, options) in [("huge", "huge=advise"), ("4 KiB", "huge=never")] {
        in_tmpfs(options, |dir| {
            let store = Store::open(&dir.join("store"), StoreOptions::default()).unwrap();
            let setup = Setup {
                mib: 5 << 10,
                ..Setup::default()
            };
            let vm = Vm::with(&store, "a", setup);
            for page in 0..3 * COUNT * BLOCK / PAGE {
                vm.write(page * PAGE, page);
            }
            let draft = vm.create("s");
            let together: Vec<u64> = (0..COUNT).collect();
            let scattered: Vec<u64> = (0..COUNT).map(|i| COUNT + i * 2).collect();
            let publish = time(|| done(vm.publish(draft, &together)));
            let publish_scattered = time(|| done(vm.publish(draft, &scattered)));
            let pages_of_it: Vec<u64> = (0..COUNT * 512).collect();
            let copy = time(|| {
                for some in pages_of_it.chunks(65536) {
                    done(vm.copy(draft, some));
                }
            });
            done(vm.meta(draft, 0, &meta(2 * COUNT, COUNT * 512)));
            done(vm.commit(draft));
            for block in &together {
                vm.write(block * BLOCK, 1);
            }
            let second = vm.create("t");
            let again = time(|| done(vm.publish(second, &together)));
            // Where no memory is yet.
            let entries: Vec<_> = (0..COUNT)
                .map(|i| {
                    (
                        4 * COUNT + i * 199 % COUNT,
                        i.try_into().unwrap(),
                        VIRTIO_VAS_KIND_BLOCKS,
                    )
                })
                .collect();
            let map = time(|| done(vm.map(draft, &entries)));
            let release = time(|| done(vm.release(&[(0, COUNT)])));
            let times = [publish, publish_scattered, copy, again, map, release];
            print!("{pages:>12}");
            for time in times {
                print!(" {:>7.1} ms", time.as_secs_f64() * 1000.0);
            }
            println!();
        });
    }
}

fn time<T>(f: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    f();
    start.elapsed()
}
