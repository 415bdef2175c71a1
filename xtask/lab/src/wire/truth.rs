//! What really happened to each connection, read from a packet capture that an independent
//! program (tshark) has decoded. Nothing of finrace is in here.
//!
//! The capture is taken at the client's end. What a request met follows from sequence and
//! acknowledgement numbers: a segment that acknowledges a FIN was sent after it had come, and a
//! FIN that does not acknowledge a request was sent before that had come. The order of packets in
//! the capture decides nothing, so that neither its clock nor its buffers matter.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};

/// The fields to ask tshark for, in the order of [`parse`].
pub(crate) const FIELDS: [&str; 11] = [
    "frame.time_epoch",
    "tcp.stream",
    "ip.src",
    "tcp.srcport",
    "ip.dst",
    "tcp.dstport",
    "tcp.flags",
    "tcp.seq_raw",
    "tcp.ack_raw",
    "tcp.len",
    "tcp.options.timestamp.tsval",
];

/// A `close_notify` and the like, from either side, are no larger than this, and requests and
/// responses of these tests are no smaller.
pub(super) const FAREWELL: u32 = 96;

/// Parts of one answer follow each other within this.
pub(super) const SILENCE_SECONDS: f64 = 0.2;

/// A FIN later than a round trip and this after the request it acknowledged is not the idle
/// timer's.
const ONE_TURN_SECONDS: f64 = 0.05;

pub(super) const FIN: u16 = 0x01;
const SYN: u16 = 0x02;
pub(super) const RST: u16 = 0x04;
const ACK: u16 = 0x10;

/// One TCP segment of the capture.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    /// Seconds since the epoch.
    pub(crate) time: f64,
    /// tshark's number of the connection: a pair of endpoints used again has another.
    pub(crate) stream: u32,
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) len: u32,
    pub(crate) has_timestamp: bool,
}

impl Segment {
    pub(super) fn is(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// What became of the last request of a connection, where it was lost to a close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    /// Sent after the server's FIN or farewell had come.
    StaleWrite,
    /// Under way while the server's FIN or farewell came.
    FinCrossed,
    /// Answered by RST, from a socket that still knew the connection.
    UnreadClose,
    /// Answered by RST from no socket, or by nothing.
    SilentDrop,
    /// Acknowledged by the server's FIN (or by its farewell, if that came first), which came at once
    /// instead of an answer.
    ReadAndClosed,
}

impl Class {
    pub(crate) const ALL: [Self; 5] = [
        Self::StaleWrite,
        Self::FinCrossed,
        Self::UnreadClose,
        Self::SilentDrop,
        Self::ReadAndClosed,
    ];

    /// The word that finrace has for it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::StaleWrite => "stale_write",
            Self::FinCrossed => "fin_crossed",
            Self::UnreadClose => "unread_close",
            Self::SilentDrop => "silent_drop",
            Self::ReadAndClosed => "read_and_closed",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A connection whose beginning was captured.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The end that sent the SYN.
    pub(crate) client: SocketAddr,
    pub(crate) server: SocketAddr,
    /// When the last request was sent, seconds since the epoch.
    pub(crate) time: f64,
    pub(crate) race: Option<Class>,
    pub(super) segments: Vec<Segment>,
}

/// The last segments, for whoever must judge a disagreement.
impl fmt::Display for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 12;
        let (client_isn, server_isn) = self.first_numbers();
        writeln!(f, "{} -> {}", self.client, self.server)?;
        for segment in self.segments.iter().skip(self.segments.len().saturating_sub(SHOWN)) {
            let is_client = segment.src == self.client;
            let (own, other) =
                if is_client { (client_isn, server_isn) } else { (server_isn, client_isn) };
            let names: String = [(SYN, 'S'), (FIN, 'F'), (RST, 'R'), (ACK, '.')]
                .into_iter()
                .filter_map(|(flag, name)| segment.is(flag).then_some(name))
                .collect();
            writeln!(
                f,
                "  {:+10.6} {} {names:4} seq {} ack {} len {}{}",
                segment.time - self.time,
                if is_client { "client" } else { "server" },
                segment.seq.wrapping_sub(own),
                if segment.is(ACK) { segment.ack.wrapping_sub(other) } else { 0 },
                segment.len,
                if segment.has_timestamp { "" } else { " no timestamp" },
            )?;
        }
        Ok(())
    }
}

impl Connection {
    /// Initial sequence numbers of client and server.
    fn first_numbers(&self) -> (u32, u32) {
        let isn =
            |from| self.segments.iter().find(|s| s.is(SYN) && s.src == from).map_or(0, |s| s.seq);
        (isn(self.client), isn(self.server))
    }
}

