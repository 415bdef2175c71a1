//! Ordinary traffic that resembles a race: it must cause no race line.
//!
//! Each scenario also demands a line, so that a blind agent fails.

use std::io::Write;
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::net::sockopt;

use crate::kernel;
use crate::stage::{ANSWER, Pair, REQUEST, Scenario, Stage, expect_end, pause, receive};

/// Small last words: `close_notify`, GOAWAY, QUIT.
const LAST_WORDS: [u8; 24] = [0x15; 24];

const REUSED_ONCE: &str = "reuse role=client gap~0.5 peer=$server";

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("client_half_close", client_half_close, REUSED_ONCE),
    Scenario::new(
        "server_half_close",
        |s| {
            let pair = s.used_pair()?;
            pause(500);
            server_half_close(pair, |client| {
                // A busy kernel may deliver it after the next write, which it then crosses.
                let is_end = client.peek(&mut [0])? == 0;
                if is_end { Ok(()) } else { bail!("the server sent something") }
            })
        },
        "reuse role=client gap~0.5
         incident class=half_close role=client",
    ),
    // The FIN crosses part of the upload.
    Scenario::new(
        "server_half_close_distant",
        |s| server_half_close(s.distant_pair()?, |_| Ok(())),
        "incident class=half_close|early_response role=client",
    ),
    Scenario::new(
        "server_half_close_distant_after_gap",
        |s| {
            let pair = s.distant_pair()?;
            pause(500);
            server_half_close(pair, |_| Ok(()))
        },
        "reuse role=client gap~0.5
         incident class=half_close|early_response role=client",
    ),
    Scenario::new(
        "connection_close",
        connection_close,
        "reuse role=client gap~0.5
         close role=client closer=peer evidence=after_data",
    ),
    Scenario::new(
        "health_check",
        |s| s.pair()?.client_closes(),
        "close role=client closer=local how=fin evidence=unused",
    ),
    Scenario::new("port_scan", port_scan, "close role=client closer=local evidence=unused"),
    // Ignored altogether; the exchange over TCP shows that the agent is watching.
    Scenario::new(
        "mptcp",
        mptcp,
        "close role=client closer=peer how=fin evidence=idle idle~0.5
         !close local=$server
         !close peer=$server
         !reuse local=$server
         !reuse peer=$server
         !incident local=$server
         !incident peer=$server",
    ),
    Scenario::new("client_leaves", client_leaves, "close role=client closer=local how=fin"),
    Scenario::new("client_cancels", client_cancels, "close role=client closer=local how=rst"),
    Scenario::new("reload", reload, "30x close role=client closer=peer how=fin"),
    Scenario::new(
        "reset_in_answer",
        |s| reset_in_answer(s.used_pair()?),
        "incident class=mid_stream_reset role=client",
    ),
    Scenario::new(
        "reset_in_answer_after_gap",
        |s| {
            let pair = s.used_pair()?;
            pause(500);
            reset_in_answer(pair)
        },
        REUSED_ONCE,
    ),
    Scenario::new(
        "reset_in_upload",
        reset_in_upload,
        "incident class=mid_stream_reset role=client",
    ),
    Scenario::new(
        "slow_server",
        slow_server,
        "!reuse
         close role=client closer=local evidence=idle idle~0.5",
    ),
    Scenario::new("crashed_server", crashed_server, "incident class=premature_close role=client"),
    Scenario::new(
        "early_answer_reset",
        |s| early_answer(s.used_pair()?, drop),
        "reuse role=client gap~0.5
         incident class=early_response|mid_stream_reset role=client",
    ),
    Scenario::new(
        "early_answer_drained",
        |s| early_answer(s.used_pair()?, drain),
        "reuse role=client gap~0.5
         incident class=early_response role=client",
    ),
    Scenario::new(
        "early_answer_distant",
        |s| early_answer(s.distant_pair()?, drain),
        "reuse role=client gap~0.5
         incident class=early_response role=client",
    ),
    Scenario::new(
        "blocked_writer",
        |s| blocked_writer(s, 64 * 1024, 16),
        "!reuse role=client
         close role=client closer=local evidence=idle idle~0.5",
    ),
    Scenario::new(
        "blocked_writer_of_bytes",
        |s| blocked_writer(s, 1, 100_000),
        "!reuse role=client
         close role=client closer=local evidence=idle idle~0.5",
    ),
    Scenario::new(
        "server_push",
        server_push,
        "!reuse role=client
         close role=client closer=peer how=fin idle~1.0",
    ),
    Scenario::new(
        "reuse",
        reuse,
        "3x reuse role=client gap~1.0 bytes=200 peer=$server process=finrace-live pid=$pid
         3x reuse role=server gap~1.0 local=$server",
    ),
    Scenario::new(
        "unused_idle",
        |s| {
            let pair = s.pair()?;
            pause(800);
            pair.server_closes()
        },
        "close role=client closer=peer evidence=unused
         close role=server closer=local evidence=unused",
    ),
    Scenario::new(
        "server_closes_first",
        |s| {
            let pair = s.used_pair()?;
            pause(800);
            pair.server_closes()
        },
        "close role=client closer=peer how=fin evidence=idle idle~0.8
         close role=server closer=local how=fin evidence=idle idle~0.8",
    ),
    Scenario::new(
        "client_closes_first",
        |s| {
            let pair = s.used_pair()?;
            pause(800);
            pair.client_closes()
        },
        "close role=client closer=local how=fin evidence=idle idle~0.8
         close role=server closer=peer how=fin evidence=idle idle~0.8",
    ),
    Scenario::new(
        "keep_alive_probes",
        keep_alive_probes,
        "close role=client closer=peer how=fin evidence=idle idle~2.5",
    ),
    Scenario::new(
        "keep_alive_probes_then_reuse",
        |s| {
            let mut pair = s.used_pair()?;
            probe_each_second(&pair.client)?;
            pause(2_500);
            pair.exchange()?;
            pause(500);
            pair.exchange()?;
            pause(500);
            pair.client_closes()
        },
        "reuse role=client gap~2.5 keepalive_probes=true
         2x reuse role=client
         !reuse gap~0.5 keepalive_probes=true",
    ),
    // Each end gets an RST that neither has sent.
    Scenario::new(
        "reset_by_middlebox_distant",
        |s| {
            let pair = s.pair_reset_after(Duration::from_secs(1))?;
            pause(1_300);
            pair.client_closes()
        },
        "close role=client closer=middlebox how=rst evidence=idle idle~1.0
         close role=server closer=middlebox how=rst evidence=idle idle~1.0",
    ),
    Scenario::new(
        "reset_by_server",
        |s| {
            let pair = s.used_pair()?;
            pause(1_000);
            kernel::abort(pair.server)?;
            expect_end(pair.client)
        },
        "close role=client closer=peer how=rst evidence=idle idle~1.0",
    ),
    // No timestamp either, but an answer to a probe: the peer's host no longer knows the connection.
    Scenario::new(
        "probe_of_forgotten",
        |s| {
            let pair = s.used_pair()?;
            probe_each_second(&pair.client)?;
            // Until all is acknowledged: otherwise its kernel resets.
            pause(300);
            kernel::vanish(pair.server)?;
            pause(1_000);
            expect_end(pair.client)
        },
        "close role=client closer=peer how=rst evidence=idle idle~1.0",
    ),
    Scenario::new(
        "own_last_words",
        own_last_words,
        "!reuse role=client
         close role=client closer=local how=fin evidence=idle idle~1.0",
    ),
    Scenario::new(
        "last_words_of_both",
        |s| last_words_of_both(s, true),
        "!reuse role=client
         close role=client closer=peer evidence=upper_bound idle~1.0",
    ),
    Scenario::new(
        "last_words_of_both_client_fin_first",
        |s| last_words_of_both(s, false),
        "!reuse role=client
         close role=client closer=peer evidence=upper_bound idle~1.0",
    ),
];

