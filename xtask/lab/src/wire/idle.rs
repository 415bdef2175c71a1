//! How long a server left each connection of a capture idle before it closed it.

use super::truth::{Connection, FAREWELL, FIN, RST, SILENCE_SECONDS};

impl Connection {
    /// Seconds from the last data, either way, to the server's FIN or RST, or to the few last
    /// bytes that TLS sends before it. `None` where the client closed first, or neither did.
    pub(crate) fn idle_close(&self) -> Option<f64> {
        let mut last = None;
        for segment in &self.segments {
            let is_server = segment.src == self.server;
            let silence = last.map(|last| segment.time - last);
            let is_farewell = segment.len > 0
                && segment.len <= FAREWELL
                && silence.is_some_and(|silence| silence > SILENCE_SECONDS);
            if is_farewell || segment.is(FIN) || segment.is(RST) {
                return silence.filter(|_| is_server);
            }
            if segment.len > 0 {
                last = Some(segment.time);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use crate::wire::truth::{connections, parse};

    /// After the handshake: seconds, `c` or `s`, flags, length.
    fn idle_close(text: &str) -> Option<f64> {
        let segment = |line: &str| {
            let f: Vec<&str> = line.split(' ').collect();
            let (client, server) = ("10.0.0.1\t40000", "10.0.0.2\t80");
            let (from, to) = if f[1] == "c" { (client, server) } else { (server, client) };
            format!("{}\t0\t{from}\t{to}\t{}\t1\t1\t{}\t1\n", f[0], f[2], f[3])
        };
        let lines = format!("0 c 0x02 0;0 s 0x12 0;{text}");
        let segments: String = lines.split(';').map(segment).collect();
        connections(parse(&segments).unwrap())[0].idle_close()
    }

    #[test]
    fn idle_closes() {
        let exchange = "1 c 0x18 200;1.5 s 0x18 300;1.5 c 0x10 0";
        let check = |end: &str, expected| {
            assert_eq!(idle_close(&format!("{exchange};{end}")), expected, "{end}");
        };
        check("2.5 s 0x11 0", Some(1.0));
        check("2.5 s 0x14 0", Some(1.0));
        check("2.5 s 0x18 24;2.5 s 0x11 0", Some(1.0));
        // An answer's last bytes are no farewell.
        check("1.75 s 0x18 300;1.75 s 0x18 7;2.75 s 0x11 0", Some(1.0));
        check("2.5 c 0x11 0;2.5 s 0x11 0", None);
        check("2.5 c 0x18 24;2.5 c 0x11 0;2.5 s 0x11 0", None);
        check("2.5 c 0x10 0", None);
        assert_eq!(idle_close("1 s 0x11 0"), None);
    }
}