/// Reads tshark's fields, separated by tabs, one segment per line.
pub(crate) fn parse(text: &str) -> Result<Vec<Segment>> {
    text.lines().map(|line| segment(line).with_context(|| format!("tshark: `{line}`"))).collect()
}

fn segment(line: &str) -> Result<Segment> {
    let mut fields = line.split('\t');
    let mut next = || fields.next().context("too few fields");
    Ok(Segment {
        time: next()?.parse()?,
        stream: next()?.parse()?,
        src: SocketAddr::new(next()?.parse::<IpAddr>()?, next()?.parse()?),
        dst: SocketAddr::new(next()?.parse::<IpAddr>()?, next()?.parse()?),
        flags: u16::from_str_radix(next()?.trim_start_matches("0x"), 16)?,
        seq: next()?.parse()?,
        ack: next()?.parse()?,
        len: next()?.parse()?,
        has_timestamp: !next()?.is_empty(),
    })
}

/// Every connection of a capture that begins with its SYN, and what became of its last request.
pub(crate) fn connections(segments: Vec<Segment>) -> Vec<Connection> {
    let mut streams: BTreeMap<u32, Vec<Segment>> = BTreeMap::new();
    for segment in segments {
        streams.entry(segment.stream).or_default().push(segment);
    }
    streams.into_values().filter_map(connection).collect()
}

fn connection(segments: Vec<Segment>) -> Option<Connection> {
    let syn = segments.iter().find(|s| s.is(SYN) && !s.is(ACK))?;
    let answer = segments.iter().find(|s| s.is(SYN) && s.is(ACK))?;
    let rtt = answer.time - syn.time;
    let mut connection =
        Connection { client: syn.src, server: syn.dst, time: syn.time, race: None, segments };
    if let Some((time, race)) = last_request(&connection, rtt) {
        connection.time = time;
        connection.race = race;
    }
    Some(connection)
}

/// Bytes of one direction that no earlier segment had carried, in numbers relative to the initial
/// ones.
struct Payload {
    time: f64,
    start: u32,
    end: u32,
    /// What the sender had received.
    ack: u32,
}

/// New bytes in the order of their numbers: retransmissions and segments captured twice add none.
fn payload<'a>(segments: impl Iterator<Item = &'a Segment>, own: u32, other: u32) -> Vec<Payload> {
    let mut all: Vec<Payload> = segments
        .filter(|s| s.len > 0)
        .map(|s| {
            let start = s.seq.wrapping_sub(own);
            Payload {
                time: s.time,
                start,
                end: start.wrapping_add(s.len),
                ack: s.ack.wrapping_sub(other),
            }
        })
        .collect();
    // Among segments with the same bytes, the first one sent says what its sender knew.
    all.sort_by_key(|p| (p.start, p.ack));
    let mut end = 0;
    all.retain(|p| {
        let is_new = p.end > end;
        end = end.max(p.end);
        is_new
    });
    all
}

/// The server's last few bytes, if they came after a silence or could not be known to the client
/// when it sent its request: not the end of an answer.
fn farewell<'a>(received: &'a [Payload], request: &Payload) -> Option<&'a Payload> {
    let (last, before) = received.split_last()?;
    let silence = before.last().map_or(0.0, |part| last.time - part.time);
    let is_apart = last.start >= request.ack || silence > SILENCE_SECONDS;
    (last.end - last.start <= FAREWELL && is_apart).then_some(last)
}

