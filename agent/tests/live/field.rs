//! What traffic does that was not made for finrace: short requests and short answers, farewells in every
//! order, pings, limits on requests, dead sockets in a pool, requests that hang.
//!
//! Several connections play each story at once, over both versions of IP.

use std::collections::HashMap;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};

use crate::kernel;
use crate::link::FAR;
use crate::stage::{
    Pair, REQUEST, Scenario, Stage, expect_end, note_overslept, overslept, pause, receive,
};

/// A request of no recognizable protocol.
const SHORT: [u8; 27] = [b's'; 27];
const SHORT_ANSWER: [u8; 10] = [b'a'; 10];
const NO_CONTENT: [u8; 83] = [b'n'; 83];
/// TLS 1.3: an alert, and a record of application data.
const ALERT: [u8; 24] = {
    let mut alert = [7; 24];
    (alert[0], alert[1], alert[2], alert[3], alert[4]) = (0x17, 3, 3, 0, 19);
    alert
};
const SEALED: [u8; 120] = {
    let mut sealed = [9; 120];
    (sealed[0], sealed[1], sealed[2], sealed[3], sealed[4]) = (0x17, 3, 3, 0, 115);
    sealed
};
const GOAWAY: [u8; 39] = {
    let mut goaway = [5; 39];
    (goaway[0], goaway[1], goaway[2], goaway[3], goaway[4]) = (0x17, 3, 3, 0, 34);
    goaway
};
const WINDOW_UPDATE: [u8; 13] = [0, 0, 4, 8, 0, 0, 0, 0, 1, 0, 0, 16, 0];
const PING: [u8; 14] = *b"*1\r\n$4\r\nPING\r\n";
const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
const TIMEOUT: &[u8] =
    b"HTTP/1.1 408 Request Time-out\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Sets how many [`connections`] a story has.
pub(crate) const CONNECTIONS: &str = "FINRACE_CONNECTIONS";

/// Connections per story, half of them of each version of IP where there are both.
pub(crate) fn connections() -> usize {
    std::env::var(CONNECTIONS).ok().and_then(|count| count.parse().ok()).unwrap_or(6)
}

