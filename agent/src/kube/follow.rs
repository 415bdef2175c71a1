//! Lists objects of an API server and watches them change, for as long as the agent runs.
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes>

use std::convert::Infallible;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::pin::pin;
use std::time::Duration;

use ::kube::Client;
use ::kube::core::WatchEvent;
use ::kube::core::params::{ListParams, WatchParams};
use futures_util::TryStreamExt as _;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout};

use super::Pace;
use super::access::Access;
use super::feed::{Failure, Feed, Reason};
use crate::memory;

/// Objects per page; a page is held in memory as text.
const PAGE: u32 = 100;
/// A watch ends after at most this long, and is started again: less than the five minutes that kube allows.
const WATCH_SECS: u32 = 290;
/// At most this much less, at random, so that a fleet's agents do not all start again at once.
const WATCH_SECS_LESS: u32 = 50;
/// After this many failures in a row everything is listed again, whatever the errors were.
const LIST_AFTER: u32 = 3;

/// Which objects to follow.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    pub path: &'static str,
    pub fields: Option<String>,
    /// Few enough to be listed from the server's memory, in one piece. For pages, a server reads its
    /// database.
    pub is_small: bool,
}

/// Waits longer and longer.
#[derive(Debug)]
pub(super) struct Backoff {
    range: [Duration; 2],
    failures: u32,
}

impl Backoff {
    pub(super) fn new(range: [Duration; 2]) -> Self {
        Self { range, failures: 0 }
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    pub(super) fn next(&mut self) -> Duration {
        let [least, most] = self.range;
        let full = least.saturating_mul(1 << self.failures.min(16)).min(most);
        self.failures = self.failures.saturating_add(1);
        full.mul_f64(1.0 - f64::from(chance()) / f64::from(u32::MAX) / 2.0)
    }
}

/// A random number.
fn chance() -> u32 {
    // Each state has keys of its own.
    RandomState::new().hash_one(()) as u32
}

/// Where to continue.
#[derive(Debug, Default)]
struct Position {
    /// Watch from here; list if there is none.
    version: Option<String>,
    /// Whether the server's memory was once too old.
    is_strict: bool,
}

/// What is followed, where it comes from, and where it goes.
pub(super) struct Follower<'a, K, V> {
    pub feed: &'a Feed<K, V>,
    pub access: &'a Access,
    pub selection: Selection,
    pub pace: Pace,
}

impl<K: Clone + Eq + Hash, V: Clone> Follower<'_, K, V> {
    pub(super) async fn follow(&self) -> Infallible {
        let mut backoff = Backoff::new(self.pace.retry);
        let mut position = Position::default();
        loop {
            let Err(failure) = self.go_on(&mut position, &mut backoff).await;
            self.feed.failed(&failure);
            let pause = backoff.next();
            if failure.reason == Reason::Gone {
                position = Position { version: None, is_strict: true };
            } else if backoff.failures >= LIST_AFTER {
                position.version = None;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Runs until something fails.
    async fn go_on(
        &self,
        position: &mut Position,
        backoff: &mut Backoff,
    ) -> Result<Infallible, Failure> {
        let client = self.access.client()?;
        loop {
            let version = if let Some(version) = position.version.take() {
                version
            } else {
                let version = self.list(&client, position.is_strict).await?;
                position.is_strict = false;
                version
            };
            let version = position.version.insert(version);
            let begun = Instant::now();
            self.watch(&client, version, backoff).await?;
            // A server that ends each watch immediately is not asked more often than one that fails.
            tokio::time::sleep_until(begun + self.pace.retry[0]).await;
        }
    }

    /// Returns the version to watch from.
    async fn list(&self, client: &Client, is_strict: bool) -> Result<String, Failure> {
        let Selection { path, fields, is_small } = &self.selection;
        let mut params = ListParams { field_selector: fields.clone(), ..ListParams::default() };
        params = if *is_small && !is_strict { params.at("0") } else { params.limit(PAGE) };
        self.feed.begin_listing();
        loop {
            let request = ::kube::core::Request::new(*path)
                .list(&params)
                .map_err(::kube::Error::BuildRequest)?;
            let text = timeout(self.pace.request, client.request_text(request)).await??;
            let list = List::parse(&text)?;
            for object in list.items() {
                self.feed.put(object);
            }
            match list.metadata.next.filter(|next| !next.is_empty()) {
                Some(next) => params.continue_token = Some(next),
                None if list.metadata.resource_version.is_empty() => {
                    return Err(Failure::decode(anyhow::anyhow!("no resource version")));
                }
                None => {
                    self.feed.end_listing();
                    if *is_small && self.feed.objects() == 0 {
                        let fields = fields.as_deref().unwrap_or_default();
                        log::warn!("{path}: no pod with {fields}: is that this node's name?");
                    }
                    memory::give_back();
                    return Ok(list.metadata.resource_version);
                }
            }
        }
    }

    /// Watches until the server ends it.
    async fn watch(
        &self,
        client: &Client,
        version: &mut String,
        backoff: &mut Backoff,
    ) -> Result<(), Failure> {
        let Self { feed, selection, pace, .. } = self;
        let fields = selection.fields.clone();
        let params = WatchParams { field_selector: fields, ..WatchParams::default() };
        let request = ::kube::core::Request::new(selection.path)
            .watch(&params.timeout(WATCH_SECS - chance() % WATCH_SECS_LESS), version)
            .map_err(::kube::Error::BuildRequest)?;
        let events = client.request_events::<Box<RawValue>>(request);
        let mut events = pin!(timeout(pace.request, events).await??);
        feed.synced();
        loop {
            let event = match timeout(pace.silence, events.try_next()).await? {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(::kube::Error::SerdeError(error)) => {
                    feed.leave_out(&error);
                    continue;
                }
                // An object that is not an event parses as a `Status`, whose fields may all be
                // missing.
                Err(::kube::Error::Api(status)) if status.code == 0 => {
                    feed.leave_out(&"not an event");
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let now_at = match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => feed.put(object.get()),
                WatchEvent::Deleted(object) => feed.remove(object.get()),
                WatchEvent::Bookmark(bookmark) => Some(bookmark.metadata.resource_version),
                WatchEvent::Error(status) => return Err(status.into()),
            };
            if let Some(now_at) = now_at.filter(|version| !version.is_empty()) {
                *version = now_at;
                backoff.reset();
                feed.synced();
            }
        }
        backoff.reset();
        Ok(())
    }
}

#[derive(Deserialize)]
pub(super) struct List<'a> {
    kind: String,
    #[serde(default)]
    metadata: ListMetadata,
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ListMetadata {
    resource_version: String,
    #[serde(rename = "continue")]
    next: Option<String>,
}

impl<'a> List<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, Failure> {
        let list: Self = serde_json::from_str(text).map_err(Failure::decode)?;
        if list.kind.ends_with("List") {
            Ok(list)
        } else {
            Err(Failure::decode(anyhow::anyhow!("a `{}`", list.kind)))
        }
    }

    pub(super) fn items(&self) -> impl Iterator<Item = &'a str> {
        self.items.iter().flatten().map(|item| item.get())
    }
}
