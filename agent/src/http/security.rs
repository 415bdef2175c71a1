//! What `--web.config.file` asks for at the moment: the files are read again for each connection, so
//! that a new certificate or password needs no restart.
//!
//! Note that a file that is broken, or that would ask for less than before (no TLS, no passwords, no
//! client certificates), changes nothing while the agent runs. A file that is being written is briefly
//! one of the two, and must neither open a door nor end the scrapes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as StdMutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hyper::header::{HeaderName, HeaderValue};
use rustls::ServerConfig;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::config::{self, ClientAuth, Pem, RateLimit, WebConfig};
use super::logins::Logins;
use super::tls::{self, Pems};

/// Maximum size of such a file.
const FILE_MAX: u64 = 1 << 20;

/// The configuration that applies to a connection.
#[derive(Default)]
pub(super) struct Current {
    config: WebConfig,
    tls: Option<Arc<ServerConfig>>,
    /// What it was made from, to detect a change.
    text: String,
    pems: Option<Pems>,
}

/// The security of the HTTP side, with what it remembers.
pub struct Security {
    /// None: plain HTTP for everybody.
    path: Option<PathBuf>,
    state: Mutex<State>,
    pub(super) logins: Logins,
    bucket: StdMutex<Option<TokenBucket>>,
}

struct State {
    current: Arc<Current>,
    /// Why the files as they are do not apply, for as long as they do not.
    problem: Option<String>,
}

impl Security {
    /// Loads the file, if there is one.
    pub fn load(path: Option<&Path>) -> Result<Self> {
        let current = match path {
            Some(path) => read(path, None).with_context(|| path.display().to_string())?,
            None => None,
        };
        Ok(Self {
            path: path.map(Path::to_owned),
            state: Mutex::new(State {
                current: Arc::new(current.unwrap_or_default()),
                problem: None,
            }),
            logins: Logins::default(),
            bucket: StdMutex::new(None),
        })
    }

    /// `http` or `https`, at present.
    pub async fn scheme(&self) -> &'static str {
        if self.state.lock().await.current.tls.is_some() { "https" } else { "http" }
    }

    /// Whether passwords are required, and nothing hides them in transit.
    pub async fn shows_passwords(&self) -> bool {
        let current = &self.state.lock().await.current;
        !current.config.users.is_empty() && current.tls.is_none()
    }

    /// The configuration for the next connection.
    pub(super) async fn current(&self) -> Arc<Current> {
        let mut state = self.state.lock().await;
        let Some(path) = self.path.clone() else { return Arc::clone(&state.current) };
        let before = Arc::clone(&state.current);
        let reading = tokio::task::spawn_blocking(move || read(&path, Some(&before))).await;
        match reading.context("reading it").flatten() {
            Ok(changed) => {
                let was_broken = state.problem.take().is_some();
                if let Some(changed) = changed {
                    self.logins.keep(&changed.config.users);
                    state.current = Arc::new(changed);
                }
                if was_broken {
                    log::warn!("--web.config.file holds again");
                }
            }
            Err(error) => {
                let problem = format!("{error:#}");
                if state.problem.as_ref() != Some(&problem) {
                    log::error!("--web.config.file: {problem}; what held before still holds");
                    state.problem = Some(problem);
                }
            }
        }
        Arc::clone(&state.current)
    }

    /// Whether the rate limit lets a request through now.
    pub(super) fn admits(&self, current: &Current) -> bool {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(limit) = current.config.rate_limit else {
            *bucket = None;
            return true;
        };
        let now = Instant::now();
        let known = bucket.take_if(|bucket| bucket.limit == limit);
        let bucket = bucket.insert(known.unwrap_or(TokenBucket { limit, full: now }));
        bucket.take(now)
    }
}

impl Current {
    pub(super) fn tls(&self) -> Option<&Arc<ServerConfig>> {
        self.tls.as_ref()
    }

    pub(super) fn users(&self) -> &BTreeMap<String, String> {
        &self.config.users
    }

    pub(super) fn headers(&self) -> &[(HeaderName, HeaderValue)] {
        &self.config.headers
    }

