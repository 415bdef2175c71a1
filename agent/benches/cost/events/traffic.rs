//! Records as a kernel would write them for traffic of keep-alive connections, in memory.
//!
//! Both ends of every connection are on this host. A connection is used again after a gap, its
//! server answers and closes it after a timeout, its client closes, too; some clients write into
//! the closed connection instead, and are answered with RST.

use finrace_ebpf::abi::{Record, flag, kind, opener};
use finrace_ebpf::decide::state::{CLOSE, CLOSE_WAIT, ESTABLISHED, FIN_WAIT1, LAST_ACK, TIME_WAIT};

/// Jiffies per second.
pub(crate) const HZ: u32 = 250;

/// The servers' idle timeout.
const TIMEOUT: u64 = 5_000_000_000;

/// One in this many connections races.
const RACES: u64 = 200;

/// Records of a connection that does not race.
const RECORDS: u64 = 6;

/// Bytes of a request, and of its answer.
const REQUEST: u32 = 200;
const ANSWER: u32 = 300;

/// The traffic to write down.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Traffic {
    /// Records
    #[arg(long, default_value_t = 400_000)]
    count: usize,
    /// Records per second, by their stamps
    #[arg(long, default_value_t = 10_000)]
    pub(crate) rate: u64,
    /// Peers: half are servers that are connected to, half are clients
    #[arg(long, default_value_t = 1_000)]
    peers: u64,
}

impl Traffic {
    /// This many records of the usual mixture.
    pub(crate) const fn of(count: usize, peers: u64) -> Self {
        Self { count, rate: 10_000, peers }
    }

    /// Records in the order of their stamps.
    pub(crate) fn records(&self) -> Vec<Record> {
        let mut random = Random(1);
        let begin = 100_000_000_000;
        let end = begin + self.count as u64 * 1_000_000_000 / self.rate;
        // Connections that close at the beginning were used before it.
        let mut opened = begin - TIMEOUT - 1_000_000_000;
        let mut records = Vec::with_capacity(self.count + self.count / 8);
        while opened < end {
            let connection = Connection::new(&mut random, opened, self.peers / 2);
            connection.write_down(&mut |record| {
                if (begin..end).contains(&record.time_ns) {
                    records.push(record);
                }
            });
            opened += random.below(2 * RECORDS * 1_000_000_000 / self.rate + 1);
        }
        records.sort_by_key(|record| record.time_ns);
        records.truncate(self.count);
        records
    }
}

/// Whether the kernel side writes it into the ring of races.
pub(crate) fn is_of_races(record: &Record) -> bool {
    match record.kind {
        kind::STATE => {
            matches!((record.old_state, record.new_state), (ESTABLISHED | CLOSE_WAIT, CLOSE))
        }
        kind::WRITE => record.old_state == CLOSE_WAIT,
        _ => true,
    }
}

/// Both ends of a connection, and the times of its events.
struct Connection {
    client: Record,
    server: Record,
    used: u64,
    closed: u64,
    races: bool,
}

impl Connection {
    fn new(random: &mut Random, used: u64, half: u64) -> Self {
        let gap = 300 + random.below(4_000);
        let numbers = random.next();
        let sockets = random.next() | 0xFFFF_0000_0000_0000;
        let pick = |random: &mut Random| random.below(half.max(1));
        let client_end = (address(1, pick(random)), 32_768 + random.below(28_000) as u16);
        let server_end = (address(2, pick(random)), 8_080);
        let last = jiffies(used).wrapping_sub(HZ * gap as u32 / 1_000);
        let blank = Record {
            netns: 4_026_531_833,
            flags: flag::FULL_SOCK | flag::SAW_TSTAMP | flag::TSTAMP_OK,
            lsndtime: last,
            lrcvtime: last,
            rcv_tstamp: last,
            rtt_us: 20 + random.below(2_000) as u32,
            data_segs_out: 1,
            bytes_received: 500,
            tgid: std::process::id(),
            ..blank()
        };
        let [of_client, of_server] = [numbers as u32, (numbers >> 32) as u32];
        Self {
            client: Record {
                sk: sockets,
                local: client_end.0,
                local_port: client_end.1,
                remote: server_end.0,
                remote_port: server_end.1,
                opener: opener::ACTIVE,
                comm: name(b"envoy"),
                ..ours(blank, of_client, of_server)
            },
            server: Record {
                sk: sockets ^ 0x1000,
                local: server_end.0,
                local_port: server_end.1,
                remote: client_end.0,
                remote_port: client_end.1,
                opener: opener::PASSIVE,
                comm: name(b"http-nio-8080-e"),
                max_ack_backlog: 128,
                ..ours(blank, of_server, of_client)
            },
            used,
            closed: used + TIMEOUT + random.below(20_000_000),
            races: random.below(RACES) == 0,
        }
    }

