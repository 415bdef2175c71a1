//! Requests that are lost because the connection was closing: each must be one race line.
//!
//! Client and server are both on this host, so each line is the client's view and holds the
//! server's in `other_view`, where the server has one.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown};

use anyhow::{Context, Result, bail};

use crate::kernel;
use crate::stage::{Pair, REQUEST, Scenario, Skip, Stage, expect_end, pause, receive};

const STALE_WRITE: &str = "
    race class=stale_write cause=unknown outcome=reset role=client gap~1.4 fin_age~0.2 bytes=200 \
        peer=$server netns=$netns process=finrace-live pid=$pid \
        other_view.class=late_request other_view.role=server other_view.idle~1.2
    close role=client closer=peer how=fin evidence=idle idle~1.2 peer=$server
    close role=server closer=local how=fin evidence=idle idle~1.2 local=$server";

const STALE_WRITE_LATE: &str = "
    race class=stale_write cause=unknown outcome=reset role=client gap~3.0 fin_age~1.8 \
        peer=$server netns=$netns \
        other_view.class=late_request other_view.role=server other_view.idle~1.2";

const UNREAD_CLOSE: &str = "
    race class=unread_close cause=unknown outcome=reset role=client gap~1.0 bytes=200 \
        process=finrace-live pid=$pid other_view.class=unread_close other_view.role=server
    reuse role=client gap~1.0";

const FAREWELL: &str = "close role=client closer=peer how=fin idle~1.2";

/// A request that crossed the server's FIN on the wire.
const FIN_CROSSED: &str = "
    race class=fin_crossed cause=unknown outcome=reset role=client gap~1.22 \
        other_view.class=late_request other_view.role=server
    close role=server closer=local how=fin idle~1.2";

pub(crate) const ALL: &[Scenario] = &[
    Scenario::new("stale_write", |s| stale_write(s.used_pair()?), STALE_WRITE).also_hookless(),
    Scenario::new(
        "stale_write_older_than_agent",
        stale_write_early,
        "race class=stale_write cause=unknown outcome=reset role=client fin_age~0.2 bytes=200 \
             process=finrace-live pid=$pid other_view.class=late_request
         close role=client closer=peer how=fin evidence=idle",
    )
    .early(),
    Scenario::new("stale_write_ipv6", |s| stale_write(s.used_pair_ipv6()?), STALE_WRITE),
    Scenario::new("stale_write_mapped", stale_write_mapped, STALE_WRITE),
    Scenario::new("stale_write_netns", stale_write_netns, STALE_WRITE),
    Scenario::new(
        "stale_write_distant",
        |s| stale_write(s.distant_pair()?),
        "race class=stale_write cause=unknown outcome=reset role=client gap~1.4 fin_age~0.15 \
             rtt~0.1 other_view.class=late_request",
    ),
    Scenario::new(
        "stale_write_then_close",
        |s| write_and_close(s, 200),
        "race class=stale_write cause=unknown outcome=reset|closed_by_us role=client gap~1.4 \
             fin_age~0.2 bytes=200 other_view.class=late_request
         close role=client closer=peer idle~1.2",
    )
    .also_hookless(),
    Scenario::new(
        "stale_write_late_minisock_gone",
        |s| stale_write_fin_wait2(s.used_pair()?, 1, 1_800),
        STALE_WRITE_LATE,
    ),
    Scenario::new(
        "stale_write_late_minisock_gone_ipv6",
        |s| {
            kernel::unshare_loopback()?;
            stale_write_fin_wait2(s.used_pair_ipv6()?, 1, 1_800)
        },
        STALE_WRITE_LATE,
    ),
    Scenario::new(
        "stale_write_late_nobody_listens",
        |s| {
            kernel::unshare_loopback()?;
            let pair = s.used_pair()?;
            s.stop_listening();
            stale_write_fin_wait2(pair, 1, 1_800)
        },
        STALE_WRITE_LATE,
    ),
    Scenario::new(
        "stale_write_late_nobody_listens_ipv6",
        |s| {
            kernel::unshare_loopback()?;
            let pair = s.used_pair_ipv6()?;
            s.stop_listening();
            stale_write_fin_wait2(pair, 1, 1_800)
        },
        STALE_WRITE_LATE,
    ),
    Scenario::new(
        "stale_write_full_fin_wait2",
        |s| stale_write_fin_wait2(s.used_pair()?, 120, 250),
        "race class=stale_write cause=unknown outcome=reset role=client gap~1.45 fin_age~0.25 \
             other_view.class=late_request other_view.idle~1.2",
    ),
    Scenario::new(
        "lingering_close",
        |s| lingering_close(s, &REQUEST),
        "race class=stale_write cause=unknown outcome=acked role=client gap~1.45 fin_age~0.25 \
             bytes=200
         close role=client closer=peer idle~1.2",
    ),
    // The limit of 96 bytes holds only together with an immediate close.
    Scenario::new("tiny_14_then_close", |s| write_and_close(s, 14), FAREWELL).also_hookless(),
    Scenario::new("tiny_96_then_close", |s| write_and_close(s, 96), FAREWELL).also_hookless(),
    Scenario::new(
        "tiny_97_then_close",
        |s| write_and_close(s, 97),
        "race class=stale_write outcome=reset|closed_by_us role=client fin_age~0.2 bytes=97",
    )
    .also_hookless(),
    Scenario::new(
        "tiny_14_lingering",
        |s| lingering_close(s, &REQUEST[..14]),
        "race class=stale_write outcome=acked role=client gap~1.45 fin_age~0.25 bytes=14",
    )
    .also_hookless(),
    Scenario::new("unread_close_at_once", |s| unread_close(s, 2), UNREAD_CLOSE).also_hookless(),
    Scenario::new("unread_close_acked", |s| unread_close(s, 100), UNREAD_CLOSE).also_hookless(),
    Scenario::new(
        "silent_drop",
        silent_drop,
        "race class=silent_drop cause=idle outcome=reset role=client gap~1.0 bytes=200 \
             process=finrace-live pid=$pid
         reuse role=client gap~1.0",
    ),
    Scenario::new(
        "silent_drop_closed_by_us",
        |s| silent_drop_unanswered(s, None),
        "race class=silent_drop outcome=closed_by_us role=client gap~1.0 bytes=200
         reuse role=client gap~1.0",
    ),
    Scenario::new(
        "silent_drop_timed_out",
        |s| silent_drop_unanswered(s, Some(1_000)),
        "race class=silent_drop outcome=unanswered role=client gap~1.0 bytes=200
         reuse role=client gap~1.0",
    ),
    // Without timestamps the two cannot be told apart, except by what the server's end shows.
    Scenario::new("unread_close_unstamped", unread_close_unstamped, UNREAD_CLOSE),
    Scenario::new(
        "silent_drop_unstamped",
        silent_drop_unstamped,
        "race class=silent_drop outcome=reset role=client gap~1.0 bytes=200 \
             process=finrace-live pid=$pid
         reuse role=client gap~1.0",
    ),
    Scenario::new(
        "rollout",
        rollout,
        "race class=stale_write cause=rollout outcome=reset role=client peer=$server
         8x close role=client closer=peer how=fin evidence=idle",
    ),
    Scenario::new(
        "late_request_of_unseen_client",
        late_request_of_unseen_client,
        "race class=late_request outcome=reset role=server idle~1.2 bytes=200 local=$server
         close role=server closer=local how=fin evidence=idle idle~1.2
         !close role=client",
    ),
    Scenario::new("fin_crossed", |s| fin_crossed(s, &[0], 200), FIN_CROSSED),
    Scenario::new("fin_crossed_two_segments", |s| fin_crossed(s, &[0, 5], 200), FIN_CROSSED),
    // The client closes on the FIN, before the RST comes.
    Scenario::new(
        "fin_crossed_then_close",
        |s| fin_crossed(s, &[0], 0),
        "race class=fin_crossed cause=unknown role=client gap~1.22 other_view.class=late_request",
    ),
    // The second segment is written after the FIN has come.
    Scenario::new("fin_crossed_astride", |s| fin_crossed(s, &[0, 50], 200), FIN_CROSSED),
];

