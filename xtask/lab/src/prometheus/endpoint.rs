//! A small HTTP server: the receiver of a webhook, and a target that says what it is told to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use xtask::setup::server_port;

/// A running server; it ends when this is dropped.
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Endpoint {
    /// Answers each request with what `answer` makes of its body.
    pub(super) fn start(answer: impl Fn(&str) -> String + Send + 'static) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server_port()?));
        let listener =
            TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = std::thread::Builder::new().name("endpoint".to_owned()).spawn({
            let stop = stop.clone();
            move || {
                for stream in listener.incoming() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    // A client that breaks off gets no answer.
                    stream.map_err(Into::into).and_then(|s| serve(s, &answer)).ok();
                }
            }
        })?;
        Ok(Self { address, stop, thread: Some(thread) })
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The thread waits for a connection.
        TcpStream::connect(self.address).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn serve(stream: TcpStream, answer: &impl Fn(&str) -> String) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse()?;
            }
            _ if line.trim().is_empty() => break,
            _ => {}
        }
    }
    let mut body = String::new();
    (&mut reader).take(length).read_to_string(&mut body)?;
    let text = answer(&body);
    let length = text.len();
    write!(
        reader.into_inner(),
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{text}"
    )?;
    Ok(())
}
