//! One connection: TLS if configured, access control, and limits on how long it may take.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::system::uname;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

use super::fair::Places;
use super::host::is_meant;
use super::logins::Login;
use super::security::{Current, Rarely, Security};
use super::{HttpResponse, TEXT, answer, response};
use crate::ask::{Reply, Route};

/// Time for the TLS handshake, and then again for the header.
pub(super) const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a whole connection, so that no client can hold one by not reading.
const CONNECTION_TIMEOUT: Duration = Duration::from_mins(1);
/// Bytes of a header, including the request line.
const HEADER_BYTES: usize = 16 * 1024;
const HEADERS: usize = 64;
/// Connections without a request yet.
pub(super) const SILENT_MAX: usize = 64;

/// What all connections share.
pub(super) struct Common {
    pub security: Arc<Security>,
    pub offers_protobuf: bool,
    /// Permits for requests being answered.
    pub requests: Arc<Semaphore>,
    pub places: Places,
    pub refused: Rarely,
    pub failed: Rarely,
}

/// Connections whose request has not arrived yet, the oldest first.
#[derive(Default)]
pub(super) struct Silent(VecDeque<Waiting>);

struct Waiting {
    from: IpAddr,
    has_asked: Arc<AtomicBool>,
    connection: AbortHandle,
}

impl Silent {
    /// If there are too many, one is closed: the oldest from the address that has the most. So a
    /// client that sends nothing cannot keep others out.
    pub(super) fn push(
        &mut self,
        from: IpAddr,
        has_asked: Arc<AtomicBool>,
        connection: AbortHandle,
    ) {
        self.0.retain(|waiting| {
            !waiting.connection.is_finished() && !waiting.has_asked.load(Ordering::Relaxed)
        });
        self.0.push_back(Waiting { from, has_asked, connection });
        if self.0.len() > SILENT_MAX
            && let Some(excess) = self.excess().and_then(|index| self.0.remove(index))
        {
            excess.connection.abort();
        }
    }

    /// Which one to close.
    fn excess(&self) -> Option<usize> {
        let mut counts = HashMap::<_, usize>::new();
        for waiting in &self.0 {
            *counts.entry(waiting.from).or_default() += 1;
        }
        let (most, _) = counts.into_iter().max_by_key(|(_, count)| *count)?;
        self.0.iter().position(|waiting| waiting.from == most)
    }
}

/// Serves one connection; `has_asked` is set once its request has arrived.
pub(super) async fn serve_one<H, F>(
    stream: TcpStream,
    from: SocketAddr,
    shared: Arc<Common>,
    has_asked: Arc<AtomicBool>,
    handler: H,
) where
    H: Fn(Route) -> F + Clone,
    F: Future<Output = Reply>,
{
    let connection = async {
        let current = shared.security.current().await;
        let is_local = stream.local_addr().is_ok_and(|at| at.ip().to_canonical().is_loopback());
        let service =
            Service { current: &current, from, is_local, shared: &shared, has_asked, handler };
        let Some(tls) = current.tls() else { return service.http(stream, false).await };
        let handshake = async {
            let mut first = [0];
            match stream.peek(&mut first).await {
                // As with a probe that only connects.
                Ok(0) | Err(_) => return None,
                // In a handshake it is 0x16, in HTTP the first letter of the method.
                Ok(_) if first[0].is_ascii_uppercase() => {
                    return Some(Ok(Handshake::Plain(stream)));
                }
                Ok(_) => {}
            }
            let accepted = TlsAcceptor::from(Arc::clone(tls)).accept(stream).await;
            Some(accepted.map(Handshake::Tls))
        };
        match tokio::time::timeout(HEADER_TIMEOUT, handshake).await {
            Ok(Some(Ok(Handshake::Tls(stream)))) => service.http(stream, false).await,
            Ok(Some(Ok(Handshake::Plain(stream)))) => service.http(stream, true).await,
            Ok(Some(Err(error))) => {
                shared.failed.warn(|| format!("TLS handshake with {from}: {error}"));
            }
            Ok(None) => log::debug!("{from} left before a TLS handshake"),
            Err(_) => log::debug!("TLS handshake with {from}: over {HEADER_TIMEOUT:?}"),
        }
    };
    if tokio::time::timeout(CONNECTION_TIMEOUT, connection).await.is_err() {
        log::debug!("HTTP connection: over {CONNECTION_TIMEOUT:?}");
    }
}

