//! The HTTP side of the daemon: `/`, `/api/v1/...`, `/metrics`, `/-/healthy`, `/-/ready`.
//!
//! [`security`] decides which requests are allowed; `connection` takes a connection to its request.
//!
//! Every connection carries one request: a scraper that kept connections alive would run into the
//! very race this agent is about whenever its interval matched our timeout.

mod config;
mod connection;
mod fair;
mod host;
pub mod listen;
mod logins;
mod san;
pub mod security;
mod tls;

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, ALLOW, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY,
    CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Request, Response, StatusCode};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use self::connection::{Common, SILENT_MAX, Silent, serve_one};
use self::fair::Places;
use self::security::{Rarely, Security};
use crate::ask::{Ask, Form, Reply, Route};
use crate::metrics::Format;
use crate::report::page::SECURITY_POLICY;

/// Default number of requests served at a time; further ones wait.
pub const MAX_REQUESTS: u16 = 40;

/// Connections in addition to those whose requests are being served: silent ones, logins, and
/// waiting requests. Further ones wait in the listen queue.
const WAITING_MAX: usize = 2 * SILENT_MAX;

/// Time left at shutdown for requests in progress.
const GRACE: Duration = Duration::from_secs(1);
/// Pause before the next try when no connection can be accepted, for example for lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";
const NO_PEER: &str = "there is no row of this peer: it was not seen, or has given way to others \
                       (--peers.max); / lists the worst, /api/v1/peers?limit=500 more of them\n";