/// The server closes after 1.2 s, the client writes 0.2 s later.
pub(crate) fn stale_write(mut pair: Pair) -> Result<()> {
    pause(1_200);
    drop(pair.server);
    pause(200);
    pair.client.write_all(&REQUEST)?;
    // The FIN alone already ends the stream: time for the RST to come.
    pause(200);
    expect_end(pair.client)
}

/// How long the agent takes to start is part of the gap.
fn stale_write_early(stage: &mut Stage) -> Result<()> {
    let pair = stage.used_pair()?;
    stage.wait_for_agent();
    stale_write(pair)
}

/// Both sockets are IPv6 and hold IPv4-mapped addresses.
fn stale_write_mapped(stage: &mut Stage) -> Result<()> {
    let listener = stage
        .listen((Ipv6Addr::UNSPECIFIED, 0))
        .map_err(|error| Skip(format!("no IPv6: {error:#}")))?;
    let port = listener.local_addr()?.port();
    let mut pair = Pair::new(&listener, (Ipv4Addr::LOCALHOST.to_ipv6_mapped(), port).into())?;
    pair.exchange()?;
    stale_write(pair)
}

fn stale_write_netns(stage: &mut Stage) -> Result<()> {
    let outside = kernel::netns_number()?;
    kernel::unshare_loopback()?;
    if kernel::netns_number()? == outside {
        bail!("still in the old network namespace");
    }
    stale_write(stage.used_pair()?)
}

/// `linger2` decides what is left of the server's socket when the request comes. If nothing is,
/// the listener answers with RST, or else the kernel on its own.
fn stale_write_fin_wait2(mut pair: Pair, linger2: i32, late_ms: u64) -> Result<()> {
    kernel::set_linger2(&pair.server, linger2)?;
    pause(1_200);
    drop(pair.server);
    pause(late_ms);
    pair.client.write_all(&REQUEST)?;
    expect_end(pair.client)
}