/// Where stories take place that need no wire of their own: how far apart the ends are, if they are in
/// namespaces of their own.
fn distance() -> Option<Duration> {
    let millis = std::env::var("FINRACE_DISTANCE_MS").ok()?.parse().ok()?;
    Some(Duration::from_millis(millis))
}

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new(
        "field_short_stale",
        |s| crowd(s, |pair| short_stale(pair, 1_200)),
        "allx race class=stale_write cause=unknown certainty=certain read=never outcome=reset \
             role=client gap~1.4 fin_age~0.2 bytes=27 other_view.class=late_request
         allx close role=client closer=peer evidence=idle idle~1.2",
    )
    .also_hookless(),
    Scenario::new(
        "field_short_crossed_distant",
        |s| crowd_at(s, Some(FAR), short_crossed),
        "allx race class=fin_crossed cause=unknown role=client gap~1.22 bytes=27 \
             other_view.class=late_request",
    ),
    Scenario::new(
        "field_short_unread",
        |s| crowd(s, short_unread),
        "allx race class=unread_close cause=unknown certainty=certain read=never role=client gap~1.0",
    ),
    Scenario::new(
        "field_short_dropped",
        |s| crowd(s, short_dropped),
        "allx race class=silent_drop read=never role=client gap~1.0",
    ),
    Scenario::new(
        "field_short_answer_then_fin",
        |s| crowd(s, |pair| short_answer(pair, drop)),
        "allx reuse role=client gap~0.5
         allx close role=client closer=peer evidence=after_data
         !incident role=client
         !incident role=server
         !close role=server closer=peer",
    ),
    Scenario::new(
        "field_short_answer_then_reset",
        |s| crowd(s, |pair| short_answer(pair, |server| kernel::abort(server).unwrap_or_default())),
        "allx reuse role=client gap~0.5
         allx close role=client closer=peer how=rst",
    ),
    Scenario::new(
        "field_worked_on_then_reset",
        |s| crowd(s, worked_on),
        "allx incident class=mid_stream_reset role=client",
    ),
    Scenario::new(
        "field_continued_then_reset",
        |s| crowd(s, continued),
        "allx incident class=mid_stream_reset|early_response role=client",
    ),
    Scenario::new(
        "field_tls_server_waits",
        |s| crowd(s, |pair| tls_server_waits(pair, 300)),
        "allx race class=stale_write cause=unknown role=client other_view.class=late_request
         allx close role=client closer=peer evidence=upper_bound idle~1.0
         allx close role=server closer=local evidence=idle idle~1.0",
    ),
    Scenario::new(
        "field_tls_client_answers",
        |s| crowd(s, tls_client_answers),
        "allx close role=client closer=peer idle~1.0
         allx close role=server closer=local evidence=idle idle~1.0
         !incident class=stale_write
         !reuse role=client",
    ),
    Scenario::new(
        "field_tls_alert_for_answer",
        |s| crowd(s, |pair| tls_last_answer(pair, &ALERT)),
        "allx race class=read_and_closed certainty=certain role=client",
    ),
    Scenario::new(
        "field_tls_short_answer",
        |s| crowd(s, |pair| tls_last_answer(pair, &[&SEALED[..4], &[55], &[b'a'; 55]].concat())),
        "allx reuse role=client gap~1.0
         !incident role=client",
    ),
    // An HTTP/2 server sends GOAWAY and an alert, and closes; then the same with SMTP's 421.
    Scenario::new(
        "field_request_after_goaway",
        |s| crowd(s, |pair| sealed_farewell(pair, &GOAWAY)),
        "allx incident class=after_goaway certainty=inferred role=client gap~1.2 bytes=120
         allx close role=client closer=peer evidence=upper_bound idle~1.0
         allx close role=server closer=local evidence=idle idle~1.0",
    ),
    Scenario::new(
        "field_request_after_sealed_words",
        |s| crowd(s, |pair| sealed_farewell(pair, &SEALED[..82])),
        "allx race class=stale_write cause=unknown role=client gap~1.2 bytes=120
         allx close role=client closer=peer evidence=upper_bound idle~1.0",
    ),
    Scenario::new(
        "field_request_limit",
        |s| crowd(s, request_limit),
        "allx race class=stale_write cause=lifetime role=client bytes=200",
    ),
    Scenario::new(
        "field_request_limit_distant",
        |s| crowd_at(s, Some(FAR), request_limit_crossed),
        "allx race class=fin_crossed cause=lifetime role=client bytes=200",
    ),
    Scenario::new(
        "field_fin_lost",
        fin_lost,
        "allx race class=fin_crossed cause=unknown certainty=certain read=never outcome=reset \
             role=client gap~1.1 bytes=200 other_view.class=late_request",
    ),
    // Apache's close, a round trip of 300 ms away.
    Scenario::new(
        "field_lingering_distant",
        |s| crowd_at(s, Some(3 * FAR), lingering),
        "allx race class=fin_crossed cause=unknown read=unknown role=client gap~1.2 bytes=200",
    ),
    Scenario::new(
        "field_client_spoke_last",
        |s| crowd(s, client_spoke_last),
        "allx close role=client closer=peer evidence=idle idle~1.0
         !incident role=client",
    ),
    Scenario::new(
        "field_ping_meets_close",
        |s| crowd(s, ping_meets_close),
        "allx incident class=stale_probe role=client
         allx close role=client closer=peer evidence=idle idle~1.0",
    ),
    Scenario::new(
        "field_slow_upload",
        |s| crowd(s, slow_upload),
        "allx incident class=early_response|half_close role=client",
    ),
    Scenario::new(
        "field_opened_early",
        |s| at_once(new_pairs(s, distance())?, opened_early),
        "allx incident class=unused_close role=client
         allx close role=client closer=peer evidence=unused",
    ),
    Scenario::new(
        "field_dead_in_pool",
        |s| crowd(s, |pair| dead_in_pool(pair, false)),
        "allx race class=write_after_reset cause=unknown outcome=failed read=never role=client \
             fin_age~0.5 idle~1.0
         allx close role=client closer=peer how=rst evidence=idle idle~1.0",
    )
    .also_hookless(),
    // The client looks before it writes.
    Scenario::new(
        "field_dead_in_pool_tested",
        |s| crowd(s, |pair| dead_in_pool(pair, true)),
        "allx close role=client closer=peer how=rst evidence=idle idle~1.0
         !incident role=client",
    ),
    Scenario::new(
        "field_request_hangs",
        request_hangs,
        "allx race class=silent_drop outcome=pending role=client gap~1.0 bytes=200
         allx outcome class=silent_drop outcome=closed_by_us role=client",
    ),
    Scenario::new(
        "field_408_on_idle",
        |s| crowd(s, timeout_in_words),
        "allx close role=client closer=peer evidence=idle|upper_bound idle~1.0
         allx close role=server closer=local evidence=idle idle~1.0
         !incident role=client",
    ),
    Scenario::new(
        "field_client_gone",
        |s| crowd(s, client_gone),
        "allx incident class=client_gone role=server",
    ),
    // TLS: both say goodbye, and nothing is lost.
    Scenario::new(
        "field_client_says_goodbye",
        |s| crowd(s, client_says_goodbye),
        "allx close role=server closer=peer
         !incident class=client_gone",
    ),
    Scenario::new(
        "field_farewell_of_two_records",
        |s| crowd(s, farewell_of_two),
        "allx incident class=farewell role=client
         !reuse role=client gap~1.2",
    ),
    Scenario::new(
        "field_long_request",
        |s| crowd(s, long_request),
        "allx race class=stale_write read=never role=client",
    ),
    Scenario::new(
        "field_read_by_a_half_closed_server",
        |s| crowd(s, half_closed_server),
        "allx race class=stale_write read=unknown outcome=acked role=client bytes=200",
    ),
];

