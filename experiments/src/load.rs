// SPDX-License-Identifier: GPL-2.0-only
//! A client that writes to Redis at a given rate, whether or not the server keeps up.
//!
//! It has one request under way at most, but each has a time at which it is due, and its
//! latency counts from then: while the server stands still, all that falls due is late.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use fastrand::Rng;

use crate::redis::{self, Client, Reply, VALUE_BYTES};
use crate::stats::quantile;
use crate::system::ms;

/// Whose answer takes longer counts as lost.
pub const PATIENCE: Duration = Duration::from_millis(100);

/// The key that holds how many writes were done.
const COUNT: &[u8] = b"writes";
/// How many of the last writes are checked.
const RECENT: u64 = 100;

/// A client at work, on a connection of its own.
#[derive(Debug)]
pub struct Load {
    progress: Arc<Progress>,
    begun: Instant,
    period: Duration,
    thread: JoinHandle<Result<Vec<Duration>>>,
}

#[derive(Debug, Default)]
struct Progress {
    over: AtomicBool,
    sent: AtomicU64,
    answered: AtomicU64,
}

impl Load {
    /// Begins to write `rate` times a second, to one of `keys` values at a time.
    ///
    /// # Errors
    /// When the server does not listen, or nothing is to be written.
    pub fn start(rate: usize, keys: usize) -> Result<Self> {
        ensure!(
            rate > 0 && keys > 0,
            "{rate} writes a second to {keys} keys"
        );
        let mut client = Client::connect()?;
        let progress = Arc::new(Progress::default());
        let begun = Instant::now();
        let period = Duration::from_secs(1) / u32::try_from(rate)?;
        let shared = Arc::clone(&progress);
        let thread = thread::spawn(move || write(&mut client, keys, begun, period, &shared));
        Ok(Self {
            progress,
            begun,
            period,
            thread,
        })
    }

    /// Writes that are sent: no more can have been done.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.progress.sent.load(Ordering::SeqCst)
    }

    /// Writes that are answered: no fewer can have been done.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.progress.answered.load(Ordering::SeqCst)
    }

    /// How long it has been at work.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Ends it; how it was served within a window of its time.
    ///
    /// # Errors
    /// When a write failed.
    pub fn end(self, window: &Range<Duration>) -> Result<Served> {
        let end = self.elapsed();
        self.progress.over.store(true, Ordering::SeqCst);
        let joined = self.thread.join();
        let answers = joined.map_err(|_| anyhow!("the client panicked"))??;
        Served::new(&answers, self.period, window, end)
    }
}

/// Writes until it is over; when each was answered.
fn write(
    client: &mut Client,
    keys: usize,
    begun: Instant,
    period: Duration,
    progress: &Progress,
) -> Result<Vec<Duration>> {
    let mut answers = Vec::new();
    for (number, due) in (1..).zip((0..).map(|i| period * i)) {
        let (key, value) = nth(number, keys);
        let count = number.to_string();
        thread::sleep(due.saturating_sub(begun.elapsed()));
        if progress.over.load(Ordering::SeqCst) {
            break;
        }
        progress.sent.store(number, Ordering::SeqCst);
        // One command: a snapshot has both or none.
        let words: [&[u8]; 5] = [b"MSET", COUNT, count.as_bytes(), key.as_bytes(), &value];
        let reply = client.command(&words)?;
        ensure!(
            reply == Reply::Simple("OK".into()),
            "MSET answered {reply:?}"
        );
        progress.answered.store(number, Ordering::SeqCst);
        answers.push(begun.elapsed());
    }
    Ok(answers)
}

/// The key and the value of the `number`-th write.
fn nth(number: u64, keys: usize) -> (String, Vec<u8>) {
    let mut random = Rng::with_seed(number);
    let key = redis::key(random.usize(..keys));
    let mut value = vec![0; VALUE_BYTES];
    random.fill(&mut value);
    (key, value)
}

