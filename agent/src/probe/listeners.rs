//! Finds the ports listened on before the start, in every network namespace that has a process.
//!
//! It reads `/proc/PID/net/tcp` of one process per namespace; listening sockets come first
//! (`tcp_seq_start`, v6.12 `net/ipv4/tcp_ipv4.c`), so reading stops at the first other line.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// `TCP_LISTEN` in the `st` column.
const LISTEN: &str = "0A";

/// A listening port in a network namespace (inode number), once per listening socket.
pub type Listener = (u32, u16);

/// Reads what can be read; a process that exits in the meantime is skipped.
pub fn read(proc: &Path) -> Vec<Listener> {
    let mut seen = BTreeSet::new();
    let mut listeners = Vec::new();
    let Ok(entries) = fs::read_dir(proc) else { return listeners };
    for process in entries.flatten().map(|entry| entry.path()) {
        // The target's inode is the namespace's.
        let Ok(netns) = fs::metadata(process.join("ns/net")) else { continue };
        let netns = netns.ino() as u32;
        if !seen.insert(netns) {
            continue;
        }
        for table in ["net/tcp", "net/tcp6"] {
            if let Ok(file) = File::open(process.join(table)) {
                let lines = BufReader::new(file).lines().map_while(Result::ok);
                let ports = lines.skip(1).map_while(|line| listening_port(&line));
                listeners.extend(ports.map(|port| (netns, port)));
            }
        }
    }
    listeners
}

/// The local port of a listening socket's line.
fn listening_port(line: &str) -> Option<u16> {
    let mut columns = line.split_whitespace().skip(1);
    let (_, port) = columns.next()?.rsplit_once(':')?;
    let state = columns.nth(1)?;
    (state == LISTEN).then(|| u16::from_str_radix(port, 16).ok())?
}

#[cfg(test)]
mod tests {
    use super::listening_port;

    #[test]
    fn only_listening_lines_have_a_port() {
        let line = |state| format!("   0: 0100007F:1F90 00000000:0000 {state} 00000000:00000000");
        assert_eq!(listening_port(&line("0A")), Some(8080));
        assert_eq!(listening_port(&line("01")), None);
        assert_eq!(listening_port(""), None);
        assert_eq!(listening_port("   0: 0100007F 00000000:0000 0A"), None);
    }
}
