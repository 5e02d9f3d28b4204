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
    /// start and again every [`Seeds::RESOLVE_EVERY`]; the node's own address is ignored.
    Dns(String),
}

impl Seeds {
    /// How often a name is resolved again.
    pub const RESOLVE_EVERY: Duration = Duration::from_secs(30);

    /// Whether any seed is configured.
    pub const fn any(&self) -> bool {
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
    /// A name that cannot be resolved.
    pub(super) async fn resolve(
        &self,
        network: &dyn Network,
    ) -> Result<Vec<SocketAddr>, StartError> {
        match self {
            Self::None => Ok(Vec::new()),
            Self::Addresses(addresses) => Ok(addresses.clone()),
            Self::Dns(name) => match network.resolve(name).await {
                Ok(found) if found.is_empty() => {
                    Err(StartError::NoSeedsResolved(format!("{name} has no addresses")))
                }
                Ok(found) => Ok(found),
                Err(error) => Err(StartError::NoSeedsResolved(format!("{name}: {error}"))),
            },
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
            loop {
                sleep(Self::RESOLVE_EVERY).await;
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