/// The client says with a FIN that its request is complete; the answer comes in `CLOSE_WAIT`.
fn client_half_close(stage: &mut Stage) -> Result<()> {
    let Pair { mut client, mut server } = stage.used_pair()?;
    pause(500);
    client.write_all(&REQUEST)?;
    client.shutdown(Shutdown::Write)?;
    receive(&mut server, REQUEST.len())?;
    for _ in 0..5 {
        pause(60);
        server.write_all(&ANSWER)?;
    }
    drop(server);
    expect_end(client)
}

/// The server says in the middle of an upload that no answer will come, and reads on.
fn server_half_close(
    Pair { mut client, mut server }: Pair,
    at_fin: impl Fn(&TcpStream) -> Result<()>,
) -> Result<()> {
    for part in 0..30 {
        if part == 15 {
            server.shutdown(Shutdown::Write)?;
            at_fin(&client)?;
        }
        client.write_all(&REQUEST)?;
        receive(&mut server, REQUEST.len())?;
        pause(20);
    }
    pause(200);
    drop(client);
    expect_end(server)
}

fn connection_close(stage: &mut Stage) -> Result<()> {
    let mut pair = stage.used_pair()?;
    pause(500);
    pair.client.write_all(&REQUEST)?;
    receive(&mut pair.server, REQUEST.len())?;
    pair.server.write_all(&ANSWER)?;
    pair.server_closes()
}