/// Several pairs at once, each of which has answered one request.
fn crowd(stage: &mut Stage, story: impl Fn(Pair) -> Result<()> + Sync) -> Result<()> {
    crowd_at(stage, distance(), story)
}

fn crowd_at(
    stage: &mut Stage,
    distance: Option<Duration>,
    story: impl Fn(Pair) -> Result<()> + Sync,
) -> Result<()> {
    let pairs = new_pairs(stage, distance)?;
    at_once(pairs, |mut pair| {
        pair.exchange()?;
        story(pair)
    })
}

fn new_pairs(stage: &mut Stage, distance: Option<Duration>) -> Result<Vec<Pair>> {
    let listeners = if let Some(distance) = distance {
        vec![stage.distant_listener(distance)?]
    } else {
        let four = stage.listen((Ipv4Addr::LOCALHOST, 0))?;
        // Where there is no IPv6, IPv4 has to do for both.
        let six = stage.listen((Ipv6Addr::LOCALHOST, 0)).ok();
        [Some(four), six].into_iter().flatten().collect()
    };
    pairs_of(&listeners)
}

/// As many pairs as a story has, spread over all of these listeners.
fn pairs_of(listeners: &[TcpListener]) -> Result<Vec<Pair>> {
    // All at once, since they may be far away: the first must not idle until the last is there.
    let clients: Result<Vec<TcpStream>> = thread::scope(|scope| {
        let connect = |listener: &TcpListener| {
            let server = listener.local_addr();
            scope.spawn(move || TcpStream::connect(server?))
        };
        let threads: Vec<_> = listeners.iter().cycle().take(connections()).map(connect).collect();
        threads.into_iter().map(|thread| Ok(thread.join().map_err(|_panic| panicked())??)).collect()
    });
    let mut servers = HashMap::new();
    for listener in listeners.iter().cycle().take(connections()) {
        let (server, client) = listener.accept().context("accepting")?;
        servers.insert((server.local_addr()?, client), server);
    }
    let pair = |client: TcpStream| {
        let server = servers.remove(&(client.peer_addr()?, client.local_addr()?));
        Pair::of(client, server.context("a connection that was not accepted")?)
    };
    clients.context("connecting")?.into_iter().map(pair).collect()
}

