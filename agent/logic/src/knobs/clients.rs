//! Libraries that only send requests. They run inside other programs' processes, which tell their language at best.
//!
//! Several look at idle connections only when one is needed, so that what they keep may be open
//! for much longer than their setting says, and the server closes first: that is no race.
//!
//! Libraries that serve as well (Go net/http, Node.js, .NET, Jetty, aiohttp, Reactor Netty) are
//! among the servers.

use super::{Default, HTTP, Knob, Side, Software, Unit};

pub(super) const ALL: &[Software] = &[
    Software {
        name: "undici (fetch of Node.js)",
        protocols: HTTP,
        processes: &[],
        knobs: &[Knob {
            side: Side::Client,
            name: "keepAliveTimeout",
            place: "the program",
            defaults: &[Default { seconds: Some(4.0), since: "" }],
            unit: Unit::Milliseconds,
            line: "setGlobalDispatcher(new Agent({ keepAliveTimeout: {} }));",
            note: "A `Keep-Alive: timeout=` of the server goes before it, less \
                    `keepAliveTimeoutThreshold` (2 seconds), up to `keepAliveMaxTimeout` (600 \
                    seconds).",
            source: "undici 8.10.0 lib/dispatcher/client.js:306",
        }],
        no_reuse: "setGlobalDispatcher(new Agent({ pipelining: 0 }));",
        retry: "",
    },
    Software {
        name: "agentkeepalive",
        protocols: HTTP,
        processes: &[],
        knobs: &[Knob {
            side: Side::Client,
            name: "freeSocketTimeout",
            place: "the program, passed to `new Agent()`",
            defaults: &[Default { seconds: Some(4.0), since: "" }],
            unit: Unit::Milliseconds,
            line: "freeSocketTimeout: {},",
            note: "Not `timeout`, which is for a request under way.",
            source: "agentkeepalive 4.6.0 lib/agent.js:40",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "hyper-util",
        protocols: HTTP,
        processes: &[],
        knobs: &[Knob {
            side: Side::Client,
            name: "pool_idle_timeout",
            place: "the program, on `Client::builder()`",
            defaults: &[Default { seconds: Some(90.0), since: "" }],
            unit: Unit::Milliseconds,
            line: ".pool_idle_timeout(Duration::from_millis({}))",
            note: "Without `pool_timer()` nothing closes idle connections on time; they are \
                    not used again.",
            source: "hyper-util 0.1.20 src/client/legacy/client.rs:1044",
        }],
        no_reuse: ".pool_max_idle_per_host(0)",
        retry: "",
    },
    Software {
        name: "reqwest",
        protocols: HTTP,
        processes: &[],
        knobs: &[Knob {
            side: Side::Client,
            name: "pool_idle_timeout",
            place: "the program, on `Client::builder()`",
            defaults: &[Default { seconds: Some(90.0), since: "" }],
            unit: Unit::Milliseconds,
            line: ".pool_idle_timeout(Duration::from_millis({}))",
            note: "",
            source: "reqwest 0.13.4 src/async_impl/client.rs:301",
        }],
        no_reuse: ".pool_max_idle_per_host(0)",
        retry: "",
    },
    Software {
        name: "httpx",
        protocols: HTTP,
        processes: &["python*"],
        knobs: &[Knob {
            side: Side::Client,
            name: "keepalive_expiry",
            place: "the program, passed to `httpx.Client()`",
            defaults: &[Default { seconds: Some(5.0), since: "" }],
            unit: Unit::Fraction,
            line: "limits=httpx.Limits(max_connections=100, max_keepalive_connections=20, \
                    keepalive_expiry={})",
            note: "Looked at when the pool is used, so that a connection may be closed later; \
                    it is not used again. The other two numbers are the defaults, which a `Limits` \
                    without them gives up.",
            source: "httpx 0.28.1 httpx/_config.py:178",
        }],
        no_reuse: "limits=httpx.Limits(max_keepalive_connections=0)",
        retry: "",
    },
    Software {
        name: "urllib3 and requests",
        protocols: HTTP,
        processes: &["python*"],
        knobs: &[Knob {
            side: Side::Client,
            name: "",
            place: "",
            defaults: &[Default { seconds: None, since: "" }],
            unit: Unit::Seconds,
            line: "",
            note: "Idle connections are kept without a limit. Before each use, a socket with \
                    something to read, such as a FIN, is given up; a FIN that arrives later is not \
                    seen.",
            source: "urllib3 2.7.0 src/urllib3/connectionpool.py:288",
        }],
        no_reuse: "headers={\"Connection\": \"close\"}",
        retry: "session.mount(\"http://\", HTTPAdapter(max_retries=Retry(total=1))) (idempotent \
            methods only, unless `allowed_methods` names others)",
    },
    Software {
        name: "OkHttp",
        protocols: HTTP,
        processes: &["java"],
        knobs: &[Knob {
            side: Side::Client,
            name: "ConnectionPool keepAliveDuration",
            place: "the program, on `OkHttpClient.Builder`",
            defaults: &[Default { seconds: Some(300.0), since: "" }],
            unit: Unit::Milliseconds,
            line: ".connectionPool(new ConnectionPool(5, {}, TimeUnit.MILLISECONDS))",
            note: "",
            source: "OkHttp 5.4.0 \
                    okhttp/src/commonJvmAndroid/kotlin/okhttp3/ConnectionPool.kt:39",
        }],
        no_reuse: ".connectionPool(new ConnectionPool(0, 1, TimeUnit.MILLISECONDS))",
        retry: ".retryOnConnectionFailure(true), which is the default (repeats POST as well, \
            unless its body is one-shot)",
    },
    Software {
        name: "Apache HttpClient 5",
        protocols: HTTP,
        processes: &["java"],
        knobs: &[Knob {
            side: Side::Client,
            name: "RequestConfig connectionKeepAlive",
            place: "the program",
            defaults: &[Default { seconds: Some(180.0), since: "" }],
            unit: Unit::Milliseconds,
            line: "RequestConfig.custom().setConnectionKeepAlive(TimeValue.ofMilliseconds({}))",
            note: "A `Keep-Alive: timeout=` of the server goes before it. A connection idle \
                    for more than `validateAfterInactivity` (2 seconds) is tested before it is \
                    used.",
            source: "Apache HttpClient 5.6.4 \
                    httpclient5/src/main/java/org/apache/hc/client5/http/config/RequestConfig.java:49",
        }],
        no_reuse: ".setConnectionReuseStrategy((request, response, context) -> false)",
        retry: "done by itself, once, for idempotent requests",
    },
    Software {
        name: "Apache HttpClient 4",
        protocols: HTTP,
        processes: &["java"],
        knobs: &[Knob {
            side: Side::Client,
            name: "keep-alive strategy",
            place: "the program, on `HttpClients.custom()`",
            defaults: &[Default { seconds: None, since: "" }],
            unit: Unit::Milliseconds,
            line: ".setKeepAliveStrategy((response, context) -> {})",
            note: "By default a `Keep-Alive: timeout=` of the server holds, and without it \
                    there is no limit. A connection idle for more than `validateAfterInactivity` \
                    (2 seconds) is tested before it is used.",
            source: "Apache HttpClient 4.5.14 \
                    httpclient/src/main/java/org/apache/http/impl/client/DefaultConnectionKeepAliveStrategy.java:70",
        }],
        no_reuse: ".setConnectionReuseStrategy(NoConnectionReuseStrategy.INSTANCE)",
        retry: "",
    },
    // A pool of Reactor Netty, whose entry has the names of its threads.
    Software {
        name: "Spring Cloud Gateway",
        protocols: HTTP,
        processes: &[],
        knobs: &[Knob {
            side: Side::Client,
            name: "spring.cloud.gateway.server.webflux.httpclient.pool.max-idle-time",
            place: "`application.properties`",
            defaults: &[Default { seconds: None, since: "" }],
            unit: Unit::Milliseconds,
            line: "spring.cloud.gateway.server.webflux.httpclient.pool.max-idle-time={}ms",
            note: "Before 4.3: `spring.cloud.gateway.httpclient.pool.max-idle-time`. Looked at \
                    when a connection is taken from the pool; `eviction-interval` beside it has it \
                    closed on time.",
            source: "Spring Cloud Gateway 5.0 HttpClientProperties.java, maxIdleTime; \
                    spring-cloud/spring-cloud-gateway#2046",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "libcurl",
        protocols: HTTP,
        processes: &["curl"],
        knobs: &[Knob {
            side: Side::Client,
            name: "CURLOPT_MAXAGE_CONN",
            place: "the program",
            defaults: &[Default { seconds: Some(118.0), since: "" }],
            unit: Unit::Seconds,
            line: "curl_easy_setopt(curl, CURLOPT_MAXAGE_CONN, {}L);",
            note: "Looked at when a connection could be used again, which closes it then: not \
                    on time. Not `CURLOPT_MAXLIFETIME_CONN`, which is for its age.",
            source: "curl 8.21.0 lib/url.c:424, docs/libcurl/opts/CURLOPT_MAXAGE_CONN.md:45",
        }],
        no_reuse: "curl_easy_setopt(curl, CURLOPT_FORBID_REUSE, 1L);",
        retry: "done by itself, if a reused connection gave nothing back (repeats POST as well)",
    },
    Software {
        name: "JDK HttpClient",
        protocols: HTTP,
        processes: &["java", "HttpClient-*"],
        knobs: &[Knob {
            side: Side::Client,
            name: "jdk.httpclient.keepalive.timeout",
            place: "the command line of the JVM",
            defaults: &[
                Default { seconds: Some(30.0), since: "after 17" },
                Default { seconds: Some(1200.0), since: "" },
            ],
            unit: Unit::Seconds,
            line: "-Djdk.httpclient.keepalive.timeout={}",
            note: "Of `java.net.http`. Not `http.keepAlive`, which is for `HttpURLConnection`.",
            source: "OpenJDK 17.0.15 at run time (jdk.internal.net.http.ConnectionPool); OpenJDK main branch src/java.net.http/share/classes/module-info.java",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "Deno",
        protocols: HTTP,
        processes: &["deno"],
        knobs: &[Knob {
            side: Side::Client,
            name: "poolIdleTimeout",
            place: "the program, passed to `Deno.createHttpClient()`",
            defaults: &[Default { seconds: Some(90.0), since: "" }],
            unit: Unit::Milliseconds,
            line: "Deno.createHttpClient({ poolIdleTimeout: {} })",
            note: "The default is hyper-util's. `fetch()` takes the client as `client`.",
            source: "Deno 2.9.2 ext/fetch/lib.rs:1135; hyper-util 0.1.17 src/client/legacy/client.rs",
        }],
        no_reuse: "",
        retry: "",
    },
    Software {
        name: "net-http-persistent",
        protocols: HTTP,
        processes: &["ruby*"],
        knobs: &[Knob {
            side: Side::Client,
            name: "idle_timeout",
            place: "the program, on the `Net::HTTP::Persistent`",
            defaults: &[Default { seconds: Some(5.0), since: "" }],
            unit: Unit::Seconds,
            line: "http.idle_timeout = {}",
            note: "Looked at when a connection is about to be used; the server may have closed it before.",
            source: "net-http-persistent 4.0.8 lib/net/http/persistent.rb:521",
        }],
        no_reuse: "http.idle_timeout = 0",
        retry: "",
    },
];