    /// Checks that it asks for no less than `before` did, in each respect.
    fn is_no_weaker(&self, before: &Self) -> Result<()> {
        let client = |current: &Self, asks: fn(ClientAuth) -> bool| {
            current.config.tls.as_ref().is_some_and(|tls| asks(tls.client_auth))
        };
        let is_kept = |asks: fn(ClientAuth) -> bool| client(self, asks) >= client(before, asks);
        let names = |current: &Self| {
            current.config.tls.as_ref().is_some_and(|tls| !tls.client_allowed_sans.is_empty())
        };
        for (what, holds) in [
            ("TLS", self.tls.is_some() >= before.tls.is_some()),
            ("basic_auth_users", self.config.users.is_empty() <= before.config.users.is_empty()),
            ("client_auth_type", is_kept(ClientAuth::requires) && is_kept(ClientAuth::verifies)),
            ("client_allowed_sans", names(self) >= names(before)),
        ] {
            ensure!(holds, "{what} asks for less than before: that takes a restart");
        }
        Ok(())
    }
}

/// None: same as `before`.
fn read(path: &Path, before: Option<&Current>) -> Result<Option<Current>> {
    let text = String::from_utf8(contents(path)?).context("no UTF-8")?;
    let directory = path.parent().unwrap_or(Path::new(""));
    let config = config::parse(&text, directory)?;
    let pems = match &config.tls {
        Some(tls) => Some(Pems {
            certificate: pem(&tls.certificate)?,
            key: pem(&tls.key)?,
            client_ca: tls.client_ca.as_ref().map(pem).transpose()?,
        }),
        None => None,
    };
    if before.is_some_and(|before| before.text == text && before.pems == pems) {
        return Ok(None);
    }
    let tls = match (&config.tls, &pems) {
        (Some(tls), Some(pems)) => Some(Arc::new(tls::server_config(tls, pems)?)),
        _ => None,
    };
    let current = Current { config, tls, text, pems };
    if let Some(before) = before {
        current.is_no_weaker(before)?;
    }
    Ok(Some(current))
}

fn pem(pem: &Pem) -> Result<Vec<u8>> {
    match pem {
        Pem::File { path, .. } => contents(path).with_context(|| pem.name()),
        Pem::Inline { text, .. } => Ok(text.clone().into_bytes()),
    }
}

fn contents(path: &Path) -> Result<Vec<u8>> {
    // Reading a pipe would block.
    ensure!(std::fs::metadata(path)?.is_file(), "no regular file");
    let mut bytes = Vec::new();
    let length = File::open(path)?.take(FILE_MAX + 1).read_to_end(&mut bytes)?;
    ensure!(length as u64 <= FILE_MAX, "larger than {FILE_MAX} bytes");
    Ok(bytes)
}

/// A token bucket, stored as the time at which it is full again.
struct TokenBucket {
    limit: RateLimit,
    full: Instant,
}

impl TokenBucket {
    fn take(&mut self, now: Instant) -> bool {
        let full = self.full.max(now) + self.limit.interval;
        let is_room = full - now <= self.limit.interval.saturating_mul(self.limit.burst);
        if is_room {
            self.full = full;
        }
        is_room
    }
}

/// Warns at most once a minute about what any client can make go wrong.
#[derive(Default)]
pub(super) struct Rarely(StdMutex<Option<(Instant, u64)>>);

impl Rarely {
    const EACH: Duration = Duration::from_mins(1);

    pub(super) fn warn(&self, text: impl FnOnce() -> String) {
        match self.others() {
            Some(0) => log::warn!("{}", text()),
            Some(others) => log::warn!("{} (and {others} others since the last one told)", text()),
            None => {}
        }
    }

    /// How many others there were since the last warning, if the next one is due.
    fn others(&self) -> Option<u64> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        match &mut *last {
            Some((said, others)) if now - *said < Self::EACH => {
                *others += 1;
                None
            }
            last => Some(last.replace((now, 0)).map_or(0, |(_, others)| others)),
        }
    }
}

#[cfg(test)]
mod tests;