/// The client gives up at once: its FIN follows its bytes.
fn write_and_close(stage: &mut Stage, bytes: usize) -> Result<()> {
    let mut pair = stage.used_pair()?;
    pause(1_200);
    drop(pair.server);
    pause(200);
    let request = REQUEST.get(..bytes).context("taking part of a request")?;
    Ok(pair.client.write_all(request)?)
}

/// As Apache closes: the request is read and thrown away, and nothing resets the connection.
fn lingering_close(stage: &mut Stage, request: &[u8]) -> Result<()> {
    let mut pair = stage.used_pair()?;
    pause(1_200);
    pair.server.shutdown(Shutdown::Write)?;
    pause(250);
    pair.client.write_all(request)?;
    receive(&mut pair.server, request.len())?;
    pause(1_000);
    drop(pair.server);
    expect_end(pair.client)
}

/// The server closes while the request is in its queue. Within the delayed-ACK time (2 ms) the
/// RST is also the request's first ACK.
fn unread_close(stage: &mut Stage, unread_ms: u64) -> Result<()> {
    let mut pair = stage.used_pair()?;
    pause(1_000);
    pair.client.write_all(&REQUEST)?;
    pause(unread_ms);
    drop(pair.server);
    expect_end(pair.client)
}

/// A middlebox or a power cut: nobody told the client.
fn silent_drop(stage: &mut Stage) -> Result<()> {
    let mut pair = stage.used_pair()?;
    pause(1_000);
    kernel::vanish(pair.server)?;
    pair.client.write_all(&REQUEST)?;
    expect_end(pair.client)
}

fn unread_close_unstamped(stage: &mut Stage) -> Result<()> {
    kernel::unshare_loopback()?;
    kernel::disable_timestamps()?;
    unread_close(stage, 100)
}

fn silent_drop_unstamped(stage: &mut Stage) -> Result<()> {
    kernel::unshare_loopback()?;
    kernel::disable_timestamps()?;
    silent_drop(stage)
}

/// A server goes away: it closes what has been idle for 0.3 s to 2.4 s, all at the same time.
fn rollout(stage: &mut Stage) -> Result<()> {
    let listener = stage.listen((Ipv4Addr::LOCALHOST, 0))?;
    let (mut clients, mut servers) = (VecDeque::new(), Vec::new());
    for _ in 0..8 {
        let mut pair = Pair::new(&listener, listener.local_addr()?)?;
        pair.exchange()?;
        clients.push_back(pair.client);
        servers.push(pair.server);
        pause(300);
    }
    drop(servers);
    pause(200);
    let mut late = clients.pop_front().context("taking a client")?;
    late.write_all(&REQUEST)?;
    clients.push_back(late);
    pause(200);
    clients.into_iter().try_for_each(expect_end)
}

/// The client's socket is an MPTCP socket, which is not watched: the server's view is all there is,
/// as behind a cloud load balancer.
fn late_request_of_unseen_client(stage: &mut Stage) -> Result<()> {
    let listener = stage.listen((Ipv4Addr::LOCALHOST, 0))?;
    let client = kernel::connect_mptcp(listener.local_addr()?)?;
    let (server, _) = listener.accept().context("accepting")?;
    let mut pair = Pair { client, server };
    pair.exchange()?;
    pause(1_200);
    drop(pair.server);
    pause(200);
    Ok(pair.client.write_all(&REQUEST)?)
}

/// The wire is cut: not even an RST comes back. The client retransmits until it loses patience,
/// or until the kernel does.
fn silent_drop_unanswered(stage: &mut Stage, user_timeout_ms: Option<u32>) -> Result<()> {
    kernel::unshare_loopback()?;
    let mut pair = stage.used_pair()?;
    pause(1_000);
    kernel::set_interface_up("lo", false)?;
    if let Some(timeout) = user_timeout_ms {
        rustix::net::sockopt::set_tcp_user_timeout(&pair.client, timeout)?;
    }
    pair.client.write_all(&REQUEST)?;
    pause(700);
    if user_timeout_ms.is_some() && pair.client.read(&mut [0]).is_ok() {
        bail!("the write did not time out");
    }
    drop(pair.client);
    pause(100);
    Ok(())
}

/// The server closes; the client, 50 ms away, writes before that FIN arrives. `writes_ms` is when
/// each part of the request is written; after the patience it closes as soon as the FIN has come.
fn fin_crossed(stage: &mut Stage, writes_ms: &[u64], patience_ms: u64) -> Result<()> {
    let mut pair = stage.distant_pair()?;
    pause(1_200);
    drop(pair.server);
    pause(20);
    let mut now = 0;
    for &at in writes_ms {
        pause(at - now);
        now = at;
        pair.client.write_all(&REQUEST)?;
    }
    pause(patience_ms);
    expect_end(pair.client)
}
