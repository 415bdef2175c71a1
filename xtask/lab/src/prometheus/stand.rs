//! A host on which software races: nginx in front of gunicorn, each in a unit like systemd's.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use xtask::setup;

use super::unit::Unit;
use crate::link::Link;
use crate::proxy::{Pools, Proxy};
use crate::servers::load::{Gaps, Load};
use crate::software::{self, Kind, Place, Server, Software};

/// The proxy's name.
pub(super) const PROXY: &str = "nginx.service";

/// gunicorn's default.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// Clients that hit the timeout, and others.
const RACERS: usize = 24;
const OTHERS: usize = 8;

/// nginx and gunicorn.
pub(super) struct Pair<'a> {
    namespace: Option<&'a str>,
    proxy: Proxy,
    pub(super) server: Server,
    // Dropped after what runs in them.
    _units: [Unit; 2],
}

impl<'a> Pair<'a> {
    /// On loopback, or with a link between them. `lines` go into nginx's `upstream` blocks.
    pub(super) fn start(
        directory: PathBuf,
        software: &Software,
        link: Option<&'a Link>,
        lines: &str,
    ) -> Result<Self> {
        let directory = setup::empty_directory(directory)?;
        let namespace = link.map(Link::client_ns);
        let place = Place {
            directory: &directory,
            client_ns: namespace,
            server_ns: link.map(Link::server_ns),
            server_ip: link.map_or([127, 0, 0, 1].into(), Link::server_ip),
            tls: false,
        };
        let units = [Unit::new("gunicorn.service")?, Unit::new(PROXY)?];
        let [of_server, of_proxy] = &units;
        let server =
            of_server.start(|| software::start(Kind::Gunicorn, KEEP_ALIVE, software, place))?;
        let pools = pools(server.address, lines);
        let proxy = of_proxy.start(|| Proxy::start(&directory, namespace, pools))?;
        Ok(Self { namespace, proxy, server, _units: units })
    }

    /// Puts these lines into nginx's configuration, in place of those that were there.
    pub(super) fn reload(&self, lines: &str) -> Result<()> {
        self.proxy.reload(pools(self.server.address, lines)).with_context(|| format!("`{lines}`"))
    }

    fn load(&self, clients: Range<usize>, gaps: Gaps, is_in_step: bool) -> Load<'a> {
        let (namespace, proxy) = (self.namespace, self.proxy.address);
        Load { namespace, proxy, clients, gaps, is_in_step, keep_alive: None }
    }

    /// Passes gunicorn's timeout now and then, and hardly ever hits it: some ten times an hour.
    pub(super) fn gentle(&self) -> Load<'a> {
        self.load(0..RACERS, Gaps::Mixed(0.25..1.2, 1.2..4.0, 0.2), false)
    }

    /// Hits it often. Clients stay close together: gunicorn looks for what has expired once per turn
    /// of its loop, and so does that in the midst of their requests.
    pub(super) fn racing(&self) -> [Load<'a>; 2] {
        let timeout = KEEP_ALIVE.as_secs_f64();
        [
            self.load(0..RACERS, Gaps::Uniform(timeout - 0.002..timeout + 0.004), true),
            self.load(RACERS..RACERS + OTHERS, Gaps::Uniform(0.3..1.5), false),
        ]
    }

    /// Goes beyond any timeout.
    pub(super) fn idle(&self) -> Load<'a> {
        self.load(0..OTHERS, Gaps::Uniform(0.3..3.0), false)
    }
}

fn pools(server: SocketAddr, lines: &str) -> Pools<'_> {
    Pools::new(server, RACERS + OTHERS).with_lines(lines)
}

/// What the pairs are made of.
pub(super) fn software(directory: &Path) -> Result<Software> {
    Software::new(directory.join("software"), &[Kind::Gunicorn])
}