fn at_once(pairs: Vec<Pair>, story: impl Fn(Pair) -> Result<()> + Sync) -> Result<()> {
    let story = &story;
    thread::scope(|scope| {
        let threads: Vec<_> =
            pairs.into_iter().map(|pair| scope.spawn(move || (story(pair), overslept()))).collect();
        for thread in threads {
            let (result, late) = thread.join().map_err(|_panic| panicked())?;
            note_overslept(late);
            result?;
        }
        Ok(())
    })
}

fn panicked() -> Error {
    anyhow!("a connection's thread panicked")
}

/// A request and its answer, a few bytes each.
fn short_exchange(pair: &mut Pair) -> Result<()> {
    pair.client.write_all(&SHORT)?;
    receive(&mut pair.server, SHORT.len())?;
    pair.server.write_all(&SHORT_ANSWER)?;
    receive(&mut pair.client, SHORT_ANSWER.len()).context("receiving a short answer")
}

/// A pool that does not watch: it learns of the FIN while it waits for the answer.
fn short_stale(mut pair: Pair, idle_ms: u64) -> Result<()> {
    short_exchange(&mut pair)?;
    pause(idle_ms);
    drop(pair.server);
    pause(200);
    pair.client.write_all(&SHORT)?;
    expect_end(pair.client)
}

fn short_crossed(mut pair: Pair) -> Result<()> {
    pause(1_200);
    drop(pair.server);
    pause(20);
    pair.client.write_all(&SHORT)?;
    expect_end(pair.client)
}

/// The server closes with the request in its queue.
fn short_unread(mut pair: Pair) -> Result<()> {
    short_exchange(&mut pair)?;
    pause(600);
    short_exchange(&mut pair)?;
    pause(1_000);
    pair.client.write_all(&SHORT)?;
    // The time in flight, and 5 ms in the queue.
    pause(5 + distance().map_or(0, |way| way.as_millis() as u64));
    drop(pair.server);
    expect_end(pair.client)
}

fn short_dropped(mut pair: Pair) -> Result<()> {
    short_exchange(&mut pair)?;
    pause(1_000);
    kernel::vanish(pair.server)?;
    pair.client.write_all(&SHORT)?;
    expect_end(pair.client)
}

/// An answer of a few bytes, and the end.
fn short_answer(mut pair: Pair, close: fn(TcpStream)) -> Result<()> {
    pause(500);
    pair.client.write_all(&REQUEST)?;
    receive(&mut pair.server, REQUEST.len())?;
    pair.server.write_all(&NO_CONTENT)?;
    receive(&mut pair.client, NO_CONTENT.len())?;
    close(pair.server);
    expect_end(pair.client)
}

/// The server reads a request, works on it, and is killed.
fn worked_on(mut pair: Pair) -> Result<()> {
    pause(500);
    pair.client.write_all(&REQUEST)?;
    receive(&mut pair.server, REQUEST.len())?;
    pause(300);
    kernel::abort(pair.server)?;
    expect_end(pair.client)
}

/// The server has asked for the body, and resets in the middle of it.
fn continued(mut pair: Pair) -> Result<()> {
    pause(500);
    pair.client.write_all(&REQUEST)?;
    receive(&mut pair.server, REQUEST.len())?;
    pair.server.write_all(CONTINUE)?;
    receive(&mut pair.client, CONTINUE.len())?;
    for _ in 0..5 {
        pair.client.write_all(&REQUEST)?;
        receive(&mut pair.server, REQUEST.len())?;
        pause(60);
    }
    kernel::abort(pair.server)?;
    expect_end(pair.client)
}

