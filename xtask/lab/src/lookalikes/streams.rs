//! Connections on which both ends speak when they like, and one on which neither may.

use anyhow::Result;
use xtask::setup;

use super::stage::Stage;

/// Pings every 0.3 s both ways, and both ends' close handshakes; direct and through nginx.
pub(super) fn websocket(stage: &mut Stage<'_>) -> Result<()> {
    let (direct, proxied) = (stage.port()?, stage.port()?);
    let _server = stage.serve("server", stage.python(None, "ws_serve", [direct]))?;
    let _nginx = stage.nginx(
        proxied,
        &format!(
            "server {{
                 listen 127.0.0.1:{proxied};
                 location / {{
                     proxy_pass http://127.0.0.1:{direct};
                     proxy_http_version 1.1;
                     proxy_set_header Upgrade $http_upgrade;
                     proxy_set_header Connection upgrade;
                 }}
             }}"
        ),
    )?;
    setup::run(&mut stage.python(None, "ws_get", [direct, proxied]))?;
    stage.exactly(4, direct, "event=close role=client");
    stage.some(proxied, "event=close role=client");
    Ok(())
}

/// A reader sleeps for two seconds: the writer's last data is old when it goes on, and yet that
/// is no reuse, since its data was waiting all the time.
pub(super) fn blocked_writer(stage: &mut Stage<'_>) -> Result<()> {
    let ports = [stage.port()?, stage.port()?];
    setup::run(&mut stage.python(None, "blocked", ports))?;
    for port in ports {
        stage.none(port, "event=reuse");
        stage.some(port, "event=close");
    }
    Ok(())
}