enum Handshake<T> {
    Tls(T),
    Plain(TcpStream),
}

struct Service<'a, H> {
    current: &'a Current,
    from: SocketAddr,
    /// Whether it came to a loopback address.
    is_local: bool,
    shared: &'a Common,
    has_asked: Arc<AtomicBool>,
    handler: H,
}

impl<H, F> Service<'_, H>
where
    H: Fn(Route) -> F + Clone,
    F: Future<Output = Reply>,
{
    /// `is_misplaced`: plain HTTP on a TLS port.
    async fn http(&self, stream: impl AsyncRead + AsyncWrite + Unpin, is_misplaced: bool) {
        // Held until the end of the connection, which carries one request.
        let (place, permit) = (OnceLock::new(), OnceLock::new());
        let service = service_fn(|request| async {
            self.has_asked.store(true, Ordering::Relaxed);
            let refusal =
                if is_misplaced { Some(misplaced()) } else { self.refuse(&request).await };
            let mut answer = if let Some(refusal) = refusal {
                refusal
            } else {
                // Probes are answered at once.
                if !request.uri().path().starts_with("/-/") {
                    let taken = self.shared.places.take(self.from.ip()).await;
                    place.get_or_init(|| taken);
                }
                // The semaphore is never closed.
                let acquired = Arc::clone(&self.shared.requests).acquire_owned().await;
                permit.get_or_init(|| acquired.ok());
                answer(request, self.shared.offers_protobuf, self.handler.clone()).await?
            };
            for (name, value) in self.current.headers() {
                answer.headers_mut().entry(name).or_insert_with(|| value.clone());
            }
            Ok::<_, Infallible>(answer)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(HEADER_BYTES)
            .max_headers(HEADERS)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = connection.await {
            log::debug!("HTTP connection with {}: {error}", self.from);
        }
    }

    /// The refusal of a request, if it is not allowed.
    async fn refuse(&self, request: &Request<Incoming>) -> Option<HttpResponse> {
        let security = &self.shared.security;
        if !security.admits(self.current) {
            let status = StatusCode::TOO_MANY_REQUESTS;
            return Some(response(status, TEXT, "over the rate limit\n"));
        }
        let users = self.current.users();
        if users.is_empty() {
            let is_open = self.is_local && self.current.tls().is_none();
            let is_meant = || is_meant(request, &uname().nodename().to_string_lossy());
            return (is_open && !is_meant()).then(misdirected);
        }
        let header = request.headers().get(AUTHORIZATION);
        match security.logins.check(users, header, self.from.ip()).await {
            Login::Right => None,
            Login::Wrong => {
                self.shared.refused.warn(|| format!("login refused: {}", self.from));
                let mut refusal = response(StatusCode::UNAUTHORIZED, TEXT, "unauthorized\n");
                let challenge = HeaderValue::from_static("Basic realm=\"finrace\"");
                refusal.headers_mut().insert(WWW_AUTHENTICATE, challenge);
                Some(refusal)
            }
            Login::Busy => {
                let status = StatusCode::SERVICE_UNAVAILABLE;
                Some(response(status, TEXT, "too many logins at a time from there\n"))
            }
        }
    }
}

fn misdirected() -> HttpResponse {
    let text = "this is not the host that the request names: ask for localhost, for the address, or for the \
                host's own name, or set passwords or TLS by --web.config.file\n";
    response(StatusCode::MISDIRECTED_REQUEST, TEXT, text)
}

fn misplaced() -> HttpResponse {
    let text = "this is an HTTPS port, and the request was HTTP\n";
    response(StatusCode::BAD_REQUEST, TEXT, text)
}

#[cfg(test)]
mod tests;