/// Serves until `shutdown`, metrics also in protobuf if that is offered; then gives requests in
/// progress a second to finish.
pub async fn serve<H, F>(
    mut listeners: Vec<TcpListener>,
    max_requests: u16,
    offers_protobuf: bool,
    security: Arc<Security>,
    handler: H,
    shutdown: impl Future<Output = ()>,
) where
    H: Fn(Route) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Reply> + Send + 'static,
{
    let shared = Arc::new(Common {
        security,
        offers_protobuf,
        requests: Arc::new(Semaphore::new(max_requests.into())),
        places: Places::default(),
        refused: Rarely::default(),
        failed: Rarely::default(),
    });
    let permits = Arc::new(Semaphore::new(usize::from(max_requests) + WAITING_MAX));
    let mut connections = JoinSet::new();
    let mut silent = Silent::default();
    let unaccepted = Rarely::default();
    tokio::pin!(shutdown);
    loop {
        let next = async {
            // The semaphore is never closed.
            let permit = Arc::clone(&permits).acquire_owned().await.ok();
            (permit, accept(&mut listeners).await)
        };
        tokio::select! {
            () = &mut shutdown => break,
            (permit, accepted) = next => match accepted {
                Ok((stream, from)) => {
                    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                    let has_asked = Arc::new(AtomicBool::new(false));
                    let (shared, asked) = (Arc::clone(&shared), Arc::clone(&has_asked));
                    let connection = serve_one(stream, from, shared, asked, handler.clone());
                    let connection = connections.spawn(async move {
                        connection.await;
                        drop(permit);
                    });
                    silent.push(from.ip(), has_asked, connection);
                }
                Err(err) => {
                    unaccepted.warn(|| format!("accepting an HTTP connection: {err}"));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listeners);
    let rest = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, rest).await.is_err() {
        log::debug!("HTTP requests cut off at shutdown");
    }
}

/// Accepts the next connection from any of the listeners, which take turns.
async fn accept(listeners: &mut [TcpListener]) -> io::Result<(TcpStream, SocketAddr)> {
    if !listeners.is_empty() {
        listeners.rotate_left(1);
    }
    poll_fn(|context| {
        let mut accepted = listeners.iter().map(|listener| listener.poll_accept(context));
        accepted.find(Poll::is_ready).unwrap_or(Poll::Pending)
    })
    .await
}

/// A text, or chunks as they come.
type HttpResponse = Response<Either<Full<Bytes>, Stream>>;

struct Stream(mpsc::Receiver<Bytes>);

impl Body for Stream {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0.poll_recv(context).map(|chunk| match chunk {
            Some(chunk) if chunk.is_empty() => None,
            Some(chunk) => Some(Ok(Frame::data(chunk))),
            None => Some(Err(io::Error::other("the exposition broke off"))),
        })
    }
}

async fn answer<H, F>(
    request: Request<Incoming>,
    offers_protobuf: bool,
    handler: H,
) -> Result<HttpResponse, Infallible>
where
    H: Fn(Route) -> F,
    F: Future<Output = Reply>,
{
    let path = request.uri().path();
    let form = Form::of(path);
    if form.is_none() && !["/metrics", "/-/healthy", "/-/ready"].contains(&path) {
        return Ok(response(StatusCode::NOT_FOUND, TEXT, "not found\n"));
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut refusal = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n");
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Ok(refusal);
    }
    let format = negotiate(&list(&request, ACCEPT), offers_protobuf);
    let is_gzip = takes_gzip(&list(&request, ACCEPT_ENCODING));
    if let Some(form) = form {
        return Ok(match Ask::parse(form, request.uri().query().unwrap_or_default()) {
            Ok(ask) => page(form, handler(Route::Page(ask)).await),
            Err(problem) => response(StatusCode::BAD_REQUEST, TEXT, format!("{path}: {problem}\n")),
        });
    }
    let reply = match path {
        "/metrics" => handler(Route::Metrics { format, is_gzip }).await,
        "/-/ready" => handler(Route::Ready).await,
        _ => return Ok(response(StatusCode::OK, TEXT, "healthy\n")),
    };
    Ok(match reply {
        Reply::Metrics(chunks) => {
            let content_type = HeaderValue::from_static(format.content_type());
            let mut response = Response::new(Either::Right(Stream(chunks)));
            response.headers_mut().insert(CONTENT_TYPE, content_type);
            if is_gzip {
                let gzip = HeaderValue::from_static("gzip");
                response.headers_mut().insert(CONTENT_ENCODING, gzip);
            }
            response
        }
        Reply::Ready => response(StatusCode::OK, TEXT, "ready\n"),
        Reply::Page(_) | Reply::NoPeer | Reply::Gone => {
            response(StatusCode::SERVICE_UNAVAILABLE, TEXT, "shutting down\n")
        }
    })
}

/// The page, or a JSON form of it, with headers that restrict what a browser may do with it.
fn page(form: Form, reply: Reply) -> HttpResponse {
    let mut response = match reply {
        Reply::Page(body) => response(StatusCode::OK, form.content_type(), body),
        Reply::NoPeer => response(StatusCode::NOT_FOUND, TEXT, NO_PEER),
        Reply::Metrics(_) | Reply::Ready | Reply::Gone => {
            response(StatusCode::SERVICE_UNAVAILABLE, TEXT, "shutting down\n")
        }
    };
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, SECURITY_POLICY),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

fn response(
    status: StatusCode,
    content_type: &'static str,
    body: impl Into<Bytes>,
) -> HttpResponse {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// All headers of this name as one list: repeated headers mean the same.
fn list(request: &Request<Incoming>, name: HeaderName) -> String {
    let values = request.headers().get_all(name).iter();
    values.filter_map(|value| value.to_str().ok()).collect::<Vec<_>>().join(",")
}

/// An item of such a list.
#[derive(Debug)]
struct Item<'a> {
    /// In lower case.
    name: String,
    /// Its weight.
    q: f32,
    version: Option<&'a str>,
    /// For protobuf: the message type; `encoding` says how messages are delimited.
    proto: Option<&'a str>,
    encoding: Option<&'a str>,
}

fn items(list: &str) -> impl Iterator<Item = Item<'_>> {
    list.split(',').map(|item| {
        let mut parts = item.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let mut item = Item { name, q: 1.0, version: None, proto: None, encoding: None };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            let value = value.trim().trim_matches('"');
            match name.trim().to_ascii_lowercase().as_str() {
                "q" => item.q = value.parse().unwrap_or(0.0),
                "version" => item.version = Some(value),
                "proto" => item.proto = Some(value),
                "encoding" => item.encoding = Some(value),
                _ => {}
            }
        }
        item
    })
}

