//! A small API server and kubelet: lists in pages, watches, bookmarks, `410 Gone`, rights, tokens,
//! and whatever else may go wrong with one.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

pub(crate) const PODS: &str = "/api/v1/pods";
pub(crate) const SERVICES: &str = "/api/v1/services";

/// What the server has, and how it behaves.
#[derive(Default)]
pub(crate) struct World {
    objects: BTreeMap<(String, String), Value>,
    version: u64,
    /// Path, version and line of each change.
    log: Vec<(String, u64, String)>,
    /// Continuing from a version before this is too late.
    pub(crate) oldest: u64,
    /// Whether such a watch is refused outright, or told in its stream.
    pub(crate) is_gone_an_answer: bool,
    /// Any other token is refused.
    pub(crate) token: Option<String>,
    /// Paths that must not be read, and which way: `list` or `watch`.
    pub(crate) forbidden: Vec<(&'static str, &'static str)>,
    /// Requests are accepted and not answered.
    pub(crate) is_silent: bool,
    /// A list in pages is too old after its first page.
    pub(crate) expires_after_a_page: bool,
    /// Replaces the text of every list.
    pub(crate) list: Option<String>,
    /// Changing this ends every watch.
    watches: u64,
    /// In the order of arrival.
    pub(crate) requests: Vec<String>,
}

impl World {
    pub(crate) fn put(&mut self, path: &str, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
        let key = (path.to_owned(), name);
        let kind = if self.objects.contains_key(&key) { "MODIFIED" } else { "ADDED" };
        self.tell(path, kind, &object);
        self.objects.insert(key, object);
    }

    pub(crate) fn delete(&mut self, path: &str, name: &str) {
        let key = (path.to_owned(), name.to_owned());
        let mut object = self.objects.remove(&key).expect("an object");
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.tell(path, "DELETED", &object);
    }

    /// No watcher hears of it.
    pub(crate) fn delete_unseen(&mut self, path: &str, name: &str) {
        self.delete(path, name);
        self.log.pop();
    }

    pub(crate) fn bookmark(&mut self, path: &str) {
        self.version += 1;
        let version = self.version.to_string();
        let object = json!({"kind": "Pod", "apiVersion": "v1",
            "metadata": {"resourceVersion": version, "creationTimestamp": null}});
        self.tell(path, "BOOKMARK", &object);
    }

    /// Sends a line to all watchers.
    pub(crate) fn say(&mut self, path: &str, line: &str) {
        self.version += 1;
        self.log.push((path.to_owned(), self.version, format!("{line}\n")));
    }

    fn tell(&mut self, path: &str, kind: &str, object: &Value) {
        let line = event(kind, object);
        self.log.push((path.to_owned(), self.version, line));
    }

    /// Ends watches as a server does after some minutes.
    pub(crate) fn end_watches(&mut self) {
        self.watches += 1;
    }

    /// Makes every change so far too old to continue from.
    pub(crate) fn compact(&mut self) {
        self.version += 1;
        self.oldest = self.version;
    }

    pub(crate) fn count(&self, part: &str) -> usize {
        self.requests.iter().filter(|request| request.contains(part)).count()
    }
}

pub(crate) struct Server {
    world: Arc<Mutex<World>>,
    changed: Arc<watch::Sender<()>>,
    pub(crate) address: SocketAddr,
    running: Option<JoinHandle<()>>,
}

/// The server's side of TLS, or nothing.
pub(crate) trait Accept: Clone + Send + 'static {
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;
    fn accept(
        self,
        stream: tokio::net::TcpStream,
    ) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

#[derive(Clone)]
pub(crate) struct Plain;

impl Accept for Plain {
    type Stream = tokio::net::TcpStream;
    async fn accept(self, stream: tokio::net::TcpStream) -> io::Result<Self::Stream> {
        Ok(stream)
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_over(Plain).await
    }