/// As asyncio's servers do: an alert, and no FIN until the client's own.
fn tls_server_waits(mut pair: Pair, late_ms: u64) -> Result<()> {
    pause(1_000);
    pair.server.write_all(&ALERT)?;
    pause(late_ms);
    pair.client.write_all(&SEALED)?;
    receive(&mut pair.server, SEALED.len())?;
    drop(pair.server);
    expect_end(pair.client)
}

/// Last words and an alert, each in a record of its own, and a client that does not read them.
fn sealed_farewell(mut pair: Pair, words: &[u8]) -> Result<()> {
    pause(1_000);
    pair.server.write_all(words)?;
    pair.server.write_all(&ALERT)?;
    drop(pair.server);
    pause(200);
    pair.client.write_all(&SEALED)?;
    expect_end(pair.client)
}

/// A client that watches answers the alert with its own, and closes first.
fn tls_client_answers(mut pair: Pair) -> Result<()> {
    pause(1_000);
    pair.server.write_all(&ALERT)?;
    receive(&mut pair.client, ALERT.len())?;
    pair.client.write_all(&ALERT)?;
    drop(pair.client);
    receive(&mut pair.server, ALERT.len())?;
    expect_end(pair.server)
}

/// The server has the request, and what it sends is its last: an alert instead of an answer, or an answer.
fn tls_last_answer(mut pair: Pair, last: &[u8]) -> Result<()> {
    pause(1_000);
    pair.client.write_all(&SEALED)?;
    receive(&mut pair.server, SEALED.len())?;
    pair.server.write_all(last)?;
    receive(&mut pair.client, last.len())?;
    drop(pair.client);
    expect_end(pair.server)
}

/// The server closes after its answer, and the pool asks again at once.
fn request_limit(mut pair: Pair) -> Result<()> {
    pair.exchange()?;
    drop(pair.server);
    pause(20);
    pair.client.write_all(&REQUEST)?;
    expect_end(pair.client)
}

/// The same, but 50 ms away: the FIN comes while the request is in flight.
fn request_limit_crossed(mut pair: Pair) -> Result<()> {
    pair.client.write_all(&REQUEST)?;
    receive(&mut pair.server, REQUEST.len())?;
    pair.server.write_all(&NO_CONTENT)?;
    pause(30);
    drop(pair.server);
    receive(&mut pair.client, NO_CONTENT.len())?;
    pair.client.write_all(&REQUEST)?;
    expect_end(pair.client)
}

/// The server's FIN is retransmitted only after this request.
fn fin_lost(stage: &mut Stage) -> Result<()> {
    let listener = stage.lossy_listener(distance().unwrap_or_default())?;
    at_once(pairs_of(&[listener])?, |mut pair| {
        pair.exchange()?;
        pause(1_000);
        drop(pair.server);
        pause(100);
        pair.client.write_all(&REQUEST)?;
        expect_end(pair.client)
    })
}

/// The server closes its direction, and reads and discards what comes until the client closes.
fn lingering(mut pair: Pair) -> Result<()> {
    pause(1_150);
    pair.server.shutdown(Shutdown::Write)?;
    pause(50);
    pair.client.write_all(&REQUEST)?;
    expect_end(pair.client)?;
    expect_end(pair.server)
}

/// A window update follows the answer, as in HTTP/2; then the server's idle timeout.
fn client_spoke_last(mut pair: Pair) -> Result<()> {
    pair.client.write_all(&WINDOW_UPDATE)?;
    receive(&mut pair.server, WINDOW_UPDATE.len())?;
    pause(1_000);
    pair.server_closes()
}

/// A pool tries a connection that the server has closed, and opens another.
fn ping_meets_close(mut pair: Pair) -> Result<()> {
    pause(1_000);
    drop(pair.server);
    pause(200);
    pair.client.write_all(&PING)?;
    expect_end(pair.client)
}

