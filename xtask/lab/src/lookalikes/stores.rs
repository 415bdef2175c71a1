//! Databases: a few bytes of farewell, and servers that end idle sessions.

use std::fs;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::setup;

use super::stage::{Stage, write};
use super::tls::SECOND;

/// psql says Terminate and closes; the server ends an idle session with an error message and FIN,
/// after which psql says Terminate all the same: a write in `CLOSE_WAIT`.
pub(super) fn postgres(stage: &mut Stage<'_>) -> Result<()> {
    let bin = postgres_bin()?;
    let data = Scratch::new("finrace-lookalike-postgres")?;
    let owner = setup::run(Command::new("id").args(["-u", "postgres"]))?;
    chown(&data.0, Some(owner.trim().parse()?), None)?;
    let as_postgres = |program: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
        command.arg(bin.join(program)).arg("-D").arg(&data.0).current_dir(&data.0);
        command
    };
    setup::run(as_postgres("initdb").args(["--auth=trust", "--no-sync"]))?;

    let (quits, is_ended) = (stage.port()?, stage.port()?);
    for (port, name) in [(quits, "quits"), (is_ended, "is-ended")] {
        let mut server = as_postgres("postgres");
        server.args(["-k", "", "-h", "127.0.0.1", "-p", &port.to_string(), "-F"]);
        let server = stage.listen(name, server, port)?;
        let script = stage.dir.join(format!("{name}.sql"));
        let (timeout, idle) = if port == quits { ("0", 0.4) } else { ("1s", 1.6) };
        let again = if port == quits { "select 2;\n" } else { "" };
        write(&script, format!("select 1;\n\\! sleep {idle}\n{again}\\q\n"))?;
        setup::run(
            Command::new("psql")
                .env("PGOPTIONS", format!("-c idle_session_timeout={timeout}"))
                .args(["-X", "-h", "127.0.0.1", "-U", "postgres", "-d", "postgres"])
                .args(["-p", &port.to_string(), "-f"])
                .arg(script),
        )?;
        server.stop()?;
    }
    stage.exactly(1, quits, "event=reuse role=client gap_seconds=0.39..0.8");
    // The server closes when it reads Terminate: either FIN may come first, and no idle time ended.
    stage.none(quits, "event=close role=client evidence=idle|upper_bound");
    stage.exactly(1, quits, "event=close role=client evidence=after_data|unanswered");
    stage.exactly(
        1,
        is_ended,
        format!(
            "event=close role=client closer=peer evidence=idle|upper_bound idle_seconds={SECOND}"
        ),
    );
    Ok(())
}

/// Debian keeps the server's programs by version, out of the search path.
fn postgres_bin() -> Result<PathBuf> {
    let root = "/usr/lib/postgresql";
    let versions = fs::read_dir(root).with_context(|| format!("reading {root}"))?;
    let bins = versions.filter_map(|entry| Some(entry.ok()?.path().join("bin")));
    bins.filter(|bin| bin.join("postgres").exists())
        .max()
        .with_context(|| format!("no postgres under {root}"))
}

/// A directory that a server without root's rights can reach. Removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It is in the directory for temporary files.
        fs::remove_dir_all(&self.0).ok();
    }
}

/// A subscriber that only listens, a client that Redis drops after `timeout`, QUIT.
pub(super) fn redis(stage: &mut Stage<'_>) -> Result<()> {
    let port = stage.port()?;
    let mut server = Command::new("redis-server");
    server.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--timeout", "1"]);
    server.args(["--save", ""]).arg("--dir").arg(&stage.dir);
    let _server = stage.listen("server", server, port)?;
    let cli = |arguments: &[&str]| {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &port.to_string()]).args(arguments);
        command
    };

    let mut subscriber = stage.spawn("subscriber", cli(&["SUBSCRIBE", "news"]))?;
    subscriber.wait_output("subscribe", Duration::from_secs(5))?;
    // It sends PING, then nothing; it ends with its input, after the server has dropped it.
    let mut idle = cli(&[]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let mut input = idle.stdin.take().context("no input of redis-cli")?;
    std::io::Write::write_all(&mut input, b"PING\n")?;
    for burst in 0..2 {
        sleep(Duration::from_millis(1300));
        for message in 0..5 {
            setup::run(&mut cli(&["PUBLISH", "news", &format!("{burst}-{message}")]))?;
        }
    }
    drop(input);
    ensure!(idle.wait()?.success(), "the idle redis-cli failed");
    ensure!(setup::run(&mut cli(&["QUIT"]))?.trim() == "OK", "QUIT was not answered");
    let heard = subscriber.output()?;
    ensure!(heard.contains("1-4"), "the subscriber heard only {heard}");
    // Redis looks at whole seconds: between one and two, and a turn of its clock.
    let idle = "evidence=idle idle_seconds=0.95..2.5";
    stage.exactly(1, port, format!("event=close role=client closer=peer {idle}"));
    Ok(())
}
