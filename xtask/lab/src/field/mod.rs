//! `cargo xtask field`: real databases, caches, brokers, proxies and web servers that close idle
//! connections, and clients that do not watch theirs. Each connection knows whether its request was
//! answered; what finrace tells is compared with that, connection by connection. Before them, the
//! stories of the live tests with many connections each.

mod stories;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use xtask::{root, setup, show};

/// Compares what is reported about real servers' idle closes with what their clients lost.
#[derive(clap::Args, Debug)]
pub(crate) struct FieldArgs {
    /// `stories`, or functions of `field.py`, such as redis or node; all if none is named
    kinds: Vec<String>,
    /// The finrace to test
    #[arg(long, default_value = "target/release/finrace")]
    finrace: PathBuf,
}

const PACKAGES: [&str; 13] = [
    "apache2",
    "haproxy",
    "mariadb-server",
    "memcached",
    "mosquitto",
    "nginx-light",
    "nodejs",
    "openssl",
    "pgbouncer",
    "postfix",
    "postgresql",
    "redis-server",
    "slapd",
];

const PYTHON: [&str; 6] = [
    "aiohttp==3.14.5",
    "gunicorn==27.0.1",
    "h2==4.4.1",
    "httpx==0.28.1",
    "PyMySQL==1.2.4",
    "uvicorn==0.54.0",
];

const STORIES: &str = "stories";

pub(crate) fn run(mut args: FieldArgs) -> Result<()> {
    let finrace = fs::canonicalize(&args.finrace)
        .with_context(|| format!("{} (cargo build --release)", args.finrace.display()))?;
    let is_all = args.kinds.is_empty();
    if is_all || args.kinds.iter().any(|kind| kind == STORIES) {
        stories::run(&finrace)?;
        args.kinds.retain(|kind| kind != STORIES);
        if !is_all && args.kinds.is_empty() {
            return Ok(());
        }
    }
    setup::ensure(&PACKAGES)?;
    let python = setup::python(&PYTHON)?;
    let script = root().join("xtask/lab/src/field/field.py");
    show(Command::new(python.join("python")).arg(script).arg(finrace).args(args.kinds))
}
