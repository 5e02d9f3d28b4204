//! The signals with which a process is told to stop.

/// Completes when the process receives SIGTERM or SIGINT (elsewhere than on Unix: Ctrl-C).
///
/// Nothing is installed before the future is first polled. From then on, and for the rest of the
/// process's life, these signals no longer end the process by themselves: whoever awaits this has
/// to act on it. One future reports one signal; call again to wait for the next.
///
/// If no handler can be installed, that is logged and the future never completes: the signal then
/// ends the process, which costs its tasks no more than a crash does.
///
/// # Panics
/// When polled outside a tokio runtime, or in one without I/O enabled.
///
/// ```no_run
/// # async fn main_() {
/// handover::signal::term_or_int().await;
/// println!("told to stop");
/// # }
/// ```
pub async fn term_or_int() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::SignalKind;
        tokio::select! {
            () = received(SignalKind::terminate()) => {}
            () = received(SignalKind::interrupt()) => {}
        }
    }
    #[cfg(not(unix))]
    if let Err(error) = tokio::signal::ctrl_c().await {
        never(error).await
    }
}

#[cfg(unix)]
async fn received(kind: tokio::signal::unix::SignalKind) {
    match tokio::signal::unix::signal(kind) {
        Ok(mut signals) => {
            if signals.recv().await.is_none() {
                std::future::pending::<()>().await;
            }
        }
        Err(error) => never(error).await,
    }
}

async fn never(error: std::io::Error) {
    tracing::error!(target: "handover::drain", %error, "no signal handler could be installed");
    std::future::pending::<()>().await;
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::pin::pin;
    use std::time::Duration;

    use super::*;

    /// The signals this process catches, as the kernel knows them.
    fn caught() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        u64::from_str_radix(mask.unwrap().trim(), 16).unwrap()
    }

    #[tokio::test]
    async fn nothing_is_installed_before_the_first_poll_and_sigterm_completes_it() {
        const SIGTERM: u64 = 1 << (15 - 1);
        const SIGINT: u64 = 1 << (2 - 1);
        let before = caught();
        let mut told = pin!(term_or_int());
        assert_eq!(caught() & (SIGTERM | SIGINT), before & (SIGTERM | SIGINT));

        let polled = tokio::time::timeout(Duration::from_millis(1), &mut told).await;
        assert!(polled.is_err(), "no signal was sent yet");
        assert_eq!(caught() & (SIGTERM | SIGINT), SIGTERM | SIGINT);

        let kill = format!("kill -TERM {}", std::process::id());
        let sent = std::process::Command::new("sh")
            .args(["-c", &kill])
            .status();
        assert!(sent.unwrap().success());
        tokio::time::timeout(Duration::from_secs(5), told)
            .await
            .expect("SIGTERM was sent");
    }
}