/// The server has answered an upload early and closed; the client goes on sending, unaware of it.
fn slow_upload(mut pair: Pair) -> Result<()> {
    pause(500);
    for part in 0..6 {
        // What comes after the answer is reset.
        if pair.client.write_all(&REQUEST).is_err() {
            break;
        }
        if part < 2 {
            receive(&mut pair.server, REQUEST.len())?;
        }
        if part == 2 {
            receive(&mut pair.server, REQUEST.len())?;
            pair.server.write_all(&[b'e'; 300])?;
            pair.server.shutdown(Shutdown::Both)?;
        }
        pause(60);
    }
    drop(pair.server);
    expect_end(pair.client)
}

/// A connection opened in advance; the server does not wait that long for its first request.
fn opened_early(mut pair: Pair) -> Result<()> {
    pause(600);
    drop(pair.server);
    pause(200);
    pair.client.write_all(&REQUEST)?;
    expect_end(pair.client)
}

/// The server's close is an RST, and the pool does not see it.
fn dead_in_pool(mut pair: Pair, looks: bool) -> Result<()> {
    pause(1_000);
    kernel::abort(pair.server)?;
    pause(500);
    if looks {
        return expect_end(pair.client);
    }
    if pair.client.write_all(&REQUEST).is_ok() {
        bail!("a write on a socket that was reset went through");
    }
    Ok(())
}

/// The wire is cut, and the client waits.
fn request_hangs(stage: &mut Stage) -> Result<()> {
    kernel::unshare_loopback()?;
    // Without its address an IPv6 socket has nothing to send from, and retransmits nothing.
    let listener = stage.listen((Ipv4Addr::LOCALHOST, 0))?;
    let server = listener.local_addr()?;
    let pairs = (0..connections()).map(|_| Pair::new(&listener, server));
    let mut pairs = pairs.collect::<Result<Vec<_>>>()?;
    pairs.iter_mut().try_for_each(Pair::exchange)?;
    pause(1_000);
    kernel::set_interface_up("lo", false)?;
    for pair in &mut pairs {
        pair.client.write_all(&REQUEST)?;
    }
    pause(2_500);
    drop(pairs);
    pause(100);
    Ok(())
}

fn timeout_in_words(mut pair: Pair) -> Result<()> {
    pause(1_000);
    pair.server.write_all(TIMEOUT)?;
    pair.server_closes()
}

/// The client asks and leaves; the answer comes too late.
fn client_gone(mut pair: Pair) -> Result<()> {
    pair.client.write_all(&REQUEST)?;
    drop(pair.client);
    receive(&mut pair.server, REQUEST.len())?;
    pause(50);
    pair.server.write_all(&NO_CONTENT.repeat(2))?;
    expect_end(pair.server)
}

/// The client's alert and FIN are answered by the server's alert, which nobody waits for.
fn client_says_goodbye(mut pair: Pair) -> Result<()> {
    pause(500);
    pair.client.write_all(&ALERT)?;
    drop(pair.client);
    receive(&mut pair.server, ALERT.len())?;
    pair.server.write_all(&ALERT)?;
    expect_end(pair.server)
}

/// GOAWAY and a TLS alert, each in a record of its own, into a connection that the server has closed.
fn farewell_of_two(mut pair: Pair) -> Result<()> {
    pause(1_000);
    drop(pair.server);
    pause(200);
    pair.client.write_all(&GOAWAY)?;
    // The RST may be there already.
    drop(pair.client.write_all(&ALERT));
    Ok(())
}

/// A request of several segments, none of which the server has taken in, as its own end shows.
fn long_request(mut pair: Pair) -> Result<()> {
    pause(1_000);
    drop(pair.server);
    pause(200);
    // It may fail in the middle.
    drop(pair.client.write_all(&vec![b'l'; 300_000]));
    expect_end(pair.client)
}

/// The server has closed only its own direction, and reads what comes.
fn half_closed_server(mut pair: Pair) -> Result<()> {
    pause(1_000);
    pair.server.shutdown(Shutdown::Write)?;
    pause(200);
    pair.client.write_all(&REQUEST)?;
    receive(&mut pair.server, REQUEST.len())?;
    drop(pair.server);
    expect_end(pair.client)
}
