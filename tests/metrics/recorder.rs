//! A recorder that keeps every value: what a scrape would see, and each value of the histograms.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use metrics::{
    Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};

/// See the module. Clones record to the same place.
#[derive(Clone, Default)]
pub(super) struct Recorded(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    described: BTreeSet<String>,
    counters: BTreeMap<Key, Arc<AtomicU64>>,
    gauges: BTreeMap<Key, Arc<AtomicU64>>,
    histograms: BTreeMap<Key, Arc<Values>>,
}

#[derive(Default)]
struct Values(Mutex<Vec<f64>>);

impl HistogramFn for Values {
    fn record(&self, value: f64) {
        self.0.lock().unwrap().push(value);
    }
}

fn is(key: &Key, name: &str, labels: &[(&str, &str)]) -> bool {
    let has = |wanted: &(&str, &str)| {
        key.labels().any(|label| label.key() == wanted.0 && label.value() == wanted.1)
    };
    key.name() == name && labels.iter().all(has)
}

impl Recorded {
    /// The sum of a counter over all series with these labels.
    pub(super) fn counter(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let inner = self.0.lock().unwrap();
        let of = inner.counters.iter().filter(|(key, _)| is(key, name, labels));
        of.map(|(_, count)| count.load(Ordering::SeqCst)).sum()
    }

    /// A gauge, as last set; none if it never was.
    pub(super) fn gauge(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let inner = self.0.lock().unwrap();
        let mut of = inner.gauges.iter().filter(|(key, _)| is(key, name, labels));
        of.next().map(|(_, value)| f64::from_bits(value.load(Ordering::SeqCst)))
    }

    /// The values of a histogram over all series with these labels.
    pub(super) fn histogram(&self, name: &str, labels: &[(&str, &str)]) -> Vec<f64> {
        let inner = self.0.lock().unwrap();
        let of = inner.histograms.iter().filter(|(key, _)| is(key, name, labels));
        of.flat_map(|(_, values)| values.0.lock().unwrap().clone()).collect()
    }

    /// The names of all metrics that were described.
    pub(super) fn described(&self) -> BTreeSet<String> {
        self.0.lock().unwrap().described.clone()
    }

    fn describe(&self, key: &KeyName) {
        self.0.lock().unwrap().described.insert(key.as_str().to_owned());
    }
}

impl fmt::Display for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.0.lock().unwrap();
        for (key, count) in &inner.counters {
            writeln!(f, "{key} {}", count.load(Ordering::SeqCst))?;
        }
        Ok(())
    }
}

impl Recorder for Recorded {
    fn describe_counter(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
        self.describe(&key);
    }

    fn describe_gauge(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
        self.describe(&key);
    }

    fn describe_histogram(&self, key: KeyName, _: Option<Unit>, _: SharedString) {
        self.describe(&key);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        let mut inner = self.0.lock().unwrap();
        Counter::from_arc(inner.counters.entry(key.clone()).or_default().clone())
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        let mut inner = self.0.lock().unwrap();
        Gauge::from_arc(inner.gauges.entry(key.clone()).or_default().clone())
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        let mut inner = self.0.lock().unwrap();
        Histogram::from_arc(inner.histograms.entry(key.clone()).or_default().clone())
    }
}
