//! What each stage took in was passed on, counted as lost, or still waits: also where a stage gets more than it can take.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::agent::Agent;
use crate::kernel;
use crate::stage::pause;

/// Each makes a few records, of which a ring of 1 MiB holds fewer than 5,000.
const TOO_MANY: u32 = 2_000;

/// Runs it in a namespace of its own, which takes its sockets in TIME_WAIT with it: a small machine has room for
/// few, and other scenarios need them.
pub(crate) fn check() -> Result<()> {
    let checking = thread::spawn(|| {
        kernel::unshare_netns()?;
        kernel::set_interface_up("lo", true)?;
        check_here()
    });
    checking.join().ok().context("the test panicked")?
}

/// A reader that stands still, more closes than its ring holds, and some that it sees again.
fn check_here() -> Result<()> {
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
    let stages =
        said.pointer("/live/stages").and_then(Value::as_array).with_context(|| text.clone())?;
    let count =
        |stage: &Value, what: &str| stage.get(what).and_then(Value::as_i64).unwrap_or(i64::MIN);
    let is = |stage: &Value, name: &str| stage.get("stage").is_some_and(|of| of == name);
    let names: Vec<_> = stages.iter().filter_map(|stage| stage.get("stage")?.as_str()).collect();
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
        ensure!(count(stage, "taken") > 0 || is(stage, "races_ring"), "{stage}");
    }
    let lost = stages.iter().find(|stage| is(stage, "measures_ring"));
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