    pub(crate) async fn start_over(accept: impl Accept) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut server = Self {
            world: Arc::default(),
            changed: Arc::new(watch::Sender::new(())),
            address,
            running: None,
        };
        server.run(listener, accept);
        server
    }

    fn run(&mut self, listener: TcpListener, accept: impl Accept) {
        let (world, changed) = (Arc::clone(&self.world), Arc::clone(&self.changed));
        self.running = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (world, changed) = (Arc::clone(&world), Arc::clone(&changed));
                let accept = accept.clone();
                connections.spawn(async move {
                    let Ok(stream) = accept.accept(stream).await else { return };
                    let service = service_fn(move |request| {
                        answer(request, Arc::clone(&world), Arc::clone(&changed))
                    });
                    let io = TokioIo::new(stream);
                    http1::Builder::new().serve_connection(io, service).await.unwrap_or_default();
                });
            }
        }));
    }

    /// Without a word: its connections break off, and new ones are refused.
    pub(crate) async fn stop(&mut self) {
        let running = self.running.take().expect("a server that runs");
        running.abort();
        running.await.unwrap_or_default();
    }

    /// Starts again at the same address.
    pub(crate) fn restart(&mut self) {
        let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
        socket.set_reuseaddr(true).expect("an address that is used again");
        socket.bind(self.address).expect("the same port");
        self.run(socket.listen(16).expect("a port"), Plain);
    }

    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        let result = change(&mut self.world());
        self.changed.send_replace(());
        result
    }

    /// Waits until the server has seen what is expected.
    pub(crate) async fn until(&self, mut is_so: impl FnMut(&World) -> bool) {
        let mut changes = self.changed.subscribe();
        while !is_so(&self.world()) {
            super::in_time(changes.changed()).await.expect("a server");
        }
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("a world")
    }
}

/// A stream of lines for a watch.
struct Lines(mpsc::UnboundedReceiver<Bytes>);

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|line| line.map(|line| Ok(Frame::data(line))))
    }
}

type Answer = Response<Either<Full<Bytes>, Lines>>;

/// In the order of a real server: the type first.
fn event(kind: &str, object: &Value) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

fn text(code: u16, text: String) -> Answer {
    let body = Either::Left(Full::new(text.into()));
    Response::builder().status(code).body(body).expect("an answer")
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("it is {reason}"), "reason": reason, "code": code})
}

fn refuse(code: u16, reason: &str) -> Answer {
    text(code, status(code, reason).to_string())
}

async fn answer(
    request: Request<Incoming>,
    world: Arc<Mutex<World>>,
    changed: Arc<watch::Sender<()>>,
) -> Result<Answer, Infallible> {
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let parameter = |name: &str| {
        let value = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        value.map(|value| value.replace("%3D", "=").replace("%2C", ",").replace("%21", "!"))
    };
    let token = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    let is_watch = parameter("watch").is_some();
    let verb = if is_watch { "watch" } else { "list" };
    let is_silent = {
        let mut world = world.lock().expect("a world");
        world.requests.push(format!("{verb} {path}?{query}"));
        changed.send_replace(());
        let token = token.and_then(|token| token.strip_prefix("Bearer "));
        if world.token.is_some() && world.token.as_deref() != token {
            return Ok(refuse(401, "Unauthorized"));
        }
        if world.forbidden.contains(&(verb, path.as_str())) {
            return Ok(refuse(403, "Forbidden"));
        }
        world.is_silent
    };
    if is_silent {
        std::future::pending::<()>().await;
    }
    let fields = parameter("fieldSelector");
    let version = parameter("resourceVersion").and_then(|version| version.parse().ok());
    if is_watch {
        return Ok(watching(&path, version.unwrap_or(0), world, changed.subscribe()));
    }
    let limit = parameter("limit").and_then(|limit| limit.parse().ok());
    let mut world = world.lock().expect("a world");
    Ok(list(&mut world, &path, fields.as_deref(), limit, parameter("continue")))
}

