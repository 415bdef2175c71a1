//! HTTP/1.1 in ordinary use, and connections without any.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use xtask::setup;

use super::stage::{PATIENCE, Stage, write};

/// A server block that answers everything at once.
fn hello(port: u16) -> String {
    format!("server {{ listen 127.0.0.1:{port}; return 200 hello; }}")
}

/// Load without pauses. wrk leaves with requests under way; nginx closes each connection after
/// `keepalive_requests`, 1,000 of them.
pub(super) fn load(stage: &mut Stage<'_>) -> Result<()> {
    let port = stage.port()?;
    let nginx = stage.nginx(port, &hello(port))?;
    let url = format!("http://127.0.0.1:{port}/");
    for header in ["X: keep-alive", "Connection: close"] {
        setup::run(Command::new("wrk").args(["-t1", "-c16", "-d3s", "-H", header, &url]))?;
    }
    nginx.stop()?;
    stage.some(port, "event=close");
    Ok(())
}

/// A reload and a quit end idle connections long before their timeout; their clients see it.
pub(super) fn reload(stage: &mut Stage<'_>) -> Result<()> {
    let port = stage.port()?;
    let nginx = stage.nginx(port, &hello(port))?;
    for (place, signal) in ["reload", "reload", "quit"].into_iter().enumerate() {
        let client = stage.python(None, "http_pool", [u64::from(port), 8, PATIENCE.as_secs()]);
        let mut client = stage.serve(&format!("client-{place}"), client)?;
        stage.signal_nginx(signal)?;
        client.wait(PATIENCE + Duration::from_secs(1))?;
    }
    nginx.stop()?;
    stage.exactly(24, port, "event=close role=client closer=peer");
    Ok(())
}

/// The answer comes while the client still uploads: too large, or unauthorized; then nginx
/// lingers, or resets.
pub(super) fn early_response(stage: &mut Stage<'_>) -> Result<()> {
    let port = stage.port()?;
    let (upload, passwords) = (stage.dir.join("upload"), stage.dir.join("passwords"));
    write(&upload, vec![b'x'; 5_000_000])?;
    write(&passwords, "")?;
    let _nginx = stage.nginx(
        port,
        &format!(
            "server {{
                 listen 127.0.0.1:{port};
                 location /413 {{ client_max_body_size 1k; proxy_pass http://127.0.0.1:1; }}
                 location /401 {{
                     client_max_body_size 9m; auth_basic x; auth_basic_user_file {};
                     proxy_pass http://127.0.0.1:1;
                 }}
                 location /reset {{
                     client_max_body_size 1k; lingering_close off;
                     proxy_pass http://127.0.0.1:1;
                 }}
             }}",
            passwords.display()
        ),
    )?;
    for path in ["413", "401", "reset"] {
        for headers in [&["-H", "Expect:"][..], &[], &["-H", "Transfer-Encoding: chunked"]] {
            // curl's own status says whether the whole upload was taken, which it was not.
            let output = Command::new("curl")
                .args(["--silent", "--output", "/dev/null", "--write-out", "%{http_code}"])
                .args(headers)
                .arg("--data-binary")
                .arg(format!("@{}", upload.display()))
                .arg(format!("http://127.0.0.1:{port}/{path}"))
                .output()
                .context("starting curl")?;
            let code = String::from_utf8_lossy(&output.stdout).into_owned();
            // A reset can take the answer with it, whatever came before.
            let is_meant =
                code == path || path == "reset" && matches!(&*code, "413" | "100" | "000");
            ensure!(is_meant, "curl {headers:?} /{path} was answered {code}");
        }
    }
    stage.some(port, "role=client event=close|incident");
    Ok(())
}

