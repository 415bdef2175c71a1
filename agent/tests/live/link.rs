//! Two network namespaces with a slow wire between them: what loopback is too fast for.
//!
//! The wire is a TUN device on each side and threads that carry packets over, each after a delay,
//! in order. They end with the process. The wire can lose the first FINs of each connection, or, as a
//! balancer does, reset at both ends what has been idle for too long.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::kernel;
use crate::stage::{Pair, Stage, now};

/// One way; a round trip takes twice this.
pub(crate) const FAR: Duration = Duration::from_millis(50);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const DEVICE: &str = "frlink";

impl Stage {
    /// A used pair whose ends are 50 ms apart, in two namespaces; leaves the thread in the client's.
    pub(crate) fn distant_pair(&mut self) -> Result<Pair> {
        let listener = self.distant_listener(FAR)?;
        let mut pair = Pair::new(&listener, listener.local_addr()?)?;
        pair.exchange()?;
        Ok(pair)
    }

    /// A listener `delay` away, one way, in a namespace of its own; leaves the thread in the client's.
    pub(crate) fn distant_listener(&mut self, delay: Duration) -> Result<TcpListener> {
        self.listener_behind(delay, Wire::Plain)
    }

    /// The same, but the first three FINs from there are lost: the fourth comes after 1.4 s.
    pub(crate) fn lossy_listener(&mut self, delay: Duration) -> Result<TcpListener> {
        self.listener_behind(delay, Wire::LosesFins)
    }

    /// A used pair with a balancer in between, which resets it once no packet has passed for `idle`.
    pub(crate) fn pair_reset_after(&mut self, idle: Duration) -> Result<Pair> {
        let listener = self.listener_behind(FAR, Wire::ResetsAfter(idle))?;
        let mut pair = Pair::new(&listener, listener.local_addr()?)?;
        pair.exchange()?;
        Ok(pair)
    }

    fn listener_behind(&mut self, delay: Duration, wire: Wire) -> Result<TcpListener> {
        let server = side(SERVER)?;
        let listener = self.listen((SERVER, 0))?;
        let client = side(CLIENT)?;
        self.belongs_here()?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        carry(server.try_clone()?, client.try_clone()?, delay, wire, Arc::clone(&seen));
        carry(client.try_clone()?, server.try_clone()?, delay, Wire::Plain, Arc::clone(&seen));
        if let Wire::ResetsAfter(idle) = wire {
            reset_after(idle, [client, server], seen);
        }
        Ok(listener)
    }
}

/// What the wire does to packets that come from the server.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wire {
    Plain,
    LosesFins,
    ResetsAfter(Duration),
}

/// What has passed of the one connection that goes over the wire.
#[derive(Default)]
struct Seen {
    /// The latest packet from either side.
    last: HashMap<Ipv4Addr, Packet>,
    when: Duration,
}

type Packet = [u8; 40];

/// Moves the thread to a new namespace whose only way out is the file.
fn side(address: Ipv4Addr) -> Result<File> {
    kernel::unshare_netns()?;
    let tun = kernel::open_tun(DEVICE)?;
    kernel::set_interface_address(DEVICE, address)?;
    kernel::set_interface_up(DEVICE, true)?;
    Ok(tun)
}

fn carry(mut from: File, mut to: File, delay: Duration, wire: Wire, seen: Arc<Mutex<Seen>>) {
    let (sender, receiver) = mpsc::channel::<(Duration, Vec<u8>)>();
    thread::spawn(move || {
        let mut packet = vec![0; 64 * 1024];
        let mut lost = HashMap::new();
        while let Ok(length) = from.read(&mut packet) {
            let packet = packet.get(..length).unwrap_or_default().to_vec();
            // The device also sends IPv6 packets of its own.
            let head = packet.first_chunk::<40>().filter(|head| head[0] == 0x45);
            if let (Some(head), Ok(mut seen)) = (head, seen.lock()) {
                let source = Ipv4Addr::new(head[12], head[13], head[14], head[15]);
                seen.last.insert(source, *head);
                seen.when = now();
            }
            if let Some(port) = fin_for(&packet).filter(|_| wire == Wire::LosesFins) {
                let fins: &mut u32 = lost.entry(port).or_default();
                *fins += 1;
                if *fins <= 3 {
                    continue;
                }
            }
            if sender.send((now() + delay, packet)).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        for (due, packet) in receiver {
            thread::sleep(due.saturating_sub(now()));
            // A full queue drops packets, as wires do.
            drop(to.write(&packet));
        }
    });
}

/// The port that a FIN in IPv4 without options goes to.
fn fin_for(packet: &[u8]) -> Option<[u8; 2]> {
    const FIN: u8 = 1;
    let head: &[u8; 34] = packet.first_chunk()?;
    (head[0] == 0x45 && head[33] & FIN != 0).then_some([head[22], head[23]])
}

/// Sends each end an RST in the other one's name, once nothing has passed for `idle`.
fn reset_after(idle: Duration, [mut client, mut server]: [File; 2], seen: Arc<Mutex<Seen>>) {
    thread::spawn(move || {
        loop {
            thread::sleep(Duration::from_millis(1));
            let Ok(seen) = seen.lock() else { return };
            let (Some(asked), Some(answered)) = (seen.last.get(&CLIENT), seen.last.get(&SERVER))
            else {
                continue;
            };
            if now().saturating_sub(seen.when) >= idle {
                drop(client.write(&reset_in_answer_to(asked)));
                drop(server.write(&reset_in_answer_to(answered)));
                return;
            }
        }
    });
}

/// An RST, as from the other end, with the sequence number that the sender of this packet expects.
fn reset_in_answer_to(packet: &Packet) -> Packet {
    const TCP: u8 = 6;
    const RST: u8 = 4;
    let mut reset = [0; 40];
    reset[..4].copy_from_slice(&[0x45, 0, 0, 40]);
    reset[8..10].copy_from_slice(&[64, TCP]);
    reset[12..16].copy_from_slice(&packet[16..20]);
    reset[16..20].copy_from_slice(&packet[12..16]);
    reset[20..22].copy_from_slice(&packet[22..24]);
    reset[22..24].copy_from_slice(&packet[20..22]);
    reset[24..28].copy_from_slice(&packet[28..32]);
    reset[32..34].copy_from_slice(&[5 << 4, RST]);
    let of_header = checksum(&reset[..20], 0);
    reset[10..12].copy_from_slice(&of_header.to_be_bytes());
    let of_segment = checksum(&reset[12..], u32::from(TCP) + 20);
    reset[36..38].copy_from_slice(&of_segment.to_be_bytes());
    reset
}

/// The checksum of RFC 1071 over `bytes`, and over `rest` for what they do not contain.
fn checksum(bytes: &[u8], rest: u32) -> u16 {
    let (words, _) = bytes.as_chunks();
    let words = words.iter().map(|word| u32::from(u16::from_be_bytes(*word)));
    let sum = words.sum::<u32>() + rest;
    let folded = (sum & 0xFFFF) + (sum >> 16);
    !((folded & 0xFFFF) + (folded >> 16)) as u16
}
