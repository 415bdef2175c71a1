//! What a running agent can be asked, and the path from the HTTP side to the event loop and back.

use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use finrace_logic::peer::Peer;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::metrics::Format;

/// Answers written at a time: each holds on to what it was lent. Further ones wait.
const AT_A_TIME: usize = 2;

/// What only the agent can answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    Metrics {
        format: Format,
        is_gzip: bool,
    },
    /// The status page, or a JSON form of what it shows.
    Page(Ask),
    Ready,
}

/// The agent's answer.
#[derive(Debug)]
pub enum Reply {
    /// The exposition, in the requested format: chunks, of which the last is empty. If that one does
    /// not come, neither does the end of the answer.
    Metrics(mpsc::Receiver<Bytes>),
    /// The requested page or JSON form.
    Page(Bytes),
    /// There is no row for the requested peer.
    NoPeer,
    /// The programs are attached: otherwise there would be no answer.
    Ready,
    /// The agent is shutting down.
    Gone,
}

/// Number of peers, or events, in an answer.
pub(crate) const LIMIT: u16 = 50;
pub(crate) const LIMIT_MAX: u16 = 500;

/// What is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Page,
    Status,
    Peers,
    Events,
}

impl Form {
    pub fn of(path: &str) -> Option<Self> {
        match path {
            "/" => Some(Self::Page),
            "/api/v1/status" => Some(Self::Status),
            "/api/v1/peers" => Some(Self::Peers),
            "/api/v1/events" => Some(Self::Events),
            _ => None,
        }
    }

    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Page => "text/html; charset=utf-8",
            Self::Status | Self::Peers | Self::Events => "application/json",
        }
    }
}

/// What is requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    pub form: Form,
    /// Maximum number of peers, or events.
    pub limit: u16,
    /// Only this peer, in one network namespace; it may have a row for each owner.
    pub only: Option<(u32, Peer)>,
}

impl Ask {
    /// Parses the query of a URL.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(form: Form, query: &str) -> Result<Self, String> {
        let mut limit = LIMIT;
        let (mut peer, mut netns) = (None, None);
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let value = decoded(value);
            match name {
                "limit" => {
                    let number = value.parse().ok().filter(|n| (1..=LIMIT_MAX).contains(n));
                    limit = number.ok_or_else(|| {
                        format!("limit `{value}` is not a number from 1 to {LIMIT_MAX}")
                    })?;
                }
                "peer" => {
                    peer = Some(Peer::parse(&value).ok_or_else(|| {
                        format!(
                            "peer `{value}` is neither like 10.0.0.5:8080 nor like \
                             `:8080 from 10.0.0.9`"
                        )
                    })?);
                }
                "netns" => {
                    netns = Some(value.parse().map_err(|_not_a_number| {
                        format!("netns `{value}` is not the number of a network namespace")
                    })?);
                }
                _ => return Err(format!("`{name}` is not one of limit, peer, netns")),
            }
        }
        let only = match (peer, netns) {
            (Some(peer), Some(netns)) => Some((netns, peer)),
            (None, None) => None,
            (Some(_), None) => return Err("peer needs netns: peers are told apart by both".into()),
            (None, Some(_)) => return Err("netns needs peer: peers are told apart by both".into()),
        };
        Ok(Self { form, limit, only })
    }
}

/// The HTTP side's end: asks the event loop.
#[derive(Clone, Debug)]
pub struct Asking {
    requests: mpsc::Sender<Request>,
    pub(crate) scrapes: Arc<Semaphore>,
    /// One at a time, so that constant reloading of a page never delays a scrape.
    pages: Arc<Semaphore>,
}

/// A request to the event loop, with the channel for its reply.
#[derive(Debug)]
pub struct Request {
    pub route: Route,
    reply: oneshot::Sender<Reply>,
    /// Held for a scrape or a page until it is written.
    permit: Option<OwnedSemaphorePermit>,
}

/// Both ends, with room for `max` requests.
pub fn requests(max: usize) -> (Asking, mpsc::Receiver<Request>) {
    let (requests, receiver) = mpsc::channel(max);
    let [scrapes, pages] = [AT_A_TIME, 1].map(|permits| Arc::new(Semaphore::new(permits)));
    (Asking { requests, scrapes, pages }, receiver)
}

impl Asking {
    pub async fn ask(self, route: Route) -> Reply {
        let permit = match route {
            Route::Metrics { .. } => self.scrapes.acquire_owned().await.ok(),
            Route::Page(_) => self.pages.acquire_owned().await.ok(),
            Route::Ready => None,
        };
        let (reply, answer) = oneshot::channel();
        if self.requests.send(Request { route, reply, permit }).await.is_err() {
            return Reply::Gone;
        }
        answer.await.unwrap_or(Reply::Gone)
    }

    /// Waits until nothing is being written.
    pub async fn end(self) {
        // The semaphores are never closed.
        drop(self.scrapes.acquire_many(AT_A_TIME as u32).await);
        drop(self.pages.acquire().await);
    }
}

impl Request {
    /// Takes the permit, which must be kept until the answer is written.
    pub fn take_permit(&mut self) -> Option<OwnedSemaphorePermit> {
        self.permit.take()
    }

    pub fn answer(self, reply: Reply) {
        if self.reply.send(reply).is_err() {
            log::debug!("an HTTP client left before its answer");
        }
    }
}

/// A query value, with `+` and `%3A` replaced by what they stand for.
pub(crate) fn decoded(value: &str) -> String {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let digits = after.split_first_chunk().filter(|_| *byte == b'%');
        let decoded = digits.and_then(|(digits, after)| Some((hex(*digits)?, after)));
        let plain = if *byte == b'+' { b' ' } else { *byte };
        let (byte, after) = decoded.unwrap_or((plain, after));
        bytes.push(byte);
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn hex(digits: [u8; 2]) -> Option<u8> {
    let [high, low] = digits.map(|digit| char::from(digit).to_digit(16));
    u8::try_from(high? * 16 + low?).ok()
}

/// Encodes a value for a query.
pub(crate) fn encoded(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b' ' => text.push('+'),
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'.' | b':' => text.push(byte.into()),
            // Writing to a String does not fail.
            _ => write!(text, "%{byte:02X}").unwrap_or_default(),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        for (value, expected) in [
            ("10.0.0.5:80", "10.0.0.5:80"),
            (":80+from+10.0.0.9", ":80 from 10.0.0.9"),
            ("%3a80%20from%20%5B", ":80 from ["),
            ("%", "%"),
            ("%4", "%4"),
            ("%zz%41", "%zzA"),
            ("%ff", "\u{fffd}"),
        ] {
            assert_eq!(decoded(value), expected);
            assert_eq!(decoded(&encoded(expected)), expected);
        }
        assert_eq!(encoded("[::1]:80&\"<"), "%5B::1%5D:80%26%22%3C");
    }
}