/// Time and fate of the last request, `None` if there was none.
fn last_request(connection: &Connection, rtt: f64) -> Option<(f64, Option<Class>)> {
    let (client_isn, server_isn) = connection.first_numbers();
    let from = |end| connection.segments.iter().filter(move |s| s.src == end);
    let sent = payload(from(connection.client), client_isn, server_isn);
    let received = payload(from(connection.server), server_isn, client_isn);

    // A request begins where the client knows of a response that it had not known of before.
    let mut known = 0;
    let mut first = None;
    for part in &sent {
        if first.is_none() || part.ack > known + FAREWELL {
            first = Some(part);
        }
        known = known.max(part.ack);
    }
    let request = first?;
    let end = sent.last()?.end;

    let answer: u32 =
        received.iter().filter(|p| p.ack > request.start).map(|p| p.end - p.start).sum();
    if end - request.start <= FAREWELL || answer > FAREWELL {
        return Some((request.time, None));
    }

    // A FIN that is sent again acknowledges more: the lowest acknowledgement is the first one's.
    let fin = from(connection.server)
        .filter(|s| s.is(FIN))
        .map(|s| (s.ack.wrapping_sub(client_isn), s))
        .min_by_key(|(ack, _)| *ack);
    let race = if let Some((ack, fin)) = fin {
        let fin_end = fin.seq.wrapping_sub(server_isn) + fin.len + 1;
        // A server that says farewell has decided to close by then, whenever its FIN follows.
        let farewell = farewell(&received, request);
        let ack = farewell.map_or(ack, |farewell| ack.min(farewell.ack));
        let had_come = farewell.is_some_and(|farewell| request.ack >= farewell.end);
        if request.ack >= fin_end || had_come {
            Some(Class::StaleWrite)
        } else if ack < end {
            Some(Class::FinCrossed)
        } else {
            (fin.time - request.time <= rtt + ONE_TURN_SECONDS).then_some(Class::ReadAndClosed)
        }
    } else if let Some(rst) = from(connection.server).find(|s| s.is(RST)) {
        Some(if rst.has_timestamp { Class::UnreadClose } else { Class::SilentDrop })
    } else {
        // Nothing came back at all. A capture that ends too early shows the same, but then the
        // client has not given up yet.
        from(connection.client).any(|s| s.is(FIN) || s.is(RST)).then_some(Class::SilentDrop)
    };
    Some((request.time, race))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection from its segments after the handshake, one per line: milliseconds, `c` or
    /// `s`, flags, relative seq, relative ack, length, `-` without timestamp.
    fn race(text: &str) -> Option<Class> {
        // Numbers that wrap within the connection.
        const CLIENT_ISN: u32 = u32::MAX - 100;
        const SERVER_ISN: u32 = u32::MAX - 300;
        let (client, server) = ("10.0.0.1:40000".parse().unwrap(), "10.0.0.2:80".parse().unwrap());
        let handshake = "0 c S 0 0 0\n10 s S. 0 1 0\n10 c . 1 1 0\n";
        let segments = format!("{handshake}{text}")
            .lines()
            .map(|line| {
                let f: Vec<&str> = line.split_whitespace().collect();
                let (src, dst, own, other) = match f[1] {
                    "c" => (client, server, CLIENT_ISN, SERVER_ISN),
                    _ => (server, client, SERVER_ISN, CLIENT_ISN),
                };
                let flags = [('F', FIN), ('S', SYN), ('R', RST), ('.', ACK)];
                Segment {
                    time: f[0].parse::<f64>().unwrap() / 1000.0,
                    stream: 0,
                    src,
                    dst,
                    flags: flags.iter().filter(|(n, _)| f[2].contains(*n)).map(|(_, b)| b).sum(),
                    seq: own.wrapping_add(f[3].parse().unwrap()),
                    ack: other.wrapping_add(f[4].parse().unwrap()),
                    len: f[5].parse().unwrap(),
                    has_timestamp: f.len() == 6,
                }
            })
            .collect();
        let connections = connections(segments);
        assert_eq!(connections.len(), 1);
        assert_eq!(connections[0].client, client);
        connections[0].race
    }

    /// A request of 300 bytes, its answer of 200, a second of idle, then what the test adds.
    fn after_idle(text: &str) -> Option<Class> {
        race(&format!(
            "20 c . 1 1 300\n30 s . 1 301 200\n30 c . 301 201 0\n{}",
            text.replace(';', "\n")
        ))
    }

    fn check(text: &str, expected: Class) {
        assert_eq!(after_idle(text), Some(expected), "{text}");
    }

    fn check_none(text: &str) {
        assert_eq!(after_idle(text), None, "{text}");
    }

    #[test]
    fn stale_write() {
        check("1030 s F. 201 301 0;1031 c . 301 202 300;1041 s R 202 0 0 -", Class::StaleWrite);
        // Lingering close: acknowledged, never answered, no RST.
        check("1030 s F. 201 301 0;1031 c . 301 202 300;1041 s . 202 601 0", Class::StaleWrite);
        // After a close_notify, and in two segments.
        check("1030 s F. 201 301 24;1031 c . 301 226 200;1031 c . 501 226 200", Class::StaleWrite);
        // The close_notify had come, the FIN comes after that or after the client's own.
        check("1029 s . 201 301 24;1030 c . 301 225 300;1031 s F. 225 301 0", Class::StaleWrite);
        check(
            "1029 s . 201 301 24;1030 c . 301 225 300;1030 c F. 601 225 0;1040 s F. 225 602 0",
            Class::StaleWrite,
        );
        // Captured out of order.
        check("1031 c . 301 202 300;1030 s F. 201 301 0", Class::StaleWrite);
    }

    #[test]
    fn farewells() {
        check_none("1030 s F. 201 301 0;1030 c F. 301 202 0;1040 s . 202 302 0");
        check_none("1030 s F. 201 301 24;1030 c . 301 226 24;1030 c F. 325 226 0");
        // A close_notify that crosses the FIN.
        check_none("1030 s F. 201 301 0;1025 c . 301 201 24;1025 c F. 325 201 0");
        // The client closes first.
        check_none("1030 c F. 301 201 0;1040 s F. 201 302 0");
    }

    #[test]
    fn fin_crossed() {
        check("1025 c . 301 201 300;1030 s F. 201 301 0;1035 s R 202 0 0 -", Class::FinCrossed);
        // The head had come, the body had not.
        check("1025 c . 301 201 200;1026 c . 501 201 200;1030 s F. 201 501 0", Class::FinCrossed);
        // The head crossed the FIN, the body was sent after it.
        check("1025 c . 301 201 200;1030 s F. 201 301 0;1031 c . 501 202 200", Class::FinCrossed);
        // The FIN was sent again and acknowledges the request then.
        check("1025 c . 301 201 300;1030 s F. 201 301 0;1230 s F. 201 601 0", Class::FinCrossed);
        // Captured twice, and retransmitted with knowledge of the FIN.
        check(
            "1025 c . 301 201 300;1025 c . 301 201 300;1030 s F. 201 301 0;1230 c . 301 202 300",
            Class::FinCrossed,
        );
        // The close_notify before the FIN has the client close first, or comes before the request.
        check(
            "1025 c . 301 201 300;1030 s . 201 301 24;1030 c F. 601 225 0;1031 s F. 225 301 0",
            Class::FinCrossed,
        );
        check("1029 s . 201 301 24;1030 c . 301 201 300;1031 s F. 225 301 0", Class::FinCrossed);
        // The farewell had not seen the request; the FIN after the client's own has.
        check(
            "1025 c . 301 201 300;1030 s . 201 301 24;1030 c F. 601 225 0;1040 s F. 225 602 0",
            Class::FinCrossed,
        );
        // A close_notify of the server is not an answer.
        check("1025 c . 301 201 300;1030 s . 201 301 24;1030 s F. 225 301 0", Class::FinCrossed);
    }

    #[test]
    fn resets() {
        check("1025 c . 301 201 300;1035 s R. 201 301 0", Class::UnreadClose);
        check("1025 c . 301 201 300;1035 s R 201 0 0 -", Class::SilentDrop);
        // A close_notify acknowledges the request before the reset: not an answer either.
        check("1025 c . 301 201 300;1035 s . 201 601 24;1035 s R. 225 601 0", Class::UnreadClose);
        // Nothing but retransmissions until the client gives up.
        check("1025 c . 301 201 300;1325 c . 301 201 300;9000 c F. 601 201 0", Class::SilentDrop);
        // Nothing yet.
        check_none("1025 c . 301 201 300;1325 c . 301 201 300");
        // In the middle of an answer.
        check_none("1025 c . 301 201 300;1035 s . 201 601 5000;1036 s R. 5201 601 0");
        // No request at all.
        check_none("1035 s R. 201 301 0");
    }

    #[test]
    fn read_and_closed() {
        check("1025 c . 301 201 300;1035 s F. 201 601 0", Class::ReadAndClosed);
        check("1025 c . 301 201 300;1035 s . 201 601 24;1035 s F. 225 601 0", Class::ReadAndClosed);
        // The server's FIN waits for the client's, as asyncio's does over TLS.
        check(
            "1025 c . 301 201 300;1030 s . 201 601 24;1030 c F. 601 225 0;1040 s F. 225 602 0",
            Class::ReadAndClosed,
        );
        // A server that worked on it, then crashed.
        check_none("1025 c . 301 201 300;1535 s F. 201 601 0");
        // Answered, with the FIN in the same segment.
        check_none("1025 c . 301 201 300;1035 s F. 201 601 200");
        // Answered before the body had come (413), then closed.
        check_none("1025 c . 301 201 200;1026 c . 501 201 900;1035 s F. 201 501 200");
    }

    #[test]
    fn first_request() {
        assert_eq!(race("20 s F. 1 1 0\n21 c . 1 2 300"), Some(Class::StaleWrite));
        assert_eq!(race("20 c . 1 1 300\n30 s F. 1 301 200"), None);
        assert_eq!(race(""), None);
    }

    #[test]
    fn tsharks_lines() {
        let line = "1700000000.25\t3\t10.0.0.1\t40000\t10.0.0.2\t80\t0x0018\t7\t9\t300\t12345";
        let segments = parse(line).unwrap();
        assert_eq!(segments[0].dst, "10.0.0.2:80".parse().unwrap());
        assert_eq!((segments[0].flags, segments[0].len), (0x18, 300));
        assert!(segments[0].has_timestamp);
        assert!(!parse(&line.replace("12345", "")).unwrap()[0].has_timestamp);
        assert!(parse("1.0\t2").is_err());
        // Connections whose beginning was not captured say nothing.
        assert!(connections(segments).is_empty());
    }
}
