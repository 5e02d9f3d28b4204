//! Token buckets by source: what anybody may cost this node before it is known who it is. And how
//! often one thing is worth a line in the log.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::time::Duration;

use crate::core::time::Time;

/// How much a second. A second's worth may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// Datagrams, or connections.
    pub(crate) count: u32,
    /// Bytes.
    pub(crate) bytes: u32,
}

/// What is left of a rate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    /// Both in millionths, so that a microsecond adds exactly the rate.
    count: u64,
    bytes: u64,
    filled: Time,
}

const MILLION: u64 = 1_000_000;

impl Bucket {
    pub(crate) fn full(rate: Rate, now: Time) -> Self {
        Self {
            count: u64::from(rate.count) * MILLION,
            bytes: u64::from(rate.bytes) * MILLION,
            filled: now,
        }
    }

    /// Takes one of `bytes` bytes out, if there is enough left of both.
    pub(crate) fn take(&mut self, rate: Rate, bytes: usize, now: Time) -> bool {
        let micros = (now.since(self.filled).as_micros() as u64).min(MILLION);
        let fill =
            |left: u64, rate: u32| (left + u64::from(rate) * micros).min(u64::from(rate) * MILLION);
        self.count = fill(self.count, rate.count);
        self.bytes = fill(self.bytes, rate.bytes);
        self.filled = self.filled.max(now);
        let bytes = (bytes as u64).saturating_mul(MILLION);
        let enough = self.count >= MILLION && self.bytes >= bytes;
        if enough {
            self.count -= MILLION;
            self.bytes -= bytes;
        }
        enough
    }
}

/// How many buckets there are: enough that honest sources rarely share one, and all that the worst
/// flood of spoofed sources makes this node keep.
const BUCKETS: usize = 1024;

/// A bucket for each source, in a table that never grows: sources are hashed under a secret key, so
/// two may share a bucket but nobody can choose with whom.
pub(crate) struct Sources {
    keys: RandomState,
    buckets: Vec<Bucket>,
    each: Rate,
    together: Bucket,
    all: Rate,
}

impl Sources {
    /// `each` source may come this often, and all together as often as `all` says.
    pub(crate) fn new(each: Rate, all: Rate, now: Time) -> Self {
        Self {
            keys: RandomState::new(),
            buckets: vec![Bucket::full(each, now); BUCKETS],
            each,
            together: Bucket::full(all, now),
            all,
        }
    }

    /// Whether one more of `bytes` bytes may come from there; it counts, then. Allocates nothing.
    pub(crate) fn admit(&mut self, from: IpAddr, bytes: usize, now: Time) -> bool {
        let at = self.keys.hash_one(network(from)) as usize % BUCKETS;
        self.buckets.get_mut(at).is_some_and(|bucket| bucket.take(self.each, bytes, now))
            && self.together.take(self.all, bytes, now)
    }
}

/// The part of an address that its user cannot choose: of IPv6 a host has a whole /64.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & (u128::MAX << 64)).into()),
        address => address,
    }
}

/// Between two lines in the log about one thing that others can bring about.
const SPEAK_EVERY: Duration = Duration::from_secs(10);

/// Keeps what others can repeat at will from flooding the log.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seldom {
    spoke: Option<Time>,
    silent: u64,
}

