//! Self-hosted reverse proxies and load balancers.
//!
//! Nearly all of them have two settings of almost the same name, one towards clients and one
//! towards servers, and people change the wrong one. The race is mostly about the second.
//!
//! Software built on nginx has no processes here: they could not be told from those of nginx.

use super::{Default, HTTP, Knob, Side, Software, Unit};

pub(super) const ALL: &[Software] = &[
    Software {
        name: "nginx",
        protocols: HTTP,
        processes: &["nginx", "openresty"],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "keepalive_timeout",
                place: "the `upstream` block",
                defaults: &[
                    Default { seconds: Some(60.0), since: "1.15.3" },
                    Default { seconds: None, since: "" },
                ],
                unit: Unit::Milliseconds,
                line: "keepalive_timeout {}ms;",
                note: "Not the `keepalive_timeout` of `http` and `server` blocks, which holds \
                    towards nginx's clients. Connections are reused by default since 1.29.7 only; \
                    before, it takes `keepalive 16;` here, and `proxy_http_version 1.1;` with \
                    `proxy_set_header Connection \"\";` beside `proxy_pass`. Without an `upstream` \
                    block nothing is reused, and `uwsgi_pass` never reuses.",
                source: "nginx 1.31.4 src/http/modules/ngx_http_upstream_keepalive_module.c:549; \
                    CHANGES 1.15.3 and 1.29.7",
            },
            Knob {
                side: Side::Server,
                name: "keepalive_timeout",
                place: "the `http`, `server` or `location` block",
                defaults: &[Default { seconds: Some(75.0), since: "" }],
                unit: Unit::Milliseconds,
                line: "keepalive_timeout {}ms;",
                note: "Not the `keepalive_timeout` of an `upstream` block, which holds towards \
                    servers. Workers that exit close idle connections at once, unless \
                    `keepalive_min_timeout` (1.27.4 or later, 0 by default) has them wait.",
                source: "nginx 1.31.4 src/http/ngx_http_core_module.c:3935, :3949",
            },
        ],
        no_reuse: "keepalive 0; in the `upstream` block (1.29.7 or later; before, leave \
            `keepalive` out)",
        retry: "proxy_next_upstream error timeout non_idempotent; (without the last word, requests \
            such as POST are not repeated)",
    },
    // Its processes are nginx's, whose entry has their name.
    Software {
        name: "ingress-nginx",
        protocols: HTTP,
        processes: &[],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "upstream-keepalive-timeout",
                place: "the ConfigMap of the controller",
                defaults: &[Default { seconds: Some(60.0), since: "" }],
                unit: Unit::Seconds,
                line: "upstream-keepalive-timeout: \"{}\"",
                note: "Not `keep-alive`, which holds towards clients.",
                source: "ingress-nginx controller-v1.15.1 \
                    internal/ingress/controller/config/config.go:890",
            },
            Knob {
                side: Side::Server,
                name: "keep-alive",
                place: "the ConfigMap of the controller",
                defaults: &[Default { seconds: Some(75.0), since: "" }],
                unit: Unit::Seconds,
                line: "keep-alive: \"{}\"",
                note: "Not `upstream-keepalive-timeout`, which holds towards pods.",
                source: "ingress-nginx controller-v1.15.1 \
                    internal/ingress/controller/config/config.go:809",
            },
        ],
        no_reuse: "upstream-keepalive-connections: \"0\"",
        retry: "proxy-next-upstream: \"error timeout non_idempotent\" (without the last word, \
            requests such as POST are not repeated)",
    },
    // Its processes are nginx's, whose entry has their name.
    Software {
        name: "Kong",
        protocols: HTTP,
        processes: &[],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "upstream_keepalive_idle_timeout",
                place: "`kong.conf`",
                defaults: &[Default { seconds: Some(60.0), since: "" }],
                unit: Unit::Seconds,
                line: "upstream_keepalive_idle_timeout = {}",
                note: "As a variable of the environment: `KONG_UPSTREAM_KEEPALIVE_IDLE_TIMEOUT`. 0 \
                    means no limit.",
                source: "Kong 3.9.3 kong/templates/kong_defaults.lua:77; kong.conf.default",
            },
            Knob {
                side: Side::Server,
                name: "nginx_proxy_keepalive_timeout",
                place: "`kong.conf`",
                defaults: &[Default { seconds: Some(75.0), since: "" }],
                unit: Unit::Milliseconds,
                line: "nginx_proxy_keepalive_timeout = {}ms",
                note: "A directive of nginx that Kong passes on; if unset, nginx's default holds.",
                source: "Kong kong.conf.default, `nginx_proxy_<directive>`; nginx 1.31.4 \
                    src/http/ngx_http_core_module.c:3935",
            },
        ],
        no_reuse: "upstream_keepalive_pool_size = 0",
        retry: "",
    },
    // Its processes are OpenResty's, whose name nginx's entry has.
    Software {
        name: "APISIX",
        protocols: HTTP,
        processes: &[],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "keepalive_timeout",
                place: "`config.yaml`, under `nginx_config.http.upstream`",
                defaults: &[Default { seconds: Some(60.0), since: "" }],
                unit: Unit::Milliseconds,
                line: "keepalive_timeout: {}ms",
                note: "An upstream with a `keepalive_pool` of its own has `idle_timeout` there, in \
                    seconds and 60 by default.",
                source: "APISIX 3.17.0 apisix/cli/config.lua:155, apisix/schema_def.lua:454",
            },
            Knob {
                side: Side::Server,
                name: "keepalive_timeout",
                place: "`config.yaml`, under `nginx_config.http`",
                defaults: &[Default { seconds: Some(60.0), since: "" }],
                unit: Unit::Milliseconds,
                line: "keepalive_timeout: {}ms",
                note: "Not the one under `upstream`, which holds towards servers.",
                source: "APISIX 3.17.0 apisix/cli/config.lua:142",
            },
        ],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "Envoy",
        protocols: HTTP,
        processes: &["envoy", "wrk:worker_*"],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "common_http_protocol_options.idle_timeout",
                place: "the `HttpProtocolOptions` among the cluster's \
                    `typed_extension_protocol_options`",
                defaults: &[Default { seconds: Some(3600.0), since: "" }],
                unit: Unit::Fraction,
                line: "common_http_protocol_options: { idle_timeout: {}s }",
                note: "Not the same words in the HTTP connection manager, which hold towards \
                    clients. 0 means no limit.",
                source: "Envoy 1.39 documentation, \"How do I configure timeouts?\"",
            },
            Knob {
                side: Side::Client,
                name: "connectionPool.http.idleTimeout",
                place: "Istio's `DestinationRule`, under `trafficPolicy.connectionPool.http`",
                defaults: &[Default { seconds: Some(3600.0), since: "" }],
                unit: Unit::Milliseconds,
                line: "idleTimeout: {}ms",
                note: "Sets the pool of the calling sidecar; the sidecar that is called still \
                    closes its clients' connections after Envoy's hour.",
                source: "istio/istio#40619",
            },
            Knob {
                side: Side::Server,
                name: "common_http_protocol_options.idle_timeout",
                place: "the HTTP connection manager",
                defaults: &[Default { seconds: Some(3600.0), since: "" }],
                unit: Unit::Fraction,
                line: "common_http_protocol_options: { idle_timeout: {}s }",
                note: "Not the same words in a cluster's `HttpProtocolOptions`, which hold towards \
                    servers; nor `stream_idle_timeout`, which is for a request under way.",
                source: "Envoy 1.39 documentation, \"How do I configure timeouts?\"",
            },
        ],
        no_reuse: "common_http_protocol_options: { max_requests_per_connection: 1 } in the \
            cluster's `HttpProtocolOptions`",
        retry: "retry_policy: { retry_on: reset, num_retries: 1 } in the route (repeats POST as \
            well)",
    },
    Software {
        name: "HAProxy",
        protocols: HTTP,
        processes: &["haproxy"],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "pool-purge-delay",
                place: "the `server` or `default-server` line",
                defaults: &[Default { seconds: Some(5.0), since: "" }],
                unit: Unit::Rounds,
                line: "pool-purge-delay {}ms",
                note: "No exact timeout: after each delay half of what was not needed of late is \
                    closed, so that a connection may live for as many delays as it takes to halve \
                    the pool to nothing. So it is a twelfth of the time, which is enough for some \
                    hundred connections. Not `timeout http-keep-alive`, which holds towards clients.",
                source: "HAProxy 3.5-dev5 doc/configuration.txt:19489; 2.6.12 src/server.c, \
                    srv_cleanup_idle_conns()",
            },
            Knob {
                side: Side::Server,
                name: "timeout http-keep-alive",
                place: "the `defaults`, `frontend` or `listen` section",
                defaults: &[Default { seconds: None, since: "" }],
                unit: Unit::Milliseconds,
                line: "timeout http-keep-alive {}ms",
                note: "If unset, `timeout http-request` holds, and without that `timeout client`. \
                    Says nothing about connections to servers.",
                source: "HAProxy 3.5-dev5 doc/configuration.txt:14764",
            },
        ],
        no_reuse: "option http-server-close",
        retry: "retry-on conn-failure empty-response (repeats POST as well, if it fits into one \
            buffer)",
    },
    Software {
        name: "Traefik",
        protocols: HTTP,
        processes: &["traefik"],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "serversTransport.forwardingTimeouts.idleConnTimeout",
                place: "the command line",
                defaults: &[Default { seconds: Some(90.0), since: "" }],
                unit: Unit::Milliseconds,
                line: "--serversTransport.forwardingTimeouts.idleConnTimeout={}ms",
                note: "A `serversTransport` of the dynamic configuration, or of Kubernetes, has \
                    its own `forwardingTimeouts.idleConnTimeout`.",
                source: "Traefik 3.7.9 pkg/config/static/static_config.go:222",
            },
            Knob {
                side: Side::Server,
                name: "transport.respondingTimeouts.idleTimeout",
                place: "the command line, for the entry point `web`",
                defaults: &[Default { seconds: Some(180.0), since: "" }],
                unit: Unit::Milliseconds,
                line: "--entryPoints.web.transport.respondingTimeouts.idleTimeout={}ms",
                note: "Each entry point has its own. Not `forwardingTimeouts.idleConnTimeout`, \
                    which holds towards servers.",
                source: "Traefik 3.7.9 pkg/config/static/static_config.go:48",
            },
        ],
        no_reuse: "--serversTransport.maxIdleConnsPerHost=-1",
        retry: "the `retry` middleware with `attempts: 2`; it repeats POST with \
            `retryNonIdempotentMethod: true` only",
    },
    Software {
        name: "Caddy",
        protocols: HTTP,
        processes: &["caddy"],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "keepalive",
                place: "the `transport http` block of `reverse_proxy`",
                defaults: &[Default { seconds: Some(120.0), since: "" }],
                unit: Unit::Milliseconds,
                line: "keepalive {}ms",
                note: "In JSON: `keep_alive.idle_timeout`. `keepalive_interval` is about TCP \
                    probes and closes nothing.",
                source: "Caddy 2.11.4 modules/caddyhttp/reverseproxy/httptransport.go:214",
            },
            Knob {
                side: Side::Server,
                name: "idle",
                place: "the `timeouts` block of the global option `servers`",
                defaults: &[Default { seconds: Some(300.0), since: "" }],
                unit: Unit::Milliseconds,
                line: "idle {}ms",
                note: "In JSON: `idle_timeout`. `keepalive_idle` there is about TCP probes.",
                source: "Caddy 2.11.4 modules/caddyhttp/app.go:832",
            },
        ],
        no_reuse: "keepalive off in the `transport http` block",
        retry: "lb_retries 1 in `reverse_proxy` (GET only, unless `lb_retry_match` names other \
            methods)",
    },
    Software {
        name: "Apache httpd",
        protocols: HTTP,
        processes: &["apache2", "httpd"],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "ttl",
                place: "the end of the `ProxyPass` or `BalancerMember` line",
                defaults: &[Default { seconds: None, since: "" }],
                unit: Unit::Seconds,
                line: "ttl={}",
                note: "A connection idle for longer is not used again, and closed only later; \
                    `smax=0` beside it has it closed sooner. Not `KeepAliveTimeout`, which holds \
                    towards clients.",
                source: "Apache httpd 2.4 branch (2024-10) docs/manual/mod/mod_proxy.xml:1236",
            },
            Knob {
                side: Side::Server,
                name: "KeepAliveTimeout",
                place: "the server configuration or a `VirtualHost`",
                defaults: &[Default { seconds: Some(5.0), since: "" }],
                unit: Unit::Milliseconds,
                line: "KeepAliveTimeout {}ms",
                note: "Not `Timeout`, which is for a request under way, nor mod_proxy's `ttl`, \
                    which holds towards servers.",
                source: "Apache httpd 2.4 branch (2024-10) include/httpd.h:166",
            },
        ],
        no_reuse: "SetEnv proxy-nokeepalive 1",
        retry: "",
    },
    Software {
        name: "Apache Traffic Server",
        protocols: HTTP,
        processes: &["traffic_server", "[TS_MAIN]", "[ET_NET *", "[ACCEPT *"],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "proxy.config.http.keep_alive_no_activity_timeout_out",
                place: "`records.yaml`, under `http`",
                defaults: &[Default { seconds: Some(120.0), since: "" }],
                unit: Unit::Seconds,
                line: "keep_alive_no_activity_timeout_out: {}",
                note: "Not `..._in`, which holds towards clients. Up to 9.x it is a line `CONFIG \
                    proxy.config.http.... INT` of `records.config`.",
                source: "Traffic Server 10.2.0 src/records/RecordsConfig.cc:484",
            },
            Knob {
                side: Side::Server,
                name: "proxy.config.http.keep_alive_no_activity_timeout_in",
                place: "`records.yaml`, under `http`",
                defaults: &[Default { seconds: Some(120.0), since: "" }],
                unit: Unit::Seconds,
                line: "keep_alive_no_activity_timeout_in: {}",
                note: "Not `..._out`, which holds towards servers. Up to 9.x it is a line `CONFIG \
                    proxy.config.http.... INT` of `records.config`.",
                source: "Traffic Server 10.2.0 src/records/RecordsConfig.cc:482",
            },
        ],
        no_reuse: "keep_alive_enabled_out: 0",
        retry: "",
    },
    Software {
        name: "Varnish",
        protocols: HTTP,
        processes: &["varnishd", "cache-main", "cache-worker", "cache-acceptor", "cache-epoll"],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "backend_idle_timeout",
                place: "the command line of varnishd",
                defaults: &[Default { seconds: Some(60.0), since: "" }],
                unit: Unit::Fraction,
                line: "-p backend_idle_timeout={}",
                note: "At least 1 second. Not `timeout_idle`, which holds towards clients.",
                source: "Varnish 8.0.0 include/tbl/params.h:269",
            },
            Knob {
                side: Side::Server,
                name: "timeout_idle",
                place: "the command line of varnishd",
                defaults: &[Default { seconds: Some(5.0), since: "" }],
                unit: Unit::Fraction,
                line: "-p timeout_idle={}",
                note: "Not `backend_idle_timeout`, which holds towards servers.",
                source: "Varnish 8.0.0 include/tbl/params.h:1055",
            },
        ],
        no_reuse: "set bereq.http.Connection = \"close\"; in `vcl_backend_fetch`",
        retry: "done by itself, once, unless the request has a body that was not cached",
    },
    Software {
        name: "h2o",
        protocols: HTTP,
        processes: &["h2o"],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "proxy.timeout.keepalive",
                place: "the configuration, global or of a path",
                defaults: &[Default { seconds: Some(2.0), since: "" }],
                unit: Unit::Milliseconds,
                line: "proxy.timeout.keepalive: {}",
                note: "Not `proxy.timeout.io`, which is for a request under way.",
                source: "h2o (2026-06, edd7a120b) srcdoc/configure/proxy_directives.mt:535",
            },
            Knob {
                side: Side::Server,
                name: "http1-request-timeout",
                place: "the global configuration",
                defaults: &[Default { seconds: Some(10.0), since: "" }],
                unit: Unit::Seconds,
                line: "http1-request-timeout: {}",
                note: "Counts from the end of a response to the end of the next request's head. \
                    HTTP/2 has `http2-idle-timeout`, 10 seconds as well.",
                source: "h2o (2026-06, edd7a120b) srcdoc/configure/http1_directives.mt:14",
            },
        ],
        no_reuse: "proxy.timeout.keepalive: 0",
        retry: "",
    },
    Software {
        name: "Pingora",
        protocols: HTTP,
        processes: &[],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "PeerOptions::idle_timeout",
                place: "`upstream_peer()`, on the peer",
                defaults: &[Default { seconds: None, since: "" }],
                unit: Unit::Milliseconds,
                line: "peer.options.idle_timeout = Some(Duration::from_millis({}));",
                note: "Without it, an idle connection is kept until the server closes it or the \
                    pool is full.",
                source: "Pingora 0.8.0 pingora-core/src/upstreams/peer.rs:477",
            },
            Knob {
                side: Side::Server,
                name: "Session::set_keepalive",
                place: "a filter of the request",
                defaults: &[Default { seconds: Some(60.0), since: "" }],
                unit: Unit::Seconds,
                line: "session.set_keepalive(Some({}));",
                note: "",
                source: "Pingora 0.8.0 pingora-core/src/apps/mod.rs:274",
            },
        ],
        no_reuse: "peer.options.idle_timeout = Some(Duration::ZERO);",
        retry: "done by itself for reused connections, as long as the request's body is in the \
            retry buffer",
    },
    Software {
        name: "Linkerd",
        protocols: HTTP,
        processes: &["linkerd2-proxy"],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "LINKERD2_PROXY_INBOUND_HTTP1_CONNECTION_POOL_IDLE_TIMEOUT",
                place: "the Helm value `proxy.additionalEnv`",
                defaults: &[Default { seconds: Some(3.0), since: "" }],
                unit: Unit::Milliseconds,
                line: "- { name: LINKERD2_PROXY_INBOUND_HTTP1_CONNECTION_POOL_IDLE_TIMEOUT, value: \
                    \"{}ms\" }",
                note: "For connections of the sidecar to its own application; `..._OUTBOUND_...` \
                    is for those to other pods.",
                source: "linkerd2-proxy 2.366.0 linkerd/app/src/env.rs:340",
            },
            Knob {
                side: Side::Client,
                name: "LINKERD2_PROXY_OUTBOUND_HTTP1_CONNECTION_POOL_IDLE_TIMEOUT",
                place: "the Helm value `proxy.additionalEnv`",
                defaults: &[Default { seconds: Some(3.0), since: "" }],
                unit: Unit::Milliseconds,
                line: "- { name: LINKERD2_PROXY_OUTBOUND_HTTP1_CONNECTION_POOL_IDLE_TIMEOUT, \
                    value: \"{}ms\" }",
                note: "For connections to other pods; `..._INBOUND_...` is for those of the \
                    sidecar to its own application.",
                source: "linkerd2-proxy 2.366.0 linkerd/app/src/env.rs:343",
            },
        ],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "lighttpd",
        protocols: HTTP,
        processes: &["lighttpd"],
        knobs: &[Knob {
            side: Side::Server,
            name: "server.max-keep-alive-idle",
            place: "`lighttpd.conf`",
            defaults: &[Default { seconds: Some(6.0), since: "" }],
            unit: Unit::Seconds,
            line: "server.max-keep-alive-idle = {}",
            note: "The setting is 5 seconds by default, and idle connections are closed a \
                    second later than it says (seen with 1.4.69). To servers, mod_proxy always \
                    sends `Connection: close`.",
            source: "lighttpd 1.4.85 src/configfile.c:1317, src/h1.c, src/mod_proxy.c",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "Squid",
        protocols: HTTP,
        processes: &["squid"],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "server_idle_pconn_timeout",
                place: "`squid.conf`",
                defaults: &[Default { seconds: Some(60.0), since: "" }],
                unit: Unit::Seconds,
                line: "server_idle_pconn_timeout {} seconds",
                note: "Not `client_idle_pconn_timeout`, which holds towards clients.",
                source: "Squid 7.6 src/cf.data.pre:7521",
            },
            Knob {
                side: Side::Server,
                name: "client_idle_pconn_timeout",
                place: "`squid.conf`",
                defaults: &[Default { seconds: Some(120.0), since: "" }],
                unit: Unit::Seconds,
                line: "client_idle_pconn_timeout {} seconds",
                note: "Not `server_idle_pconn_timeout`, which holds towards servers.",
                source: "Squid 7.6 src/cf.data.pre:7435",
            },
        ],
        no_reuse: "server_persistent_connections off",
        retry: "",
    },
    Software {
        name: "cloudflared",
        protocols: HTTP,
        processes: &["cloudflared"],
        knobs: &[Knob {
            side: Side::Client,
            name: "originRequest.keepAliveTimeout",
            place: "the configuration, global or of a rule of `ingress`",
            defaults: &[Default { seconds: Some(90.0), since: "" }],
            unit: Unit::Milliseconds,
            line: "keepAliveTimeout: {}ms",
            note: "Not `tcpKeepAlive`, which is about TCP probes and closes nothing.",
            source: "cloudflared 2026.8.2 ingress/config.go:19",
        }],
        no_reuse: "",
        retry: "",
    },
];
