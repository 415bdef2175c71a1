use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::*;
use crate::http::MAX_REQUESTS;
use crate::http::tests::{agent, exchange, start};

const READY: &str = "GET /-/ready HTTP/1.1\r\nhost: a\r\n\r\n";

/// A connection on which nothing is sent.
async fn silent(address: SocketAddr) -> TcpStream {
    TcpStream::connect(address).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn those_that_say_nothing_are_closed() {
    let server = start(1, agent).await;
    let began = Instant::now();
    for said in ["", "GET /-/ready HTTP/1.1\r\nhost: "] {
        let mut stream = silent(server.address).await;
        stream.write_all(said.as_bytes()).await.unwrap();
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    }
    assert!(began.elapsed() >= 2 * HEADER_TIMEOUT, "{:?}", began.elapsed());
}

/// No matter how many there are.
#[tokio::test(start_paused = true)]
async fn those_that_say_nothing_keep_nobody_out() {
    let server = start(1, agent).await;
    let began = Instant::now();
    // Another client, which came before them.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut slow = socket.connect(server.address).await.unwrap();
    let mut all = Vec::new();
    for _ in 0..3 * SILENT_MAX {
        all.push(silent(server.address).await);
    }
    let answer = exchange(server.address, READY).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // The oldest was closed to make room for the others.
    assert_eq!(all[0].read(&mut [0; 1]).await.unwrap_or(0), 0);
    for stream in [&mut slow, all.last_mut().unwrap()] {
        stream.write_all(READY.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }
    assert!(began.elapsed() < HEADER_TIMEOUT, "{:?}", began.elapsed());
}

#[tokio::test]
async fn requests_above_the_limit_wait() {
    let (asked, mut was_asked) = mpsc::channel(9);
    let gate = Arc::new(Semaphore::new(0));
    let waiting = Arc::clone(&gate);
    let server = start(2, move |_| {
        let (asked, waiting) = (asked.clone(), Arc::clone(&waiting));
        async move {
            asked.send(()).await.unwrap();
            waiting.acquire().await.unwrap().forget();
            Reply::Ready
        }
    })
    .await;
    let exchanges = [0; 3].map(|_| tokio::spawn(exchange(server.address, READY)));
    was_asked.recv().await.unwrap();
    was_asked.recv().await.unwrap();
    // Whether or not the third has arrived, it is not let through.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(was_asked.try_recv().is_err());
    gate.add_permits(1);
    was_asked.recv().await.unwrap();
    gate.add_permits(2);
    for exchange in exchanges {
        assert!(exchange.await.unwrap().starts_with("HTTP/1.1 200 "));
    }
}

/// All of loopback is one network: its fifth scrape waits, and probes do not.
#[tokio::test]
async fn a_network_that_scrapes_much_holds_up_no_probe() {
    let (asked, mut was_asked) = mpsc::channel(9);
    let gate = Arc::new(Semaphore::new(0));
    let waiting = Arc::clone(&gate);
    let server = start(MAX_REQUESTS, move |route| {
        let (asked, waiting) = (asked.clone(), Arc::clone(&waiting));
        async move {
            if route != Route::Ready {
                asked.send(()).await.unwrap();
                waiting.acquire().await.unwrap().forget();
            }
            agent(route).await
        }
    })
    .await;
    let scrape = "GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n";
    let scrapes = [0; 5].map(|_| tokio::spawn(exchange(server.address, scrape)));
    for _ in 0..4 {
        was_asked.recv().await.unwrap();
    }
    assert!(exchange(server.address, READY).await.starts_with("HTTP/1.1 200 "));
    assert!(was_asked.try_recv().is_err());
    gate.add_permits(5);
    for scrape in scrapes {
        assert!(scrape.await.unwrap().starts_with("HTTP/1.1 200 "));
    }
}

#[tokio::test]
async fn headers_have_limits() {
    let server = start(MAX_REQUESTS, agent).await;
    let request = |headers: &str| format!("GET /-/ready HTTP/1.1\r\nhost: a\r\n{headers}\r\n");
    let long = |bytes| request(&format!("x: {}\r\n", "a".repeat(bytes)));
    let many = |count| request(&"x: a\r\n".repeat(count));
    for (what, request, expected) in [
        ("long", long(HEADER_BYTES / 2), "200 OK"),
        ("too long", long(HEADER_BYTES), "431 Request Header Fields Too Large"),
        ("many", many(HEADERS - 1), "200 OK"),
        ("too many", many(HEADERS), "431 Request Header Fields Too Large"),
    ] {
        let answer = exchange(server.address, &request).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}\r\n")), "{what}: {answer}");
    }
}

/// A web page whose name points to 127.0.0.1 learns nothing.
#[tokio::test]
async fn another_host_is_not_answered_for() {
    let server = start(MAX_REQUESTS, agent).await;
    for (host, expected) in [("127.0.0.1:9502", "200 OK"), ("evil.example", "421 ")] {
        for target in ["/metrics", "/", "/api/v1/peers"] {
            let request = format!("GET {target} HTTP/1.1\r\nhost: {host}\r\n\r\n");
            let answer = exchange(server.address, &request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{target}: {answer}");
        }
    }
}

#[tokio::test]
async fn http_1_0_is_spoken() {
    let server = start(MAX_REQUESTS, agent).await;
    let answer = exchange(server.address, "GET /metrics HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    // Without chunks, which that version does not know.
    assert!(answer.ends_with("\r\n\r\nText004, false\n"), "{answer}");
}
