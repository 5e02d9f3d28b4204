//! The signals with which a process is told to stop.

use std::future::IntoFuture;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_core::Stream;
use futures_core::future::BoxFuture;
use futures_util::StreamExt;
use serde::Serialize;

/// A request to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Signal {
    /// SIGTERM.
    Terminate,
    /// SIGINT (elsewhere than on Unix: Ctrl-C).
    Interrupt,
}

/// SIGTERM and SIGINT, to be awaited once, to be read as a stream, or to be given to
/// [`Node::drain_on`](crate::Node::drain_on), which also acts on the second and the third.
///
/// The handlers are installed by this call (elsewhere than on Unix: by the first poll). From then on,
/// and for the rest of the process's life, these signals no longer end the process by themselves:
/// whoever has called this has to act on them. None that arrives after the call is lost, however
/// late it is polled first; several of one kind that nobody has read yet count as one. So a service that
/// calls this before it starts its node also drains when it is told to stop while it starts.
///
/// If no handler can be installed, that is logged and nothing ever comes: the signal then ends the
/// process, which costs its tasks no more than a crash does.
///
/// # Panics
/// When called outside a tokio runtime, or in one without I/O enabled.
///
/// ```no_run
/// # async fn main_() {
/// handover::signal::term_or_int().await;
/// println!("told to stop");
/// # }
/// ```
pub fn term_or_int() -> Signals {
    Signals(Installed::new())
}

/// See [`term_or_int`].
#[derive(Debug)]
pub struct Signals(Installed);

impl Stream for Signals {
    type Item = Signal;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Signal>> {
        self.0.poll(cx).map(Some)
    }
}

impl IntoFuture for Signals {
    type Output = Signal;
    type IntoFuture = BoxFuture<'static, Signal>;

    fn into_future(mut self) -> Self::IntoFuture {
        Box::pin(async move {
            match self.next().await {
                Some(signal) => signal,
                // The stream has no end.
                None => std::future::pending().await,
            }
        })
    }
}

#[cfg(unix)]
#[derive(Debug)]
struct Installed(Vec<(Signal, tokio::signal::unix::Signal)>);

#[cfg(unix)]
impl Installed {
    fn new() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        let kinds = [
            (Signal::Terminate, SignalKind::terminate()),
            (Signal::Interrupt, SignalKind::interrupt()),
        ];
        let install = |(signal_, kind)| match signal(kind) {
            Ok(received) => Some((signal_, received)),
            Err(error) => {
                tracing::error!(target: "handover::drain", %error, "no signal handler could be installed");
                None
            }
        };
        Self(kinds.into_iter().filter_map(install).collect())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Signal> {
        for (signal, received) in &mut self.0 {
            if let Poll::Ready(Some(())) = received.poll_recv(cx) {
                return Poll::Ready(*signal);
            }
        }
        Poll::Pending
    }
}

#[cfg(not(unix))]
struct Installed(BoxFuture<'static, std::io::Result<()>>);

#[cfg(not(unix))]
impl std::fmt::Debug for Installed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Installed")
    }
}

#[cfg(not(unix))]
impl Installed {
    fn new() -> Self {
        Self(Box::pin(tokio::signal::ctrl_c()))
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Signal> {
        match std::task::ready!(self.0.as_mut().poll(cx)) {
            Ok(()) => {
                *self = Self::new();
                Poll::Ready(Signal::Interrupt)
            }
            Err(error) => {
                tracing::error!(target: "handover::drain", %error, "no signal handler could be installed");
                self.0 = Box::pin(std::future::pending());
                Poll::Pending
            }
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// The signals this process catches, as the kernel knows them.
    fn caught() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        u64::from_str_radix(mask.unwrap().trim(), 16).unwrap()
    }

    fn kill(with: &str) {
        let kill = format!("kill -{with} {}", std::process::id());
        let sent = std::process::Command::new("sh").args(["-c", &kill]).status();
        assert!(sent.unwrap().success());
    }

    #[tokio::test]
    async fn each_signal_is_told_from_the_call_on_also_before_the_first_poll() {
        const SIGTERM: u64 = 1 << (15 - 1);
        const SIGINT: u64 = 1 << (2 - 1);
        let mut told = term_or_int();
        assert_eq!(caught() & (SIGTERM | SIGINT), SIGTERM | SIGINT);
        // Nobody has polled it yet.
        kill("TERM");
        tokio::time::sleep(Duration::from_millis(100)).await;
        let signal = timeout(Duration::from_secs(5), told.next()).await;
        assert_eq!(signal.expect("it was sent"), Some(Signal::Terminate));
        let polled = timeout(Duration::from_millis(50), told.next()).await;
        assert!(polled.is_err(), "it is told once");

        for (with, expected) in
            [("TERM", Signal::Terminate), ("TERM", Signal::Terminate), ("INT", Signal::Interrupt)]
        {
            kill(with);
            let signal = timeout(Duration::from_secs(5), told.next()).await;
            assert_eq!(signal.expect("it was sent"), Some(expected));
        }
    }
}
