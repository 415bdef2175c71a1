//! Proxies that forward bytes, of whatever protocol: databases, caches, mail.
//!
//! They have one idle timeout for both of their connections, and close both when it is over. So
//! the pool in front of such a proxy has to close before that, and the proxy is the side that
//! closes first towards the server behind it.

use super::{Default, Knob, Side, Software, TCP, Unit};

/// What a proxy closes behind it, it closes in front of it.
const BOTH: &str = "It holds towards clients as well: what is closed for being idle is closed on \
    both sides, so the pool before it has to be shorter still.";

pub(super) const ALL: &[Software] = &[
    Software {
        name: "nginx (stream)",
        protocols: TCP,
        processes: &["nginx", "openresty"],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "proxy_timeout",
                place: "the `server` block within `stream`",
                defaults: &[Default { seconds: Some(600.0), since: "" }],
                unit: Unit::Milliseconds,
                line: "proxy_timeout {}ms;",
                note: BOTH,
                source: "nginx 1.31.4 src/stream/ngx_stream_proxy_module.c:2466",
            },
            Knob {
                side: Side::Server,
                name: "proxy_timeout",
                place: "the `server` block within `stream`",
                defaults: &[Default { seconds: Some(600.0), since: "" }],
                unit: Unit::Milliseconds,
                line: "proxy_timeout {}ms;",
                note: "It holds towards servers as well. Not `keepalive_timeout`, which is for \
                    HTTP.",
                source: "nginx 1.31.4 src/stream/ngx_stream_proxy_module.c:2466",
            },
        ],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "HAProxy (TCP mode)",
        protocols: TCP,
        processes: &["haproxy"],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "timeout server",
                place: "the `backend` or `listen` section",
                defaults: &[Default { seconds: None, since: "" }],
                unit: Unit::Milliseconds,
                line: "timeout server {}ms",
                note: "Keep `timeout client` the same: whichever is over first ends both \
                    connections. `timeout tunnel` goes before both where it is set. The pool \
                    before it has to be shorter still.",
                source: "HAProxy 3.5-dev5 doc/configuration.txt:14919",
            },
            Knob {
                side: Side::Server,
                name: "timeout client",
                place: "the `frontend` or `listen` section",
                defaults: &[Default { seconds: None, since: "" }],
                unit: Unit::Milliseconds,
                line: "timeout client {}ms",
                note: "Keep `timeout server` the same: whichever is over first ends both \
                    connections. `timeout tunnel` goes before both where it is set.",
                source: "HAProxy 3.5-dev5 doc/configuration.txt:14645",
            },
        ],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "Envoy (TCP proxy)",
        protocols: TCP,
        processes: &["envoy", "wrk:worker_*"],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "idle_timeout",
                place: "the `TcpProxy` filter of the listener",
                defaults: &[Default { seconds: Some(3600.0), since: "" }],
                unit: Unit::Fraction,
                line: "idle_timeout: {}s",
                note: BOTH,
                source: "Envoy 02a5feed \
                    api/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto, \
                    `idle_timeout`",
            },
            Knob {
                side: Side::Server,
                name: "idle_timeout",
                place: "the `TcpProxy` filter of the listener",
                defaults: &[Default { seconds: Some(3600.0), since: "" }],
                unit: Unit::Fraction,
                line: "idle_timeout: {}s",
                note: "It holds towards servers as well. 0 means no limit. Not that of the HTTP \
                    connection manager.",
                source: "Envoy 02a5feed \
                    api/envoy/extensions/filters/network/tcp_proxy/v3/tcp_proxy.proto, \
                    `idle_timeout`",
            },
        ],
        no_reuse: "",
        retry: "",
    },
];