/// Downloads that their client gives up, by its own choice and by SIGKILL.
pub(super) fn cancelled_download(stage: &mut Stage<'_>) -> Result<()> {
    let port = stage.port()?;
    let file = std::fs::File::create(stage.dir.join("big")).context("creating a big file")?;
    file.set_len(100_000_000)?;
    let _nginx = stage.nginx(
        port,
        &format!("server {{ listen 127.0.0.1:{port}; location / {{ limit_rate 200k; }} }}"),
    )?;
    let curl = |arguments: &[&str]| {
        let mut command = Command::new("curl");
        command.args(["--silent", "--output", "/dev/null"]).args(arguments);
        command.arg(format!("http://127.0.0.1:{port}/big"));
        command
    };
    let mut killed = curl(&[]).spawn().context("starting curl")?;
    for limits in [&["--max-time", "1"][..], &["--max-time", "1.5", "--limit-rate", "100k"]] {
        let status = curl(limits).status().context("starting curl")?;
        ensure!(status.code() == Some(28), "curl {limits:?}: {status} instead of a timeout");
    }
    killed.kill()?;
    killed.wait()?;
    stage.some(port, "role=client event=close|incident");
    Ok(())
}

/// An answer that takes two seconds, then a reuse after half a second.
pub(super) fn slow_server(stage: &mut Stage<'_>) -> Result<()> {
    let port = stage.port()?;
    let _server = stage.serve("server", stage.python(None, "http_serve", [port]))?;
    let port_text = port.to_string();
    let arguments = [&*port_text, "0.5", "X:x", "/slow", "/", "/slow"];
    setup::run(&mut stage.python(None, "http_get", arguments))?;
    stage.exactly(2, port, "event=reuse role=client gap_seconds=0.49..0.8");
    stage.exactly(1, port, "event=close role=client closer=local evidence=idle");
    Ok(())
}

/// Checks of an nginx by `HAProxy`, connections that say nothing, and a closed port.
pub(super) fn health_checks(stage: &mut Stage<'_>) -> Result<()> {
    let (checked, own, closed) = (stage.port()?, stage.port()?, stage.port()?);
    let _nginx = stage.nginx(checked, &hello(checked))?;
    let conf = stage.dir.join("haproxy.cfg");
    let server = format!("server s 127.0.0.1:{checked} check inter 200ms");
    write(
        &conf,
        format!(
            "defaults
    mode tcp
    timeout connect 1s
    timeout client 1s
    timeout server 1s
listen plain
    bind 127.0.0.1:{own}
    {server}
backend tcp
    option tcp-check
    {server}
backend http
    mode http
    option httpchk GET /
    {server}
backend refused
    server s 127.0.0.1:{closed} check inter 200ms
"
        ),
    )?;
    let mut haproxy = Command::new("haproxy");
    haproxy.arg("-db").arg("-f").arg(conf);
    let _haproxy = stage.spawn("haproxy", haproxy)?;
    for (port, state) in [(checked, "open"), (closed, "closed")] {
        let arguments = [&*port.to_string(), "20", state];
        setup::run(&mut stage.python(None, "connects", arguments))?;
    }
    // The HTTP check is answered, and nginx closes its connection.
    stage.some(checked, "event=close role=client");
    Ok(())
}

/// Answers that end with their connection: asked for by the client, chosen by the server.
pub(super) fn connection_close(stage: &mut Stage<'_>) -> Result<()> {
    let (plain, gunicorn) = (stage.port()?, stage.port()?);
    let _plain = stage.serve("server", stage.python(None, "http_serve", [plain]))?;
    write(
        &stage.dir.join("app.py"),
        "def app(environ, start):\n    start('200 OK', [('Content-Length', '5')])\n    return [b'hello']\n",
    )?;
    let mut server = Command::new(stage.kit.venv.join("gunicorn"));
    server.args(["--bind", &format!("127.0.0.1:{gunicorn}"), "app:app"]).current_dir(&stage.dir);
    let _gunicorn = stage.listen("gunicorn", server, gunicorn)?;
    for (port, header, path) in [
        (plain, "Connection:close", "/"),
        (plain, "X:x", "/close"),
        (gunicorn, "Connection:close", "/"),
        (gunicorn, "X:x", "/"),
    ] {
        let arguments = [&*port.to_string(), "0.3", header, path, path, path];
        setup::run(&mut stage.python(None, "http_get", arguments))?;
    }
    for port in [plain, gunicorn] {
        stage.some(port, "event=close role=client closer=peer evidence=after_data");
        stage.none(port, "event=close role=client evidence=idle|upper_bound");
    }
    Ok(())
}
