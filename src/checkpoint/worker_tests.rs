#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::mpsc as sync;
use std::sync::{Condvar, Mutex};

use super::*;
use crate::checkpoint::testing::{header, name, position, put, run as run_id, session, state};
use crate::checkpoint::{Damage, MemoryStore};
use crate::core::stored::StoredRun;

/// A memory store whose batches are counted, and wait for a permit each.
#[derive(Debug)]
struct Gated {
    store: MemoryStore,
    permits: Mutex<usize>,
    changed: Condvar,
    batches: Mutex<sync::Sender<usize>>,
}

impl Gated {
    fn new() -> (Arc<Self>, sync::Receiver<usize>) {
        let (batches, seen) = sync::channel();
        let gated = Self {
            store: MemoryStore::default(),
            permits: Mutex::new(0),
            changed: Condvar::new(),
            batches: Mutex::new(batches),
        };
        (Arc::new(gated), seen)
    }

    fn permit(&self, batches: usize) {
        *self.permits.lock().unwrap() += batches;
        self.changed.notify_all();
    }
}

impl CheckpointStore for Gated {
    fn apply(&self, batch: Vec<Write>) -> Vec<Result<(), StoreError>> {
        self.batches.lock().unwrap().send(batch.len()).unwrap();
        let permits = self.permits.lock().unwrap();
        *self.changed.wait_while(permits, |left| *left == 0).unwrap() -= 1;
        self.store.apply(batch)
    }

    fn get(
        &self,
        name: &Name,
        run: RunId,
        position: Position,
        writer: &SessionId,
    ) -> Result<Option<(Header, Bytes)>, StoreError> {
        self.store.get(name, run, position, writer)
    }

    fn get_output(&self, name: &Name, run: RunId) -> Result<Option<Bytes>, StoreError> {
        self.store.get_output(name, run)
    }

    fn runs(&self) -> Result<Vec<StoredRun>, StoreError> {
        self.store.runs()
    }

    fn take_damage(&self) -> Vec<Damage> {
        Vec::new()
    }
}

fn write(seq: u64, len: usize) -> Request {
    Request::Write(put("a", 1, seq, &state(seq, len)).into())
}

fn load(seq: u64) -> Request {
    Request::Load {
        name: name("a"),
        run: run_id(1),
        position: position(1, seq),
        writer: session("w"),
    }
}

fn loaded(seq: u64, len: usize) -> Reply {
    let state = state(seq, len);
    Reply::Loaded(Ok(Some((header("a", 1, seq, "w", &state), state))))
}

async fn answers<T>(answers: &mut mpsc::Receiver<Answer<T>>) -> Vec<(T, Reply)> {
    let mut all = Vec::new();
    while let Some(answer) = answers.recv().await {
        all.push((answer.tag, answer.reply));
    }
    all
}

#[tokio::test]
async fn either_way_answers_in_order_what_it_did_in_order() {
    for execution in [Execution::Inline, Execution::Blocking(Handle::current())] {
        let store = Arc::new(MemoryStore::default());
        let (worker, mut receiver) = StoreWorker::new(store, execution, Limits::default());
        for (tag, request) in [
            load(1),
            write(1, 10),
            load(1),
            write(2, 10),
            Request::Output { name: name("a"), run: run_id(1) },
            load(1),
            load(2),
        ]
        .into_iter()
        .enumerate()
        {
            worker.submit(tag, request).unwrap();
        }
        drop(worker);
        let expected = [
            Reply::Loaded(Ok(None)),
            Reply::Written(Ok(())),
            loaded(1, 10),
            Reply::Written(Ok(())),
            Reply::Output(Ok(None)),
            Reply::Loaded(Ok(None)),
            loaded(2, 10),
        ];
        let expected: Vec<_> = expected.into_iter().enumerate().collect();
        assert_eq!(answers(&mut receiver).await, expected);
    }
}

#[tokio::test]
async fn writes_that_wait_share_a_transaction() {
    let (store, batches) = Gated::new();
    let handle = Handle::current();
    let (worker, mut receiver) =
        StoreWorker::new(store.clone(), Execution::Blocking(handle), Limits::default());
    worker.submit(1, write(1, 10)).unwrap();
    let first = tokio::task::spawn_blocking(move || (batches.recv().unwrap(), batches));
    let (first, batches) = first.await.unwrap();
    assert_eq!(first, 1);
    for seq in 2..=50 {
        worker.submit(seq, write(seq, 10)).unwrap();
    }
    store.permit(2);
    drop(worker);
    let all = answers(&mut receiver).await;
    let tags: Vec<u64> = all.iter().map(|(tag, _)| *tag).collect();
    assert_eq!(tags, (1..=50).collect::<Vec<_>>());
    assert!(all.iter().all(|(_, reply)| *reply == Reply::Written(Ok(()))));
    drop(store);
    assert_eq!(batches.iter().collect::<Vec<_>>(), [49]);
}

