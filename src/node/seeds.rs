//! Where a node finds its first peers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use super::error::StartError;
use crate::net::Network;

/// Where a node finds its first peers. One that answers is enough; later ones are learned by gossip.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Seeds {
    /// None: this node is found by others, or is alone. It is up after `solo_after`.
    #[default]
    None,
    /// Fixed addresses (`IP:PORT`). The node's own may be among them and is ignored.
    Addresses(Vec<SocketAddr>),
    /// A name and port (`shop-headless:7946`) that DNS resolves to all nodes. It is resolved at the
    /// start, a second later, and at pauses that double up to [`Seeds::RESOLVE_EVERY`]; the node's own
    /// address is ignored. A name that stands for nothing so far, or for this node alone, is what the
    /// first node of a cluster finds: it starts, and is up after `alone_after` (default 60 s) unless
    /// another node answers before that. A Kubernetes service names pods that are not ready only if
    /// it sets `publishNotReadyAddresses`: set it, or pods that start together are alone first.
    Dns(String),
}

impl Seeds {
    /// The longest pause before a name is resolved again.
    pub const RESOLVE_EVERY: Duration = Duration::from_secs(30);
    /// The first pause.
    const RESOLVE_FIRST: Duration = Duration::from_secs(1);

    /// Whether any seed is configured.
    pub(crate) const fn any(&self) -> bool {
        match self {
            Self::None => false,
            Self::Addresses(addresses) => !addresses.is_empty(),
            Self::Dns(_) => true,
        }
    }
}

impl From<SocketAddr> for Seeds {
    fn from(address: SocketAddr) -> Self {
        Self::Addresses(vec![address])
    }
}

impl From<Vec<SocketAddr>> for Seeds {
    fn from(addresses: Vec<SocketAddr>) -> Self {
        Self::Addresses(addresses)
    }
}

impl Seeds {
    /// The addresses to begin with.
    ///
    /// # Errors
    /// What cannot be a name and a port. One that stands for nothing now is none: the first node's does.
    pub(super) async fn resolve(
        &self,
        network: &dyn Network,
    ) -> Result<Vec<SocketAddr>, StartError> {
        let name = match self {
            Self::None => return Ok(Vec::new()),
            Self::Addresses(addresses) => return Ok(addresses.clone()),
            Self::Dns(name) => name,
        };
        check_name(name)
            .map_err(|why| StartError::InvalidSeed { name: name.clone(), why: why.to_owned() })?;
        match network.resolve(name).await {
            Ok(found) if found.is_empty() => {
                tracing::warn!(target: "handover::gossip", name, "the seeds' name stands for no address so far; trying on");
                Ok(found)
            }
            Ok(found) => Ok(found),
            Err(error) => {
                tracing::warn!(target: "handover::gossip", name, %error, "the seeds' name cannot be resolved so far; trying on");
                Ok(Vec::new())
            }
        }
    }

    /// What is tried to find peers, for people.
    pub(super) fn tried(&self, addresses: &[SocketAddr]) -> String {
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        match self {
            Self::Dns(name) if addresses.is_empty() => format!("{name} (no address so far)"),
            Self::Dns(name) => format!("{name} ({})", addresses.join(", ")),
            _ => addresses.join(", "),
        }
    }

    /// Goes on resolving a name, until the handle is dropped.
    pub(super) fn keep_resolving(
        &self,
        network: Arc<dyn Network>,
        found: mpsc::Sender<Vec<SocketAddr>>,
    ) -> Option<AbortOnDropHandle<()>> {
        let Self::Dns(name) = self else {
            return None;
        };
        let name = name.clone();
        Some(AbortOnDropHandle::new(tokio::spawn(async move {
            let mut pause = Self::RESOLVE_FIRST;
            loop {
                sleep(pause).await;
                pause = (pause * 2).min(Self::RESOLVE_EVERY);
                match network.resolve(&name).await {
                    Ok(addresses) => {
                        if found.send(addresses).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => {
                        tracing::warn!(target: "handover::gossip", name, %error, "a seed's name cannot be resolved now");
                    }
                }
            }
        })))
    }
}

/// Whether a text can be `HOST:PORT`.
fn check_name(name: &str) -> Result<(), &'static str> {
    let (host, port) = name.rsplit_once(':').ok_or("it has no port")?;
    if host.is_empty() || host.len() > 255 {
        return Err("its host is empty or longer than 255 bytes");
    }
    if host.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err("its host has blanks in it");
    }
    match port.parse::<u16>() {
        Ok(0) | Err(_) => Err("its port is no number from 1 to 65535"),
        Ok(_) => Ok(()),
    }
}