fn list(
    world: &mut World,
    path: &str,
    fields: Option<&str>,
    limit: Option<usize>,
    from: Option<String>,
) -> Answer {
    if let Some(list) = &world.list {
        return text(200, list.clone());
    }
    // As a real server's: the version of the first page, and how far it got.
    let (version, from) = match from.as_deref().and_then(|from| from.split_once('.')) {
        Some((version, from)) => (version.parse().unwrap_or(0), from.parse().unwrap_or(0)),
        None => (world.version, 0),
    };
    if version < world.oldest {
        return refuse(410, "Expired");
    }
    // The kubelet has the same pods at another path.
    let path = if path == "/pods" { PODS } else { path };
    let all = world.objects.iter().filter(|((of, _), _)| of == path).map(|(_, object)| object);
    let matching: Vec<_> = all.filter(|object| is_selected(object, fields)).collect();
    let items: Vec<_> = matching.iter().skip(from).take(limit.unwrap_or(usize::MAX)).collect();
    let next = from + items.len();
    let mut metadata = json!({"resourceVersion": version.to_string()});
    let is_unfinished = next < matching.len();
    if is_unfinished {
        metadata["continue"] = json!(format!("{version}.{next}"));
    }
    let list = json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items});
    if is_unfinished && world.expires_after_a_page {
        world.compact();
    }
    text(200, list.to_string())
}

fn is_selected(object: &Value, fields: Option<&str>) -> bool {
    fields.into_iter().flat_map(|fields| fields.split(',')).all(|field| {
        let (path, value) = field.split_once('=').expect("a selector");
        let (path, is_equal) = match path.strip_suffix('!') {
            Some(path) => (path, false),
            None => (path, true),
        };
        let found = object.pointer(&format!("/{}", path.replace('.', "/")));
        (found.and_then(Value::as_str).unwrap_or_default() == value) == is_equal
    })
}

fn watching(
    path: &str,
    version: u64,
    world: Arc<Mutex<World>>,
    mut changed: watch::Receiver<()>,
) -> Answer {
    let (sender, receiver) = mpsc::unbounded_channel();
    let (mut next, of) = {
        let world = world.lock().expect("a world");
        if version < world.oldest {
            if world.is_gone_an_answer {
                return refuse(410, "Expired");
            }
            let line = event("ERROR", &status(410, "Expired"));
            sender.send(line.into()).expect("a reader");
            return Response::new(Either::Right(Lines(receiver)));
        }
        let next = world.log.iter().position(|(_, at, _)| *at > version);
        (next.unwrap_or(world.log.len()), world.watches)
    };
    let path = path.to_owned();
    tokio::spawn(async move {
        loop {
            {
                let world = world.lock().expect("a world");
                if world.watches != of {
                    return;
                }
                next = next.min(world.log.len());
                for (_, _, line) in world.log[next..].iter().filter(|(at, _, _)| *at == path) {
                    if sender.send(line.clone().into()).is_err() {
                        return;
                    }
                }
                next = world.log.len();
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    });
    Response::new(Either::Right(Lines(receiver)))
}

/// A directory of a test's own, with what is needed to reach a server.
pub(crate) struct Files(pub(crate) PathBuf);

impl Files {
    pub(crate) fn new(server: &str, token: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("finrace-kube-{}-{number}", std::process::id());
        let files = Self(std::env::temp_dir().join(name));
        std::fs::create_dir_all(&files.0).expect("a directory");
        files.set_token(token);
        let config = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: here\n\
             clusters: [{{name: here, cluster: {{server: \"{server}\"}}}}]\n\
             users: [{{name: me, user: {{tokenFile: \"{}/token\"}}}}]\n\
             contexts: [{{name: here, context: {{cluster: here, user: me}}}}]\n",
            files.0.display()
        );
        files.write("config", &config);
        files
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("a file");
        path
    }

    pub(crate) fn set_token(&self, token: &str) {
        self.write("token", token);
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).expect("a directory of our own");
    }
}
