//! Application servers, and libraries that serve.
//!
//! A library that also has a client is here with both, since a name is in the table once.
//! Where software closes later than its setting says, the default is what is seen on the wire.
//!
//! Names of threads are among those of processes: it is a thread that accepts a connection. The
//! JVM cuts them to 15 bytes, so a pattern is as short as it can be and still tells.

use super::{Default, Knob, Side, Software, Unit};

pub(super) const ALL: &[Software] = &[
    Software {
        name: "Node.js",
        processes: &["node", "MainThread", "node-MainThread"],
        knobs: &[
            Knob {
                side: Side::Server,
                name: "server.keepAliveTimeout",
                place: "the program, before `listen()`",
                defaults: &[
                    Default { seconds: Some(66.0), since: "27" },
                    Default { seconds: Some(6.0), since: "20.18, 22.9" },
                    Default { seconds: Some(5.0), since: "8.0" },
                ],
                unit: Unit::Milliseconds,
                line: "server.keepAliveTimeout = {};",
                note: "Since 20.18 and 22.9, sockets are closed `keepAliveTimeoutBuffer` (1 \
                    second; settable since 24.6) later than this says: a default of 5 shows as 6. \
                    Its 65 seconds are in the main branch, for 27; 26.10.0 still has 5. Not \
                    `headersTimeout` and `requestTimeout`, which are for a request under way.",
                source: "Node.js 20.17 to 26.10.0 at run time (http.createServer()); \
                    nodejs/node#62782 lib/_http_server.js",
            },
            Knob {
                side: Side::Client,
                name: "timeout of http.Agent",
                place: "the program, passed as `agent`",
                defaults: &[
                    Default { seconds: Some(5.0), since: "19.0" },
                    Default { seconds: None, since: "" },
                ],
                unit: Unit::Milliseconds,
                line: "new http.Agent({ keepAlive: true, timeout: {} })",
                note: "The 5 seconds are those of `http.globalAgent`, which keeps connections \
                    since 19.0; an agent of one's own has no limit of itself. `fetch()` uses \
                    undici, with settings of its own.",
                source: "Node.js 18.20.8 to 26.10.0 at run time (http.globalAgent.options); \
                    lib/_http_agent.js",
            },
        ],
        no_reuse: "new http.Agent({ keepAlive: false })",
        retry: "",
    },
    Software {
        name: "gunicorn",
        processes: &["gunicorn*"],
        knobs: &[Knob {
            side: Side::Server,
            name: "keepalive",
            place: "the command line",
            defaults: &[Default { seconds: Some(2.0), since: "" }],
            unit: Unit::Seconds,
            line: "--keep-alive {}",
            note: "In `gunicorn.conf.py`: `keepalive`. `sync` workers, the default, never keep \
                    a connection; uvicorn's worker class takes this setting too. Not `--timeout`, \
                    which kills silent workers.",
            source: "gunicorn 26.1.0 gunicorn/config.py:883",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "uvicorn",
        processes: &["uvicorn"],
        knobs: &[Knob {
            side: Side::Server,
            name: "timeout_keep_alive",
            place: "the command line",
            defaults: &[Default { seconds: Some(5.0), since: "" }],
            unit: Unit::Seconds,
            line: "--timeout-keep-alive {}",
            note: "Run as a worker class of gunicorn, it takes gunicorn's `--keep-alive` (2 \
                    seconds) instead.",
            source: "uvicorn 0.51.0 uvicorn/config.py:228",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "hypercorn",
        processes: &["hypercorn"],
        knobs: &[Knob {
            side: Side::Server,
            name: "keep_alive_timeout",
            place: "the command line",
            defaults: &[Default { seconds: Some(5.0), since: "" }],
            unit: Unit::Seconds,
            line: "--keep-alive {}",
            note: "",
            source: "hypercorn 0.18.0 src/hypercorn/config.py:88",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "granian",
        processes: &["granian"],
        knobs: &[Knob {
            side: Side::Server,
            name: "http1-header-read-timeout",
            place: "the command line",
            defaults: &[Default { seconds: Some(30.0), since: "" }],
            unit: Unit::Milliseconds,
            line: "--http1-header-read-timeout {}",
            note: "Named after request heads, but what closes idle connections (seen with \
                    2.8.7). `--http2-keep-alive-timeout` is about HTTP/2 pings.",
            source: "granian 2.8.1 granian/http.py:6",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "waitress",
        processes: &["waitress-serve"],
        knobs: &[Knob {
            side: Side::Server,
            name: "channel_timeout",
            place: "the command line",
            defaults: &[Default { seconds: Some(120.0), since: "" }],
            unit: Unit::Seconds,
            line: "--channel-timeout={}",
            note: "Looked at every `cleanup_interval` (30 seconds), so that a connection is \
                    closed up to that much later.",
            source: "waitress 3.0.2 src/waitress/adjustments.py:237",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "uWSGI",
        processes: &["uwsgi", "pyuwsgi"],
        knobs: &[
            Knob {
                side: Side::Server,
                name: "http-keepalive",
                place: "the `[uwsgi]` section, for the HTTP router (`http = ...`)",
                defaults: &[Default { seconds: Some(60.0), since: "" }],
                unit: Unit::Seconds,
                line: "http-keepalive = {}",
                note: "Without this option the router keeps no connection at all; without a value, \
                    `http-timeout` holds (60 seconds). On a command line it takes `=`. \
                    `http-socket`, and `uwsgi_pass` of nginx, never keep a connection.",
                source: "uWSGI 2.0.30 plugins/http/http.c:658, plugins/corerouter/corerouter.c:681",
            },
            Knob {
                side: Side::Server,
                name: "socket-timeout",
                place: "the `[uwsgi]` section, for `http11-socket = ...`",
                defaults: &[Default { seconds: Some(4.0), since: "" }],
                unit: Unit::Seconds,
                line: "socket-timeout = {}",
                note: "Holds for all internal sockets. The HTTP router (`http = ...`) has \
                    `http-keepalive` instead.",
                source: "uWSGI 2.0.30 core/init.c:131",
            },
        ],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "aiohttp",
        processes: &[],
        knobs: &[
            Knob {
                side: Side::Server,
                name: "keepalive_timeout of run_app()",
                place: "the program",
                defaults: &[Default { seconds: Some(75.0), since: "" }],
                unit: Unit::Fraction,
                line: "web.run_app(app, keepalive_timeout={})",
                note: "Its documentation says 3630, which is the default of `AppRunner`.",
                source: "aiohttp 3.14.3 aiohttp/web.py:452",
            },
            Knob {
                side: Side::Server,
                name: "keepalive_timeout of AppRunner",
                place: "the program",
                defaults: &[
                    Default { seconds: Some(3630.0), since: "3.11" },
                    Default { seconds: Some(75.0), since: "" },
                ],
                unit: Unit::Fraction,
                line: "web.AppRunner(app, keepalive_timeout={})",
                note: "`run_app()` passes a default of its own, 75 seconds.",
                source: "aiohttp 3.14.3 aiohttp/web_protocol.py:182",
            },
            Knob {
                side: Side::Client,
                name: "keepalive_timeout of TCPConnector",
                place: "the program, passed to `ClientSession`",
                defaults: &[Default { seconds: Some(15.0), since: "" }],
                unit: Unit::Fraction,
                line: "connector=aiohttp.TCPConnector(keepalive_timeout={})",
                note: "Looked at once per timeout, so that an idle connection is closed up to that \
                    much later; it is not used again meanwhile.",
                source: "aiohttp 3.14.3 aiohttp/connector.py:296",
            },
        ],
        no_reuse: "connector=aiohttp.TCPConnector(force_close=True)",
        retry: "done by itself for idempotent requests, since 3.10",
    },
    Software {
        name: "Puma",
        processes: &["puma*"],
        knobs: &[Knob {
            side: Side::Server,
            name: "persistent_timeout",
            place: "`config/puma.rb`",
            defaults: &[
                Default { seconds: Some(65.0), since: "7.0" },
                Default { seconds: Some(20.0), since: "" },
            ],
            unit: Unit::Seconds,
            line: "persistent_timeout {}",
            note: "Not `first_data_timeout`, which is for connections without a request yet.",
            source: "Puma 8.0.2 lib/puma/configuration.rb:163; 6.6.0 \
                    lib/puma/configuration.rb:155",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "Tomcat",
        processes: &["java", "http-ni*", "https-j*", "https-o*"],
        knobs: &[
            Knob {
                side: Side::Server,
                name: "keepAliveTimeout",
                place: "the `Connector` of `server.xml`",
                defaults: &[Default { seconds: Some(20.0), since: "" }],
                unit: Unit::Milliseconds,
                line: "keepAliveTimeout=\"{}\"",
                note: "If unset, `connectionTimeout` holds: 20 seconds in the `server.xml` that \
                    Tomcat ships, 60 where that is not set either. Spring Boot has \
                    `server.tomcat.keep-alive-timeout`.",
                source: "Tomcat 11.0.25 conf/server.xml:71, webapps/docs/config/http.xml:545",
            },
            Knob {
                side: Side::Server,
                name: "server.tomcat.keep-alive-timeout",
                place: "`application.properties` of Spring Boot",
                defaults: &[Default { seconds: Some(60.0), since: "" }],
                unit: Unit::Milliseconds,
                line: "server.tomcat.keep-alive-timeout={}ms",
                note: "If unset, `server.tomcat.connection-timeout` holds, and without that \
                    Tomcat's 60 seconds.",
                source: "Spring Boot 4.0.0 TomcatServerProperties.java:139; Tomcat 11.0.25 \
                    java/org/apache/coyote/http11/Constants.java:29",
            },
        ],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "Jetty",
        processes: &["java", "qtp*"],
        knobs: &[
            Knob {
                side: Side::Server,
                name: "jetty.http.idleTimeout",
                place: "`start.d/http.ini`",
                defaults: &[Default { seconds: Some(30.0), since: "" }],
                unit: Unit::Milliseconds,
                line: "jetty.http.idleTimeout={}",
                note: "Holds during a request as well. Spring Boot calls it \
                    `server.jetty.connection-idle-timeout`.",
                source: "Jetty 12.0.14 \
                    jetty-core/jetty-server/src/main/config/etc/jetty-http.xml:38",
            },
            Knob {
                side: Side::Client,
                name: "HttpClient.setIdleTimeout",
                place: "the program",
                defaults: &[
                    Default { seconds: Some(30.0), since: "10.0" },
                    Default { seconds: None, since: "" },
                ],
                unit: Unit::Milliseconds,
                line: "httpClient.setIdleTimeout({});",
                note: "Holds during a request as well.",
                source: "Jetty 12.0.14 \
                    jetty-core/jetty-io/src/main/java/org/eclipse/jetty/io/ClientConnector.java:104; \
                    9.4.56 jetty-client HttpClient.java",
            },
        ],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "Undertow",
        processes: &["java", "XNIO*"],
        knobs: &[Knob {
            side: Side::Server,
            name: "NO_REQUEST_TIMEOUT",
            place: "the program, on `Undertow.builder()`",
            defaults: &[Default { seconds: Some(60.0), since: "" }],
            unit: Unit::Milliseconds,
            line: ".setServerOption(UndertowOptions.NO_REQUEST_TIMEOUT, {})",
            note: "WildFly calls it `no-request-timeout`, of its `http-listener`. Not \
                    `IDLE_TIMEOUT`, which also holds during a request.",
            source: "Undertow 2.4.2.Final core/src/main/java/io/undertow/Undertow.java:148",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "Reactor Netty",
        processes: &["java", "reactor*"],
        knobs: &[
            Knob {
                side: Side::Client,
                name: "ConnectionProvider maxIdleTime",
                place: "the program, passed to `HttpClient.create()`",
                defaults: &[Default { seconds: None, since: "" }],
                unit: Unit::Milliseconds,
                line: "ConnectionProvider.builder(\"pool\").maxIdleTime(Duration.ofMillis({})).build()",
                note: "Looked at when a connection is taken from the pool; `evictInBackground` has \
                    it closed on time. For all pools: `-Dreactor.netty.pool.maxIdleTime`.",
                source: "Reactor Netty 1.3.6 docs/modules/ROOT/pages/http-client.adoc:604",
            },
            Knob {
                side: Side::Server,
                name: "HttpServer.idleTimeout",
                place: "the program",
                defaults: &[Default { seconds: None, since: "" }],
                unit: Unit::Milliseconds,
                line: ".idleTimeout(Duration.ofMillis({}))",
                note: "Spring Boot calls it `server.netty.idle-timeout`.",
                source: "Reactor Netty 1.3.6 docs/modules/ROOT/pages/http-server.adoc:815",
            },
        ],
        no_reuse: "HttpClient.newConnection()",
        retry: "",
    },
    Software {
        name: "Cowboy",
        processes: &["beam.smp"],
        knobs: &[Knob {
            side: Side::Server,
            name: "request_timeout",
            place: "the protocol options of `cowboy:start_clear/3`",
            defaults: &[Default { seconds: Some(5.0), since: "" }],
            unit: Unit::Milliseconds,
            line: "request_timeout => {}",
            note: "Not `idle_timeout` (60 seconds), which is for a request under way.",
            source: "Cowboy 2.18.0 src/cowboy_http.erl:342",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "Bandit",
        processes: &["beam.smp"],
        knobs: &[Knob {
            side: Side::Server,
            name: "read_timeout",
            place: "the options of Bandit (Phoenix: under `http:` of the endpoint)",
            defaults: &[Default { seconds: Some(60.0), since: "" }],
            unit: Unit::Milliseconds,
            line: "thousand_island_options: [read_timeout: {}]",
            note: "",
            source: "Thousand Island 1.5.0 lib/thousand_island/server_config.ex:40",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: ".NET",
        processes: &["dotnet", ".NET *"],
        knobs: &[
            Knob {
                side: Side::Server,
                name: "KestrelServerLimits.KeepAliveTimeout",
                place: "`builder.WebHost.ConfigureKestrel(options => ...)`",
                defaults: &[
                    Default { seconds: Some(130.0), since: "6.0" },
                    Default { seconds: Some(120.0), since: "" },
                ],
                unit: Unit::Milliseconds,
                line: "options.Limits.KeepAliveTimeout = TimeSpan.FromMilliseconds({});",
                note: "Not `RequestHeadersTimeout`, which is for a request under way.",
                source: "dotnet/aspnetcore#32636",
            },
            Knob {
                side: Side::Client,
                name: "SocketsHttpHandler.PooledConnectionIdleTimeout",
                place: "the program, passed to `HttpClient`",
                defaults: &[
                    Default { seconds: Some(60.0), since: "6.0" },
                    Default { seconds: Some(120.0), since: "" },
                ],
                unit: Unit::Milliseconds,
                line: "new SocketsHttpHandler { PooledConnectionIdleTimeout = \
                    TimeSpan.FromMilliseconds({}) }",
                note: "Not `PooledConnectionLifetime`, which is for a connection's age.",
                source: "Microsoft documentation, \"SocketsHttpHandler.PooledConnectionIdleTimeout \
                    Property\"; dotnet/runtime#52687",
            },
        ],
        no_reuse: "request.Headers.ConnectionClose = true;",
        retry: "",
    },
    Software {
        name: "Go net/http",
        processes: &[],
        knobs: &[
            Knob {
                side: Side::Server,
                name: "Server.IdleTimeout",
                place: "the program, before `ListenAndServe`",
                defaults: &[Default { seconds: None, since: "" }],
                unit: Unit::Milliseconds,
                line: "server.IdleTimeout = {} * time.Millisecond",
                note: "If 0, `ReadTimeout` holds, and without that there is no limit. Not \
                    `Transport.IdleConnTimeout`, which is the client's.",
                source: "Go 1.19.8 src/net/http/server.go:3187",
            },
            Knob {
                side: Side::Client,
                name: "Transport.IdleConnTimeout",
                place: "the program, on the `http.Transport`",
                defaults: &[Default { seconds: Some(90.0), since: "" }],
                unit: Unit::Milliseconds,
                line: "transport.IdleConnTimeout = {} * time.Millisecond",
                note: "The 90 seconds are those of `http.DefaultTransport`; a `Transport` of one's \
                    own without it has no limit. Not `Server.IdleTimeout`.",
                source: "Go 1.19.8 src/net/http/transport.go:51",
            },
        ],
        no_reuse: "transport.DisableKeepAlives = true",
        retry: "an `Idempotency-Key` header has POST sent again too; GET, HEAD, OPTIONS and TRACE \
            are by themselves",
    },
];
