//! TLS and HTTP/2: what ends an idle connection here is a record or a frame, then a FIN, and the
//! other end answers with bytes of its own: a write in `CLOSE_WAIT` that loses nothing.

use anyhow::Result;
use xtask::setup;

use super::stage::Stage;

/// A second, as measured by a process on a busy machine.
pub(super) const SECOND: &str = "0.95..1.3";

/// Claims which end closes an idle connection, as it must be reported at the client.
fn claim_closer(stage: &mut Stage<'_>, port: u16, closer: &str) {
    let (closer, other) = if closer == "server" { ("peer", "local") } else { ("local", "peer") };
    stage.none(port, format!("event=close role=client closer={other}"));
    // A farewell is no reuse. The request before it came 0.4 s after the first.
    stage.none(port, "event=reuse gap_seconds=0.9..2");
    stage.exactly(1, port, "event=reuse role=client gap_seconds=0.39..0.8");
    stage.exactly(
        1,
        port,
        format!(
            "event=close role=client closer={closer} evidence=idle|upper_bound \
             idle_seconds={SECOND}"
        ),
    );
}

/// OpenSSL at both ends: either closes after a second, with `close_notify` both ways, with a
/// `close_notify` whose answer is not awaited, and with none.
pub(super) fn openssl(stage: &mut Stage<'_>, one_way_ms: u64) -> Result<()> {
    let wire = stage.wire(one_way_ms)?;
    let mut specs = Vec::new();
    for version in ["1.2", "1.3"] {
        for closer in ["server", "client"] {
            for manner in ["unwrap", "notify", "sudden"] {
                let port = stage.port()?;
                specs.push(format!("{port},{version},{closer},{manner}"));
                claim_closer(stage, port, closer);
            }
        }
    }
    let files = [&stage.kit.certificate, &stage.kit.key].map(|p| p.display().to_string());
    let host = [wire.host()];
    let mut server = stage.python(wire.server_ns(), "tls_serve", &host);
    server.args(files).args(&specs);
    let _server = stage.serve("server", server)?;
    setup::run(stage.python(wire.client_ns(), "tls_get", &host).args(&specs))?;
    Ok(())
}

/// Go's HTTP/1.1 over TLS: its server and its client send `close_notify` without waiting.
pub(super) fn go(stage: &mut Stage<'_>, one_way_ms: u64) -> Result<()> {
    let mut specs = Vec::new();
    for version in ["1.2", "1.3"] {
        for closer in ["server", "client"] {
            let port = stage.port()?;
            let idle = if closer == "server" { "1s,0s" } else { "0s,1s" };
            specs.push((port, format!("{version},HTTP/1.1,{idle},0s")));
            claim_closer(stage, port, closer);
        }
    }
    run_go(stage, one_way_ms, &specs)
}

/// Go's HTTP/2: `WINDOW_UPDATE` and PING make the client the last to send before the GOAWAY that
/// ends the idle time. Its server closes a second after the GOAWAY.
pub(super) fn http2(stage: &mut Stage<'_>, one_way_ms: u64) -> Result<()> {
    let mut specs = Vec::new();
    for ping in ["0s", "300ms"] {
        let port = stage.port()?;
        specs.push((port, format!("1.3,HTTP/2.0,1s,0s,{ping}")));
        claim_http2(stage, port, ping);
    }
    run_go(stage, one_way_ms, &specs)
}

/// nginx sends GOAWAY, `close_notify` and FIN together.
pub(super) fn http2_nginx(stage: &mut Stage<'_>) -> Result<()> {
    let (plain, pinged) = (stage.port()?, stage.port()?);
    super::stage::write(&stage.dir.join("index.html"), vec![b'x'; 200_000])?;
    let (certificate, key) = (stage.kit.certificate.display(), stage.kit.key.display());
    let _nginx = stage.nginx(
        plain,
        &format!(
            "keepalive_timeout 1s;
             server {{
                 listen 127.0.0.1:{plain} ssl http2; listen 127.0.0.1:{pinged} ssl http2;
                 ssl_protocols TLSv1.3;
                 ssl_certificate {certificate}; ssl_certificate_key {key};
             }}"
        ),
    )?;
    let mut client = stage.go(None);
    client.arg("get");
    for (port, ping) in [(plain, "0s"), (pinged, "300ms")] {
        client.arg(format!("127.0.0.1:{port},1.3,HTTP/2.0,0s,0s,{ping}"));
        claim_http2(stage, port, ping);
    }
    setup::run(&mut client)?;
    Ok(())
}

/// Without pings the server ends an idle connection. With them it is never idle for long, and
/// since both ends say `close_notify` either FIN may be the first: nothing then may be taken for
/// an idle close of the client.
fn claim_http2(stage: &mut Stage<'_>, port: u16, ping: &str) {
    stage.none(port, "event=close role=client closer=local evidence=idle|upper_bound");
    let closer = if ping == "0s" { "closer=peer evidence=idle|upper_bound" } else { "" };
    stage.exactly(1, port, format!("event=close role=client evidence!=unused {closer}"));
}

fn run_go(stage: &Stage<'_>, one_way_ms: u64, specs: &[(u16, String)]) -> Result<()> {
    let wire = stage.wire(one_way_ms)?;
    let host = wire.host();
    let specs: Vec<_> = specs.iter().map(|(port, spec)| format!("{host}:{port},{spec}")).collect();
    let mut server = stage.go(wire.server_ns());
    server.arg("serve").args([&stage.kit.certificate, &stage.kit.key]).args(&specs);
    let _server = stage.serve("server", server)?;
    setup::run(stage.go(wire.client_ns()).arg("get").args(&specs))?;
    Ok(())
}