fn port_scan(stage: &mut Stage) -> Result<()> {
    kernel::unshare_loopback()?;
    let closed = stage.listen((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    stage.stop_listening();
    for _ in 0..5 {
        if TcpStream::connect(closed).is_ok() {
            bail!("a closed port let us in");
        }
    }
    let pair = stage.pair()?;
    kernel::abort(pair.client)?;
    expect_end(pair.server)
}

/// A request that is late, and one that meets a close, with MPTCP at both ends.
fn mptcp(stage: &mut Stage) -> Result<()> {
    let by_tcp = stage.used_pair()?;
    let listener = kernel::listen_mptcp()?;
    stage.keep(&listener)?;
    let mut pairs = Vec::new();
    for _ in 0..2 {
        let client = kernel::connect_mptcp(listener.local_addr()?)?;
        let (server, _) = listener.accept().context("accepting")?;
        let mut pair = Pair { client, server };
        pair.exchange()?;
        pairs.push(pair);
    }
    pause(500);
    by_tcp.server_closes()?;
    for (mut pair, is_in_time) in pairs.into_iter().zip([true, false]) {
        if is_in_time {
            pair.client.write_all(&REQUEST)?;
        }
        drop(pair.server);
        pause(200);
        // It fails where MPTCP has already reported the close.
        drop(pair.client.write_all(&REQUEST));
    }
    Ok(())
}

/// The client closes in the middle of an answer, with nothing unread.
fn client_leaves(stage: &mut Stage) -> Result<()> {
    let Pair { mut client, mut server } = stage.used_pair()?;
    client.write_all(&REQUEST)?;
    receive(&mut server, REQUEST.len())?;
    for _ in 0..10 {
        server.write_all(&ANSWER)?;
        receive(&mut client, ANSWER.len())?;
        pause(20);
    }
    drop(client);
    for _ in 0..50 {
        pause(20);
        if server.write_all(&ANSWER).is_err() {
            return Ok(());
        }
    }
    bail!("nobody told the server that the client has left")
}

/// The client closes in the middle of a download, with data unread: RST.
fn client_cancels(stage: &mut Stage) -> Result<()> {
    let Pair { mut client, mut server } = stage.used_pair()?;
    client.write_all(&REQUEST)?;
    receive(&mut server, REQUEST.len())?;
    thread::scope(|scope| {
        // More than both ends' buffers hold.
        let download = scope.spawn(move || server.write_all(&vec![b'd'; 16 << 20]));
        receive(&mut client, 64 * 1024)?;
        pause(50);
        drop(client);
        if let Ok(Ok(())) = download.join() {
            bail!("the download was not cancelled");
        }
        Ok(())
    })
}

/// All connections are closed at the same time, after different idle times; none is used again.
fn reload(stage: &mut Stage) -> Result<()> {
    let listener = stage.listen((Ipv4Addr::LOCALHOST, 0))?;
    let mut pairs = Vec::new();
    for _ in 0..30 {
        let mut pair = Pair::new(&listener, listener.local_addr()?)?;
        pair.exchange()?;
        pairs.push(pair);
        pause(50);
    }
    let (clients, servers): (Vec<_>, Vec<_>) =
        pairs.into_iter().map(|pair| (pair.client, pair.server)).unzip();
    drop(servers);
    pause(100);
    clients.into_iter().try_for_each(expect_end)
}

fn reset_in_answer(mut pair: Pair) -> Result<()> {
    pair.client.write_all(&REQUEST)?;
    receive(&mut pair.server, REQUEST.len())?;
    pair.server.write_all(&ANSWER)?;
    receive(&mut pair.client, ANSWER.len())?;
    pause(50);
    kernel::abort(pair.server)?;
    expect_end(pair.client)
}

/// An upload that lasts longer than the threshold of a gap has no gap in it.
fn reset_in_upload(stage: &mut Stage) -> Result<()> {
    let Pair { mut client, mut server } = stage.used_pair()?;
    for _ in 0..25 {
        client.write_all(&REQUEST)?;
        receive(&mut server, REQUEST.len())?;
        pause(20);
    }
    client.write_all(&REQUEST)?;
    kernel::abort(server)?;
    expect_end(client)
}

fn slow_server(stage: &mut Stage) -> Result<()> {
    let mut pair = stage.used_pair()?;
    pair.client.write_all(&REQUEST)?;
    pause(2_000);
    pair.answer()?;
    pair.exchange()?;
    pause(500);
    pair.client_closes()
}

/// The server reads a request and hangs up, nowhere near an idle timeout.
fn crashed_server(stage: &mut Stage) -> Result<()> {
    let mut pair = stage.used_pair()?;
    // Within one clock tick, the request and the answer before it could not be told apart by time.
    pause(20);
    pair.client.write_all(&REQUEST)?;
    receive(&mut pair.server, REQUEST.len())?;
    pause(20);
    pair.server_closes()
}

/// "413 Content Too Large" after the first 64 KiB of an upload of 2 MiB.
fn early_answer(Pair { mut client, mut server }: Pair, close: fn(TcpStream)) -> Result<()> {
    pause(500);
    thread::scope(|scope| {
        let upload = scope.spawn(move || {
            // Whether the server lets it finish is what the two variants differ in.
            drop(client.write_all(&vec![b'u'; 2 << 20]));
            expect_end(client)
        });
        receive(&mut server, 64 * 1024)?;
        server.write_all(&ANSWER)?;
        close(server);
        upload.join().unwrap_or_else(|_| bail!("the upload panicked"))
    })
}

fn drain(server: TcpStream) {
    drop(server.shutdown(Shutdown::Write));
    drop(expect_end(server));
}

/// The reader does not read for 2 s, so the writer's last data is old when it goes on: no reuse.
fn blocked_writer(stage: &mut Stage, write: usize, count: usize) -> Result<()> {
    let mut pair = stage.pair()?;
    kernel::shrink_buffers(&pair.client, &pair.server)?;
    let mut server = pair.server.try_clone()?;
    let writer = thread::spawn(move || -> Result<Pair> {
        // In the same thread, or the thread's start might be a gap.
        pair.exchange()?;
        let data = vec![b'w'; write];
        for _ in 0..count {
            pair.client.write_all(&data).context("writing")?;
        }
        Ok(pair)
    });
    pause(2_000);
    if writer.is_finished() {
        bail!("the writer was not blocked");
    }
    receive(&mut server, write * count)?;
    let mut pair = writer.join().unwrap_or_else(|_| bail!("the writer panicked"))?;
    drop(server);
    pair.server.write_all(&ANSWER)?;
    receive(&mut pair.client, ANSWER.len())?;
    pause(500);
    pair.client_closes()
}

/// The server speaks every 300 ms, the client only acknowledges.
fn server_push(stage: &mut Stage) -> Result<()> {
    let mut pair = stage.used_pair()?;
    for _ in 0..6 {
        pause(300);
        pair.server.write_all(&[b'p'; 100])?;
        receive(&mut pair.client, 100)?;
        pair.client.write_all(&[b'k'; 10])?;
        receive(&mut pair.server, 10)?;
    }
    pause(1_000);
    pair.server_closes()
}

fn reuse(stage: &mut Stage) -> Result<()> {
    let mut pair = stage.used_pair()?;
    for _ in 0..3 {
        pause(1_000);
        pair.exchange()?;
    }
    pair.client_closes()
}

/// Answered probes are segments, but not use.
fn keep_alive_probes(stage: &mut Stage) -> Result<()> {
    let pair = stage.used_pair()?;
    probe_each_second(&pair.client)?;
    pause(2_500);
    pair.server_closes()
}

fn probe_each_second(stream: &TcpStream) -> Result<()> {
    let second = Duration::from_secs(1);
    sockopt::set_tcp_keepidle(stream, second)?;
    sockopt::set_tcp_keepintvl(stream, second)?;
    Ok(sockopt::set_socket_keepalive(stream, true)?)
}

fn own_last_words(stage: &mut Stage) -> Result<()> {
    let mut pair = stage.used_pair()?;
    pause(1_000);
    pair.client.write_all(&LAST_WORDS)?;
    pair.client_closes()
}

/// An idle timeout under TLS: the server's `close_notify`, the client's `close_notify`; whose FIN
/// comes first differs between libraries, which end decided does not.
fn last_words_of_both(stage: &mut Stage, is_server_fin_first: bool) -> Result<()> {
    let Pair { mut client, mut server } = stage.used_pair()?;
    pause(1_000);
    server.write_all(&LAST_WORDS)?;
    if is_server_fin_first {
        drop(server);
        receive(&mut client, LAST_WORDS.len())?;
        pause(1);
        client.write_all(&LAST_WORDS)?;
    } else {
        receive(&mut client, LAST_WORDS.len())?;
        client.write_all(&LAST_WORDS)?;
        drop(client);
        pause(1);
        drop(server);
    }
    Ok(())
}
