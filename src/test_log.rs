//! Listening to the log in a test.

use tracing::Dispatch;
use tracing::subscriber::NoSubscriber;

/// To be kept while a test listens with a subscriber of its own thread. As long as there is one subscriber alone, a
/// place in the code that another thread is the first to come by is asked for of that thread alone, which has none,
/// and is silent from then on.
pub(crate) fn every_place_is_heard() -> Dispatch {
    Dispatch::new(NoSubscriber::default())
}
