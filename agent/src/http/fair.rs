//! Shares of the HTTP side by network, so that no client keeps others out by asking often or reading slowly.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Scrapes and pages served to one network at a time; further ones wait.
const OF_NETWORK: usize = 4;

/// The range from which one host can have many addresses: all of loopback, or an IPv6 /64.
pub(super) fn network(address: IpAddr) -> IpAddr {
    let address = address.to_canonical();
    match address {
        _ if address.is_loopback() => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        IpAddr::V4(_) => address,
    }
}

/// Places for requests being answered, by network.
#[derive(Default)]
pub(super) struct Places(Mutex<HashMap<IpAddr, Weak<Semaphore>>>);

impl Places {
    /// Waits until the network has a free place.
    pub(super) async fn take(&self, from: IpAddr) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        self.of(network(from)).acquire_owned().await.ok()
    }

    fn of(&self, network: IpAddr) -> Arc<Semaphore> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = places.get(&network).and_then(Weak::upgrade) {
            return known;
        }
        // Drops those that are neither held nor waited for.
        places.retain(|_, places| places.strong_count() > 0);
        let new = Arc::new(Semaphore::new(OF_NETWORK));
        places.insert(network, Arc::downgrade(&new));
        new
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_network_waits_for_its_own_requests_alone() {
        let places = Places::default();
        let moment = Duration::from_millis(1);
        let mut held = Vec::new();
        for n in 0..OF_NETWORK {
            held.push(places.take([127, 0, 0, n as u8].into()).await.unwrap());
        }
        let next = || tokio::time::timeout(moment, places.take(Ipv4Addr::LOCALHOST.into()));
        assert!(next().await.is_err());
        for n in 0..100 {
            held.push(places.take([10, 0, 0, n].into()).await.unwrap());
        }
        assert_eq!(places.0.lock().unwrap().len(), 101);
        drop(held.swap_remove(0));
        assert!(next().await.is_ok());
        // Nothing is kept for clients that have gone.
        held.clear();
        drop(places.take([10, 1, 1, 1].into()).await.unwrap());
        assert_eq!(places.0.lock().unwrap().len(), 1);
    }

    #[test]
    fn networks() {
        for (address, expected) in [
            ("127.9.8.7", "::1"),
            ("::1", "::1"),
            ("::ffff:10.0.0.1", "10.0.0.1"),
            ("10.0.0.1", "10.0.0.1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ] {
            assert_eq!(network(address.parse().unwrap()).to_string(), expected);
        }
    }
}
