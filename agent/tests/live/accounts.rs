//! What each stage took in was passed on, counted as lost, or still waits: also where a stage gets more than it can take.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::agent::Agent;
use crate::stage::pause;

/// Each makes a few records, of which a ring of 1 MiB holds fewer than 5,000.
const TOO_MANY: u32 = 4_000;

/// A reader that stands still, more closes than its ring holds, and some that it sees again.
pub(crate) fn check() -> Result<()> {
    let agent = Agent::run(&["check", "--live=10m", "--json"], &[])?;
    close_many(100)?;
    agent.signal(Signal::STOP)?;
    close_many(TOO_MANY)?;
    agent.signal(Signal::CONT)?;
    pause(500);
    close_many(100)?;
    agent.signal(Signal::INT)?;
    let text = agent.output()?;
    let said: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    let stages = said["live"]["stages"].as_array().with_context(|| text.clone())?;
    let count = |stage: &Value, what: &str| stage[what].as_i64().unwrap_or(i64::MIN);
    let names: Vec<_> = stages.iter().filter_map(|stage| stage["stage"].as_str()).collect();
    let all = [
        "races_ring",
        "measures_ring",
        "reader",
        "tracker",
        "joiner",
        "judge",
        "table",
        "exposition",
    ];
    ensure!(names == all, "stages: {names:?}");
    for stage in stages {
        ensure!(count(stage, "unaccounted") == 0, "{stage}");
        ensure!(count(stage, "taken") > 0 || stage["stage"] == "races_ring", "{stage}");
    }
    let lost = stages.iter().find(|stage| stage["stage"] == "measures_ring");
    ensure!(lost.is_some_and(|ring| count(ring, "lost") > 0), "nothing was lost: {text}");
    Ok(())
}

/// Connections on loopback that end right after an answer.
fn close_many(count: u32) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening")?;
    let address = listener.local_addr().context("asking for the port")?;
    let server = thread::spawn(move || -> std::io::Result<()> {
        for _ in 0..count {
            let (mut stream, _) = listener.accept()?;
            let mut request = [0; 4];
            stream.read_exact(&mut request)?;
            stream.write_all(&request)?;
        }
        Ok(())
    });
    for _ in 0..count {
        let mut stream = TcpStream::connect(address).context("connecting")?;
        stream.write_all(b"ping").context("asking")?;
        stream.read_to_end(&mut Vec::new()).context("reading the answer")?;
    }
    server.join().ok().context("the server panicked")?.context("answering")
}