/// Checks that Redis holds what it did after some number of writes in `range`: how many keys,
/// that number, and what the last writes up to it have stored.
///
/// # Errors
/// When it does not.
pub fn check(keys: usize, range: Range<u64>) -> Result<()> {
    let mut client = Client::connect().context("after the restore")?;
    let all = client.command(&[b"DBSIZE"])?;
    ensure!(
        all == Reply::Integer(i64::try_from(keys)? + 1),
        "DBSIZE answered {all:?}, there were {keys} keys and the counter"
    );
    let Reply::Bulk(Some(count)) = client.command(&[b"GET", COUNT])? else {
        bail!("the count of writes is lost");
    };
    let done: u64 = String::from_utf8_lossy(&count).parse()?;
    ensure!(
        range.contains(&done),
        "{done} writes are in the snapshot, but {range:?} were done when it was made"
    );
    let mut seen = HashSet::new();
    for number in (done.saturating_sub(RECENT) + 1..=done).rev() {
        let (key, value) = nth(number, keys);
        if seen.insert(key.clone()) {
            let got = client.command(&[b"GET", key.as_bytes()])?;
            ensure!(
                got == Reply::Bulk(Some(value)),
                "{key} is not as write {number} of {done} left it"
            );
        }
    }
    Ok(())
}

/// How a client was served.
#[derive(Debug, Clone, PartialEq)]
pub struct Served {
    /// Answers within the window, by its length.
    pub throughput_per_s: f64,
    /// Of the writes due within the window, the share not answered in [`PATIENCE`].
    pub lost_share: f64,
    /// Latencies of the writes due within the window. One that has no answer in the end has
    /// waited until then.
    pub latencies_ms: Vec<f64>,
}

impl Served {
    fn new(
        answers: &[Duration],
        period: Duration,
        window: &Range<Duration>,
        end: Duration,
    ) -> Result<Self> {
        let dues = (0..).map(|i| period * i);
        let dues = dues.take_while(|due| *due < window.end);
        let ats = answers.iter().copied().chain(std::iter::repeat(end));
        let due_and_at = dues.zip(ats).filter(|(due, _)| *due >= window.start);
        let latencies: Vec<Duration> = due_and_at.map(|(due, at)| at.saturating_sub(due)).collect();
        ensure!(!latencies.is_empty(), "no write was due in {window:?}");
        let lost = latencies.iter().filter(|l| **l > PATIENCE).count();
        let answered = answers.iter().filter(|at| window.contains(at)).count();
        let length = (window.end - window.start).as_secs_f64();
        Ok(Self {
            throughput_per_s: answered as f64 / length,
            lost_share: lost as f64 / latencies.len() as f64,
            latencies_ms: latencies.into_iter().map(ms).collect(),
        })
    }

    /// The latency that this share of the writes does not exceed.
    ///
    /// # Errors
    /// When there are no writes.
    pub fn latency_ms(&self, share: f64) -> Result<f64> {
        quantile(&self.latencies_ms, share).context("no latencies")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn millis(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn while_the_server_stands_still_all_that_falls_due_is_late() {
        // Due at 0, 10, 20 ... ms; at 100 ms the server stands still for 400 ms.
        let answer = |i: u64| match i {
            10..50 => millis(500),
            i => millis(10 * i + 1),
        };
        let answers: Vec<_> = (0..100).map(answer).collect();
        let served = Served::new(
            &answers,
            millis(10),
            &(millis(0)..millis(1000)),
            millis(1000),
        );
        let served = served.unwrap();
        assert!((served.lost_share - 0.30).abs() < 1e-9, "{served:?}");
        assert!((served.throughput_per_s - 100.0).abs() < 1e-9);
        assert_eq!(served.latency_ms(0.5).unwrap(), 1.0);
        assert_eq!(served.latency_ms(1.0).unwrap(), 400.0);
    }

    #[test]
    fn what_has_no_answer_in_the_end_has_waited_until_then() {
        let window = millis(20)..millis(60);
        let answers = [millis(1), millis(11), millis(21)];
        let served = Served::new(&answers, millis(10), &window, millis(200)).unwrap();
        assert_eq!(served.latencies_ms, [1.0, 170.0, 160.0, 150.0]);
        assert!((served.lost_share - 0.75).abs() < 1e-9);
        assert!((served.throughput_per_s - 25.0).abs() < 1e-9);
        assert!(Served::new(&answers, millis(10), &(millis(5)..millis(6)), millis(9)).is_err());
    }

    #[test]
    fn a_write_is_known_by_its_number() {
        let (key, value) = nth(7, 1000);
        assert_eq!(nth(7, 1000), (key.clone(), value.clone()));
        assert_ne!(nth(8, 1000).1, value);
        assert_eq!(value.len(), VALUE_BYTES);
    }
}
