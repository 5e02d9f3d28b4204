//! A man in the middle who can stall and cut.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::task::AbortOnDropHandle;

use super::loopback;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Forward,
    Stall,
}

pub(super) struct Proxy {
    address: SocketAddr,
    mode: watch::Sender<Mode>,
    cut: watch::Sender<u64>,
    _task: AbortOnDropHandle<()>,
}

impl Proxy {
    pub(super) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, modes) = watch::channel(Mode::Forward);
        let (cut, cuts) = watch::channel(0);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((near, _)) = listener.accept().await else {
                    return;
                };
                connections.spawn(relay(near, target, modes.clone(), cuts.clone()));
            }
        });
        Self { address, mode, cut, _task: AbortOnDropHandle::new(task) }
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes everything and passes nothing on, in either direction.
    pub(super) fn stall(&self) {
        self.mode.send_replace(Mode::Stall);
    }

    /// Closes all connections; new ones are let through.
    pub(super) fn cut(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }
}

/// Ends its task when it goes.
struct Ends(AbortHandle);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn relay(
    near: TcpStream,
    target: SocketAddr,
    modes: watch::Receiver<Mode>,
    mut cuts: watch::Receiver<u64>,
) {
    cuts.mark_unchanged();
    let Ok(far) = TcpStream::connect(target).await else {
        return;
    };
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let there = tokio::spawn(pump(near_read, far_write, modes.clone()));
    let back = tokio::spawn(pump(far_read, near_write, modes));
    let _ends = (Ends(there.abort_handle()), Ends(back.abort_handle()));
    tokio::select! {
        _ = there => {}
        _ = back => {}
        _ = cuts.changed() => {}
    }
}

async fn pump(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    modes: watch::Receiver<Mode>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(len @ 1..) = from.read(&mut buffer).await {
        if *modes.borrow() == Mode::Stall {
            continue;
        }
        if to.write_all(&buffer[..len]).await.is_err() {
            return;
        }
    }
}