impl Seldom {
    /// Whether it is worth a line now: how often it has happened since the last line without one.
    pub(crate) fn speak(&mut self, now: Time) -> Option<u64> {
        if self.spoke.is_some_and(|spoke| now.since(spoke) < SPEAK_EVERY) {
            self.silent = self.silent.saturating_add(1);
            return None;
        }
        self.spoke = Some(now);
        Some(std::mem::take(&mut self.silent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { count: 10, bytes: 1000 };
    const MS: Duration = Duration::from_millis(1);

    fn start() -> Time {
        Time::from_micros(5_000_000)
    }

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn a_bucket_gives_a_seconds_worth_at_once_and_then_the_rate() {
        let mut bucket = Bucket::full(RATE, start());
        let taken = |bucket: &mut Bucket, now, bytes| {
            (0..100).filter(|_| bucket.take(RATE, bytes, now)).count()
        };
        assert_eq!(taken(&mut bucket, start(), 1), 10);
        assert_eq!(taken(&mut bucket, start() + MS * 99, 1), 0);
        assert_eq!(taken(&mut bucket, start() + MS * 100, 1), 1);
        let mut steady = 0;
        for ms in 101..=10_100 {
            steady += taken(&mut bucket, start() + MS * ms, 1);
        }
        assert_eq!(steady, 100);
        assert_eq!(taken(&mut bucket, start() + MS * 3_600_000, 1), 10, "it never holds more");
    }

    #[test]
    fn bytes_count_too_and_what_is_refused_costs_nothing() {
        let mut bucket = Bucket::full(RATE, start());
        assert!(!bucket.take(RATE, 1001, start()));
        assert!(bucket.take(RATE, 900, start()));
        assert!(!bucket.take(RATE, 101, start()));
        assert!(bucket.take(RATE, 100, start()));
        assert!(!bucket.take(RATE, 1, start()));
        assert!(bucket.take(RATE, 100, start() + MS * 100));
    }

    #[test]
    fn a_clock_that_stands_still_or_goes_back_gives_nothing() {
        let mut bucket = Bucket::full(Rate { count: 1, bytes: 10 }, start());
        assert!(bucket.take(Rate { count: 1, bytes: 10 }, 1, start()));
        assert!(!bucket.take(Rate { count: 1, bytes: 10 }, 1, start().back(MS * 900)));
        assert!(!bucket.take(Rate { count: 1, bytes: 10 }, 1, start() + MS * 999));
    }

    #[test]
    fn one_source_exhausts_its_own_share_only() {
        let all = Rate { count: 1000, bytes: u32::MAX };
        let mut sources = Sources::new(RATE, all, start());
        let admitted = (0..500).filter(|_| sources.admit(ip(1), 1, start())).count();
        assert_eq!(admitted, 10);
        // Some may share a bucket with the first or with each other, but few do.
        let others = (2..=101).filter(|last| sources.admit(ip(*last), 1, start())).count();
        assert!(others >= 98, "{others}");
    }

    #[test]
    fn a_flood_of_made_up_sources_gets_no_more_than_all_may_have() {
        let all = Rate { count: 700, bytes: u32::MAX };
        let mut sources = Sources::new(RATE, all, start());
        let flood = (0..1_000_000_u32)
            .filter(|number| sources.admit(number.to_be_bytes().into(), 1, start()))
            .count();
        assert_eq!(flood, 700);
        assert_eq!(sources.buckets.len(), BUCKETS);
    }

    #[test]
    fn what_is_repeated_is_told_seldom_and_then_how_often_it_was() {
        let mut seldom = Seldom::default();
        let told: Vec<u64> = (0..25_000).filter_map(|ms| seldom.speak(start() + MS * ms)).collect();
        assert_eq!(told, [0, 9_999, 9_999]);
    }

    #[test]
    fn a_host_cannot_multiply_itself_by_its_own_part_of_an_ipv6_address() {
        let one: IpAddr = [0x2001, 0xdb8, 1, 2, 3, 4, 5, 6].into();
        let two: IpAddr = [0x2001, 0xdb8, 1, 2, 9, 9, 9, 9].into();
        let other: IpAddr = [0x2001, 0xdb8, 1, 3, 3, 4, 5, 6].into();
        assert_eq!(network(one), network(two));
        assert_ne!(network(one), network(other));
        let mapped: IpAddr = [0, 0, 0, 0, 0, 0xffff, 0x0a00, 0x0001].into();
        assert_eq!(network(mapped), ip(1));
    }
}
