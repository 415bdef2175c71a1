//! A whole agent whose programs come and go on command.
//!
//! Lines of standard input say what is attached: `none`, `empty` (programs that do nothing, on the
//! same hooks), `attached`, or `scraped`, which is the same with its metrics fetched once a second.
//! Each is answered with `ok`. `programs` is answered with what the kernel has counted for those
//! that are attached. Everything ends when the input does.

use std::io::{Read as _, Write as _, stdin};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use finrace::cli::Serve;
use finrace::http::security::Security;
use finrace::serve::serve_over;
use finrace::session::Session;
use tokio::net::TcpListener;

use crate::programs::{Loose, Programs, Set};
use crate::{say, tell};

/// Time between two scrapes.
const INTERVAL: Duration = Duration::from_secs(1);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Object with programs that do nothing
    #[arg(long)]
    object: PathBuf,
    #[command(flatten)]
    serve: Serve,
}

pub(crate) fn run(args: Args) -> Result<()> {
    let (mut programs, loose) = Programs::load(&args.object, &args.serve.kernel.hooks)?;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("listening")?;
    let address = listener.local_addr()?;
    // The agent's thread gives up its own rights; this one goes on attaching. The other two end with it.
    std::thread::spawn(move || log(agent(loose, listener, &args.serve)));
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(INTERVAL);
            if IS_SCRAPED.load(Ordering::Relaxed) {
                log(scrape(address));
            }
        }
    });
    obey(&mut programs)
}

static IS_SCRAPED: AtomicBool = AtomicBool::new(false);

fn log(result: Result<()>) {
    if let Err(error) = result {
        #[expect(clippy::print_stderr, reason = "a thread of its own")]
        {
            eprintln!("error: {error:#}");
        }
    }
}

/// Obeys standard input until it ends.
fn obey(programs: &mut Programs) -> Result<()> {
    let mut set = Set::None;
    tell("ready")?;
    for line in stdin().lines() {
        let word = line.context("reading orders")?;
        if word == "programs" {
            say(&programs.counts(set)?)?;
            continue;
        }
        set = match &*word {
            "none" => Set::None,
            "empty" => Set::Empty,
            "attached" | "scraped" => Set::Finrace,
            _ => bail!("what is `{word}`?"),
        };
        IS_SCRAPED.store(word == "scraped", Ordering::Relaxed);
        programs.attach(set, None)?;
        tell("ok")?;
    }
    Ok(())
}

fn agent(loose: Loose, listener: std::net::TcpListener, args: &Serve) -> Result<()> {
    let Loose { attached, features, missing_fields } = loose;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let session = Session::over(attached, features, missing_fields, &args.kernel)?;
        let listeners = vec![TcpListener::from_std(listener)?];
        serve_over(session, listeners, Security::load(None)?, args).await
    })
}

/// Scrapes as Prometheus does.
fn scrape(address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(address).context("connecting to scrape")?;
    stream.write_all(
        b"GET /metrics HTTP/1.1\r\nhost: stage\r\naccept: application/openmetrics-text;\
          version=1.0.0\r\naccept-encoding: gzip\r\n\r\n",
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(())
}
