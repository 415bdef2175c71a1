//! Asks the kubelet for the pods of its node from time to time: nothing there can be watched. A pod
//! that comes and goes between two requests has no name.

use std::convert::Infallible;

use ::kube::Client;
use ::kube::core::params::ListParams;
use tokio::time::timeout;

use super::Pace;
use super::access::Access;
use super::feed::Failure;
use super::follow::{Backoff, List};
use super::names::LocalPods;

pub(super) async fn poll(pods: &LocalPods, access: &Access, pace: &Pace) -> Infallible {
    let mut backoff = Backoff::new([pace.retry[0], pace.poll.max(pace.retry[1])]);
    loop {
        let Err(failure) = go_on(pods, access, pace, &mut backoff).await;
        pods.failed(&failure);
        tokio::time::sleep(backoff.next()).await;
    }
}

/// Runs until something fails.
async fn go_on(
    pods: &LocalPods,
    access: &Access,
    pace: &Pace,
    backoff: &mut Backoff,
) -> Result<Infallible, Failure> {
    let client = access.client()?;
    loop {
        let text = timeout(pace.request, ask(&client)).await??;
        let list = List::parse(&text)?;
        pods.begin_listing();
        list.items().for_each(|pod| {
            pods.put(pod);
        });
        pods.end_listing();
        drop(text);
        backoff.reset();
        tokio::time::sleep(pace.poll).await;
    }
}

async fn ask(client: &Client) -> Result<String, ::kube::Error> {
    let request = ::kube::core::Request::new("/pods")
        .list(&ListParams::default())
        .map_err(::kube::Error::BuildRequest)?;
    client.request_text(request).await
}
