//! A data directory whose newest checkpoint is damaged while its node is down.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use super::*;

/// Writes a state that is found again in a file, up to a step that is allowed.
struct Mark {
    up_to: Arc<AtomicU64>,
    /// The states that its steps began with.
    seen: Arc<Mutex<Vec<String>>>,
}

/// The state after a step, long enough to be torn.
fn mark(step: u64) -> String {
    format!("<mark {step:04}>").repeat(100)
}

impl Task for Mark {
    const KIND: &'static str = "mark";
    type Args = ();
    type State = (u64, String);
    type Output = ();

    async fn step(
        &self,
        cx: &mut Cx,
        (): &(),
        (at, text): &mut (u64, String),
    ) -> crate::error::Result<Step<()>> {
        self.seen.lock().unwrap().push(text.clone());
        while *at >= self.up_to.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(5)).await;
        }
        *at += 1;
        *text = mark(*at);
        cx.checkpoint_now();
        Ok(Step::More)
    }
}

/// C1, C2: the checkpoint before it is gone on from, and a person is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_checkpoint_is_told_of_and_the_one_before_it_is_gone_on_from() {
    log();
    let bit_flipped = |stored: &mut [u8]| stored[7] ^= 1;
    let torn = |stored: &mut [u8]| stored[500..].fill(0);
    for damage in [&bit_flipped as &dyn Fn(&mut [u8]), &torn] {
        let dir = tempfile::tempdir().unwrap();
        let (up_to, seen) = (Arc::new(AtomicU64::new(5)), Arc::new(Mutex::default()));
        let on_disk = || {
            let mark = Mark { up_to: up_to.clone(), seen: Arc::clone(&seen) };
            builder("a", Seeds::None, Arc::default()).data_dir(dir.path()).task(mark)
        };
        let last = || seen.lock().unwrap().last().cloned();
        let node = on_disk().start().await.unwrap();
        timeout(SOON, node.wait_ready()).await.unwrap().unwrap();
        node.run::<Mark>("marked", ()).await.unwrap();
        until("it has come so far", || last() == Some(mark(5))).await;
        node.close().await;

        let file = dir.path().join("checkpoints.redb");
        let mut bytes = std::fs::read(&file).unwrap();
        let newest = mark(5).into_bytes();
        let all = bytes.windows(newest.len()).enumerate().filter(|(_, found)| *found == newest);
        let all: Vec<usize> = all.map(|(at, _)| at).collect();
        assert!(!all.is_empty(), "it is on the disk");
        for at in all {
            damage(&mut bytes[at..at + newest.len()]);
        }
        std::fs::write(&file, bytes).unwrap();

        seen.lock().unwrap().clear();
        let node = on_disk().start().await.unwrap();
        let mut events = node.events();
        let told = async {
            loop {
                match events.next().await.expect("it goes on") {
                    NodeEvent::Damaged { what } => break what,
                    NodeEvent::Started { name, .. } => panic!("{name} starts, and nobody is told"),
                    _ => {}
                }
            }
        };
        let what = timeout(SOON, told).await.expect("it is told of");
        assert!(what.contains("marked"), "{what}");
        until("it goes on", || last().is_some()).await;
        assert_eq!(seen.lock().unwrap()[0], mark(4));
        up_to.store(7, Ordering::Relaxed);
        until("and further", || last() == Some(mark(7))).await;
        node.close().await;
    }
}