#[tokio::test]
async fn a_full_queue_gives_the_request_back() {
    let (store, _batches) = Gated::new();
    let limits = Limits { requests: 4, bytes: 1000 };
    let handle = Handle::current();
    let (worker, mut receiver) =
        StoreWorker::new(store.clone(), Execution::Blocking(handle), limits);
    worker.submit(0, write(1, 600)).unwrap();
    let QueueFull(tag, request) = worker.submit(7, write(2, 600)).unwrap_err();
    assert_eq!(tag, 7, "over the bound of bytes");
    let Request::Write(back) = request else {
        panic!("{request:?}");
    };
    assert!(matches!(*back, Write::Put { header, .. } if header.position.seq == 2));
    let mut taken = 1;
    while worker.submit(taken, write(taken + 2, 1)).is_ok() {
        taken += 1;
        assert!(taken < 100, "no bound on requests");
    }
    store.permit(100);
    for tag in 0..taken {
        let answer = receiver.recv().await.unwrap();
        assert_eq!((answer.tag, answer.reply), (tag, Reply::Written(Ok(()))));
    }
    worker.submit(99, write(99, 600)).unwrap();
    assert_eq!(receiver.recv().await.unwrap().tag, 99, "there is room again");
}

#[tokio::test]
async fn a_write_over_the_bound_of_bytes_passes_alone() {
    let limits = Limits { requests: 4, bytes: 1000 };
    let store = Arc::new(MemoryStore::default());
    let (worker, mut receiver) =
        StoreWorker::new(store, Execution::Blocking(Handle::current()), limits);
    worker.submit(0, write(1, 5000)).unwrap();
    assert_eq!(receiver.recv().await.unwrap().reply, Reply::Written(Ok(())));
    worker.submit(1, load(1)).unwrap();
    assert_eq!(receiver.recv().await.unwrap().reply, loaded(1, 5000));
}

#[tokio::test]
async fn inline_takes_nothing_more_until_its_answers_are_read() {
    let limits = Limits { requests: 2, ..Limits::default() };
    let store = Arc::new(MemoryStore::default());
    let (worker, mut receiver) = StoreWorker::new(store.clone(), Execution::Inline, limits);
    worker.submit(1, write(1, 1)).unwrap();
    worker.submit(2, write(2, 1)).unwrap();
    assert!(worker.submit(3, write(3, 1)).is_err());
    assert_eq!(
        store.runs().unwrap()[0].checkpoints[0].position,
        position(1, 2),
        "what was refused was not done"
    );
    receiver.recv().await.unwrap();
    worker.submit(3, write(3, 1)).unwrap();
}

#[tokio::test]
async fn a_panicking_store_is_answered_for() {
    #[derive(Debug)]
    struct Panics;
    impl CheckpointStore for Panics {
        fn apply(&self, _: Vec<Write>) -> Vec<Result<(), StoreError>> {
            panic!("as planned")
        }
        fn get(
            &self,
            _: &Name,
            _: RunId,
            _: Position,
            _: &SessionId,
        ) -> Result<Option<(Header, Bytes)>, StoreError> {
            Ok(None)
        }
        fn get_output(&self, _: &Name, _: RunId) -> Result<Option<Bytes>, StoreError> {
            Ok(None)
        }
        fn runs(&self) -> Result<Vec<StoredRun>, StoreError> {
            Ok(Vec::new())
        }
        fn take_damage(&self) -> Vec<Damage> {
            Vec::new()
        }
    }
    let (worker, mut receiver) = StoreWorker::new(
        Arc::new(Panics),
        Execution::Blocking(Handle::current()),
        Limits::default(),
    );
    worker.submit(1, write(1, 1)).unwrap();
    assert_eq!(receiver.recv().await.unwrap().reply, Reply::Written(Err(StoreError::Stopped)));
    worker.submit(2, load(1)).unwrap();
    assert_eq!(receiver.recv().await.unwrap().reply, Reply::Loaded(Ok(None)), "and goes on");
}
