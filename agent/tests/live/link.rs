//! Two network namespaces with a slow wire between them: what loopback is too fast for.
//!
//! The wire is a TUN device on each side and threads that carry packets over, each after a delay,
//! in order. They end with the process. It can lose the first FINs of each connection.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::mpsc;
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

    /// A listener that far away, one way, in a namespace of its own; leaves the thread in the client's.
    pub(crate) fn distant_listener(&mut self, delay: Duration) -> Result<TcpListener> {
        self.listener_behind(delay, false)
    }

    /// So too, and the first three FINs from there are lost on the way: the fourth comes after 1.4 s.
    pub(crate) fn lossy_listener(&mut self, delay: Duration) -> Result<TcpListener> {
        self.listener_behind(delay, true)
    }

    fn listener_behind(&mut self, delay: Duration, loses_fins: bool) -> Result<TcpListener> {
        let server = side(SERVER)?;
        let listener = self.listen((SERVER, 0))?;
        let client = side(CLIENT)?;
        self.belongs_here()?;
        carry(server.try_clone()?, client.try_clone()?, delay, loses_fins);
        carry(client, server, delay, false);
        Ok(listener)
    }
}

/// Moves the thread to a new namespace whose only way out is the file.
fn side(address: Ipv4Addr) -> Result<File> {
    kernel::unshare_netns()?;
    let tun = kernel::open_tun(DEVICE)?;
    kernel::set_interface_address(DEVICE, address)?;
    kernel::set_interface_up(DEVICE, true)?;
    Ok(tun)
}

fn carry(mut from: File, mut to: File, delay: Duration, loses_fins: bool) {
    let (sender, receiver) = mpsc::channel::<(Duration, Vec<u8>)>();
    thread::spawn(move || {
        let mut packet = vec![0; 64 * 1024];
        let mut lost = HashMap::new();
        while let Ok(length) = from.read(&mut packet) {
            let packet = packet.get(..length).unwrap_or_default().to_vec();
            if let Some(port) = fin_for(&packet).filter(|_| loses_fins) {
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