    fn write_down(&self, out: &mut impl FnMut(Record)) {
        let Self { mut client, mut server, used, closed, races } = *self;
        // Used again, and answered.
        client.flags |= flag::TASK;
        out(write(client, used, REQUEST));
        let answered = used + 200_000;
        (server.rcv_nxt, server.lrcvtime) = (server.rcv_nxt.wrapping_add(REQUEST), jiffies(used));
        server.flags |= flag::TASK;
        out(write(server, answered, ANSWER));
        for (end, sent) in [(&mut client, REQUEST), (&mut server, ANSWER)] {
            end.write_seq = end.write_seq.wrapping_add(sent);
            (end.snd_una, end.snd_nxt) = (end.write_seq, end.write_seq);
            end.data_segs_out = 2;
            (end.lsndtime, end.lrcvtime) = (jiffies(used), jiffies(answered));
        }
        client.rcv_nxt = client.rcv_nxt.wrapping_add(ANSWER);
        (client.copied_seq, client.rcv_wup) = (client.rcv_nxt, client.rcv_nxt);
        (server.copied_seq, server.rcv_wup) = (server.rcv_nxt, server.rcv_nxt);
        server.lsndtime = jiffies(answered);
        // The server closes.
        out(change(Record { shutdown: 3, ..server }, closed, ESTABLISHED, FIN_WAIT1));
        client.flags &= !flag::TASK;
        (client.rcv_nxt, client.rcv_tstamp) = (client.rcv_nxt.wrapping_add(1), jiffies(closed));
        client.shutdown = 1;
        out(change(client, closed + 8_000, ESTABLISHED, CLOSE_WAIT));
        if races {
            Self::race(client, closed + 100_000_000, out);
            return;
        }
        // So does the client.
        client.shutdown = 3;
        client.rcv_wup = client.rcv_nxt;
        let task = client.flags | flag::TASK;
        out(change(Record { flags: task, ..client }, closed + 150_000, CLOSE_WAIT, LAST_ACK));
        client.write_seq = client.write_seq.wrapping_add(1);
        (client.snd_una, client.snd_nxt) = (client.write_seq, client.write_seq);
        client.flags |= flag::FIN_SENT;
        out(change(client, closed + 170_000, LAST_ACK, CLOSE));
    }

    /// A client writes after the server's FIN.
    fn race(mut client: Record, time: u64, out: &mut impl FnMut(Record)) {
        let task = client.flags | flag::TASK;
        let mut late = write(Record { flags: task, ..client }, time, REQUEST);
        (late.old_state, late.new_state) = (CLOSE_WAIT, CLOSE_WAIT);
        out(late);
        out(Record {
            time_ns: time + 30_000,
            kind: kind::RESET_SENT,
            old_state: TIME_WAIT,
            new_state: TIME_WAIT,
            netns: client.netns,
            local: client.remote,
            local_port: client.remote_port,
            remote: client.local,
            remote_port: client.local_port,
            flags: flag::SEGMENT | flag::TIMEWAIT,
            jiffies: jiffies(time),
            snd_nxt: client.rcv_nxt,
            rcv_nxt: client.write_seq,
            skb_seq: client.write_seq,
            skb_ack: client.rcv_nxt,
            size: REQUEST,
            ..blank()
        });
        client.write_seq = client.write_seq.wrapping_add(REQUEST);
        (client.snd_nxt, client.lsndtime) = (client.write_seq, jiffies(time));
        let reset = change(client, time + 100_000, CLOSE_WAIT, CLOSE_WAIT);
        out(Record { kind: kind::RESET_RECEIVED, ..reset });
        out(change(client, time + 110_000, CLOSE_WAIT, CLOSE));
    }
}

fn jiffies(time: u64) -> u32 {
    (time * u64::from(HZ) / 1_000_000_000) as u32
}

fn write(end: Record, time_ns: u64, size: u32) -> Record {
    let state = ESTABLISHED;
    let jiffies = jiffies(time_ns);
    Record { time_ns, jiffies, kind: kind::WRITE, old_state: state, new_state: state, size, ..end }
}

fn change(end: Record, time_ns: u64, old_state: u8, new_state: u8) -> Record {
    Record { time_ns, jiffies: jiffies(time_ns), kind: kind::STATE, old_state, new_state, ..end }
}

/// Sequence numbers of an end that has nothing in flight.
fn ours(blank: Record, sent: u32, received: u32) -> Record {
    Record {
        write_seq: sent,
        snd_una: sent,
        snd_nxt: sent,
        rcv_nxt: received,
        copied_seq: received,
        rcv_wup: received,
        ..blank
    }
}

/// 10.net.x.y, as IPv4-mapped IPv6.
fn address(net: u8, number: u64) -> [u8; 16] {
    let [.., high, low] = number.to_be_bytes();
    std::net::Ipv4Addr::new(10, net, high, low).to_ipv6_mapped().octets()
}

fn name(text: &[u8]) -> [u8; 16] {
    let mut name = [0; 16];
    for (to, from) in name.iter_mut().zip(text) {
        *to = *from;
    }
    name
}

fn blank() -> Record {
    // SAFETY: `Record` is integers only, so zeroes are valid.
    unsafe { std::mem::zeroed() }
}

/// Splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