/// The format to answer an `Accept` header with: [`Format::Protobuf`] where we offer it, or
/// [`Format::OpenMetrics`], if it is requested by name, in the version we write, and no other is
/// preferred.
pub fn negotiate(accept: &str, offers_protobuf: bool) -> Format {
    let (mut protobuf, mut openmetrics, mut text): (f32, f32, f32) = (0.0, 0.0, 0.0);
    for Item { name, q, version, proto, encoding } in items(accept) {
        match (name.as_str(), version) {
            ("application/vnd.google.protobuf", None)
                if proto == Some("io.prometheus.client.MetricFamily")
                    && encoding == Some("delimited") =>
            {
                protobuf = q.max(protobuf);
            }
            ("application/openmetrics-text", None | Some("1.0.0")) => {
                openmetrics = q.max(openmetrics);
            }
            ("text/plain", None | Some("0.0.4")) | ("text/*" | "*/*", _) => text = q.max(text),
            _ => {}
        }
    }
    if offers_protobuf && protobuf > 0.0 && protobuf >= openmetrics.max(text) {
        Format::Protobuf
    } else if openmetrics > 0.0 && openmetrics >= text {
        Format::OpenMetrics
    } else {
        Format::Text004
    }
}

/// Whether an `Accept-Encoding` header asks for gzip by name.
fn takes_gzip(accept: &str) -> bool {
    items(accept).any(|Item { name, q, .. }| name == "gzip" && q > 0.0)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn formats() {
        use Format::{OpenMetrics, Protobuf, Text004};
        let check = |accept: &str, expected| {
            assert_eq!(negotiate(accept, false), expected, "{accept}");
            if !accept.contains("protobuf") {
                assert_eq!(negotiate(accept, true), expected, "{accept}");
            }
        };
        check("", Text004);
        check("*/*", Text004);
        check("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", Text004);
        check("text/plain", Text004);
        // Prometheus 2.5 to 2.30, 2.42, and 3 with and without protobuf.
        check(
            "application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            Text004,
        );
        check(
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;\
             q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            OpenMetrics,
        );
        check(
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;\
             escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            OpenMetrics,
        );
        check(
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;\
             encoding=delimited;q=0.7,application/openmetrics-text;version=1.0.0;q=0.6,\
             text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            OpenMetrics,
        );
        check("text/plain;version=0.0.4;q=1,*/*;q=0.1", Text004);
        check("Application/OpenMetrics-Text; Version=\"1.0.0\"", OpenMetrics);
        check("application/openmetrics-text;q=0", Text004);
        check("application/openmetrics-text;q=0.2,text/plain;q=0.8", Text004);
        check("application/openmetrics-text;q=x,;;,=", Text004);
        // Only if it is offered, comes first, and is the one message that we write.
        let protobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily";
        for (rest, expected) in [
            // Prometheus 2.42 with native histograms.
            (
                ";encoding=delimited,application/openmetrics-text;version=1.0.0;q=0.8,\
                 application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,\
                 */*;q=0.1",
                Protobuf,
            ),
            (";encoding=delimited", Protobuf),
            ("; encoding=\"delimited\"; q=0.5, text/plain;q=0.5", Protobuf),
            (";encoding=delimited;q=0.4,application/openmetrics-text;q=0.5", OpenMetrics),
            (";encoding=delimited;q=0", Text004),
            (";encoding=text,text/plain;q=0.5", Text004),
            ("", Text004),
            ("X;encoding=delimited", Text004),
        ] {
            assert_eq!(negotiate(&format!("{protobuf}{rest}"), true), expected, "{rest}");
        }
    }

    #[test]
    fn codings() {
        for (accept, expected) in [
            ("", false),
            ("gzip", true),
            ("deflate, gzip;q=1.0, *;q=0.5", true),
            ("GZip", true),
            ("identity", false),
            ("gzip;q=0", false),
            ("*", false),
            ("br, zstd", false),
        ] {
            assert_eq!(takes_gzip(accept), expected, "{accept}");
        }
    }

    pub(super) struct Server {
        pub(super) address: SocketAddr,
        stop: oneshot::Sender<()>,
        task: tokio::task::JoinHandle<()>,
    }

    pub(super) async fn start<H, F>(max_requests: u16, handler: H) -> Server
    where
        H: Fn(Route) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Reply> + Send + 'static,
    {
        start_with(Security::load(None).unwrap(), max_requests, handler).await
    }

    pub(super) async fn start_with<H, F>(
        security: Security,
        max_requests: u16,
        handler: H,
    ) -> Server
    where
        H: Fn(Route) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Reply> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let shutdown = async { stopped.await.unwrap_or_default() };
        let security = Arc::new(security);
        let serve = serve(vec![listener], max_requests, false, security, handler, shutdown);
        let task = tokio::spawn(serve);
        Server { address, stop, task }
    }

    pub(super) async fn agent(route: Route) -> Reply {
        let (format, is_gzip) = match route {
            Route::Metrics { format, is_gzip } => (format, is_gzip),
            Route::Page(ask) if ask.only.is_some() => return Reply::NoPeer,
            Route::Page(_) => return Reply::Page("a page".into()),
            Route::Ready => return Reply::Ready,
        };
        let (sender, chunks) = mpsc::channel(3);
        for chunk in [format!("{format:?}, "), format!("{is_gzip}\n"), String::new()] {
            sender.send(chunk.into()).await.unwrap();
        }
        Reply::Metrics(chunks)
    }

    /// Sends the request as is, and reads to the end of the connection.
    pub(super) async fn exchange(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn routes() {
        const HTML: &str = "text/html; charset=utf-8";
        const JSON: &str = "application/json";
        const LIMIT: &str = "/api/v1/peers: limit `x` is not a number from 1 to 500\n";
        let ready = start(MAX_REQUESTS, agent).await;
        let gone = start(MAX_REQUESTS, |_| async { Reply::Gone }).await;
        let openmetrics = "accept: application/openmetrics-text; version=1.0.0\r\n";
        let two = "accept: text/plain;q=0.5\r\naccept: application/openmetrics-text;q=0.9\r\n\
                   accept-encoding: deflate\r\naccept-encoding: gzip;q=0.5\r\n";
        let gzip = "accept-encoding: gzip, deflate\r\n";
        let (older, newer) = (Format::Text004.content_type(), Format::OpenMetrics.content_type());
        let cases = [
            (&ready, "GET /metrics", "", 200, older, "9\r\nText004, \r\n6\r\nfalse\n\r\n0\r\n\r\n"),
            (
                &ready,
                "GET /metrics?a=b",
                gzip,
                200,
                older,
                "9\r\nText004, \r\n5\r\ntrue\n\r\n0\r\n\r\n",
            ),
            (
                &ready,
                "GET /metrics",
                openmetrics,
                200,
                newer,
                "D\r\nOpenMetrics, \r\n6\r\nfalse\n\r\n0\r\n\r\n",
            ),
            (
                &ready,
                "GET /metrics",
                two,
                200,
                newer,
                "D\r\nOpenMetrics, \r\n5\r\ntrue\n\r\n0\r\n\r\n",
            ),
            (&ready, "HEAD /metrics", "", 200, older, ""),
            (&ready, "POST /metrics", "", 405, TEXT, "only GET and HEAD\n"),
            (&ready, "GET /-/healthy", "", 200, TEXT, "healthy\n"),
            (&ready, "GET /-/ready", "", 200, TEXT, "ready\n"),
            (&gone, "GET /metrics", "", 503, TEXT, "shutting down\n"),
            (&ready, "GET /", "", 200, HTML, "a page"),
            (&ready, "HEAD /?limit=9", "", 200, HTML, ""),
            (&ready, "POST /", "", 405, TEXT, "only GET and HEAD\n"),
            (&ready, "GET /api/v1/status", "", 200, JSON, "a page"),
            (&ready, "GET /api/v1/peers?limit=9", "", 200, JSON, "a page"),
            (&ready, "GET /api/v1/events", "", 200, JSON, "a page"),
            (&ready, "GET /?netns=1&peer=10.0.0.5:80", "", 404, TEXT, NO_PEER),
            (&ready, "GET /api/v1/peers?limit=x", "", 400, TEXT, LIMIT),
            (&gone, "GET /", "", 503, TEXT, "shutting down\n"),
            (&ready, "GET /api/v1", "", 404, TEXT, "not found\n"),
            (&ready, "GET /nothing", "", 404, TEXT, "not found\n"),
            (&ready, "DELETE /nothing", "", 404, TEXT, "not found\n"),
        ];
        for (server, line, headers, status, content_type, body) in cases {
            let request = format!("{line} HTTP/1.1\r\nhost: a\r\n{headers}\r\n");
            let answer = exchange(server.address, &request).await;
            let (head, rest) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{line}: {head}");
            assert!(head.contains(&format!("content-type: {content_type}\r\n")), "{line}: {head}");
            assert!(head.contains("connection: close"), "{line}: {head}");
            assert_eq!(head.contains("allow: GET, HEAD"), status == 405, "{line}: {head}");
            let is_gzip = head.contains("content-encoding: gzip");
            assert_eq!(is_gzip, headers.contains("gzip"), "{line}: {head}");
            assert_eq!(rest, body, "{line}");
            let is_page =
                line.contains(" /api/v1/") || line.contains(" /?") || line.ends_with(" /");
            let is_page = is_page && ![405, 400].contains(&status);
            for header in [
                "cache-control: no-store",
                "referrer-policy: no-referrer",
                "content-security-policy: default-src 'none'; style-src 'sha256-",
                "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            ] {
                assert_eq!(head.contains(header), is_page, "{line}: {head}");
            }
            let is_guarded = head.contains("x-content-type-options: nosniff");
            assert!(is_guarded || line.contains("/metrics"), "{line}: {head}");
        }
    }

    #[tokio::test]
    async fn what_broke_off_has_no_end() {
        let server = start(MAX_REQUESTS, |_| async {
            let (sender, chunks) = mpsc::channel(1);
            sender.send("half ".into()).await.unwrap();
            Reply::Metrics(chunks)
        })
        .await;
        let answer = exchange(server.address, "GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
    }

    #[tokio::test]
    async fn nonsense_is_refused() {
        let server = start(MAX_REQUESTS, agent).await;
        let answer = exchange(server.address, "\u{1}\u{2}\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }

    #[tokio::test]
    async fn a_request_under_way_is_answered_at_shutdown() {
        let (asked, mut was_asked) = mpsc::channel(1);
        let gate = Arc::new(Semaphore::new(0));
        let waiting = Arc::clone(&gate);
        let server = start(MAX_REQUESTS, move |_| {
            let (asked, waiting) = (asked.clone(), Arc::clone(&waiting));
            async move {
                asked.send(()).await.unwrap();
                drop(waiting.acquire().await);
                Reply::Ready
            }
        })
        .await;
        let request = "GET /-/ready HTTP/1.1\r\nhost: a\r\n\r\n";
        let exchange = tokio::spawn(exchange(server.address, request));
        was_asked.recv().await.unwrap();
        server.stop.send(()).unwrap();
        tokio::task::yield_now().await;
        gate.add_permits(1);
        assert!(exchange.await.unwrap().starts_with("HTTP/1.1 200 "));
        server.task.await.unwrap();
        assert!(TcpStream::connect(server.address).await.is_err());
    }
}
