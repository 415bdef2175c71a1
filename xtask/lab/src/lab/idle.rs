//! How long a server keeps an idle connection, measured without a capture.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use xtask::setup::run;

use crate::link::command_in;
use crate::software::{Place, Software};

/// The shortest idle time after which the server at `address` closes.
pub(super) fn idle_close(
    software: &Software,
    place: &Place<'_>,
    address: SocketAddr,
) -> Result<Duration> {
    const SAMPLES: &str = "6";
    let python = software.python.join("python");
    let mut command = command_in(place.client_ns, &python.to_string_lossy());
    command.args(["-c", include_str!("idle.py")]);
    command.args([&address.ip().to_string(), &address.port().to_string()]);
    command.args([if place.tls { "tls" } else { "plain" }, SAMPLES]);
    let seconds: f64 = run(&mut command)?.trim().parse().context("idle.py")?;
    Duration::try_from_secs_f64(seconds).context("idle.py")
}
