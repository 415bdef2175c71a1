//! Limits on the requests or the age of a connection, or of the process that serves it: at such a limit
//! a server closes connections that were not idle.

/// The settings of one program.
#[derive(Debug)]
pub struct Lifetime {
    /// [`Software::name`](super::Software::name).
    pub software: &'static str,
    /// As they are written in a configuration.
    pub names: &'static str,
    /// Where they are documented.
    pub source: &'static str,
}

/// What to look for where the software is not known.
pub const EXAMPLES: [&str; 3] = [
    "`keepalive_requests` of nginx",
    "`MaxKeepAliveRequests` of Apache",
    "`--max-requests` of gunicorn",
];

const ALL: &[Lifetime] = &[
    Lifetime {
        software: "nginx",
        names: "`keepalive_requests`, `keepalive_time`",
        source: "https://nginx.org/en/docs/http/ngx_http_core_module.html#keepalive_requests",
    },
    Lifetime {
        software: "Apache httpd",
        names: "`MaxKeepAliveRequests`, `MaxConnectionsPerChild`",
        source: "https://httpd.apache.org/docs/2.4/mod/core.html#maxkeepaliverequests",
    },
    Lifetime {
        software: "gunicorn",
        names: "`--max-requests`",
        source: "https://docs.gunicorn.org/en/stable/settings.html#max-requests",
    },
    Lifetime {
        software: "uvicorn",
        names: "`--limit-max-requests`",
        source: "https://www.uvicorn.org/settings/#resource-limits",
    },
    Lifetime {
        software: "uWSGI",
        names: "`max-requests`, `max-worker-lifetime`",
        source: "https://uwsgi-docs.readthedocs.io/en/latest/Options.html",
    },
    Lifetime {
        software: "Tomcat",
        names: "`maxKeepAliveRequests`",
        source: "https://tomcat.apache.org/tomcat-10.1-doc/config/http.html",
    },
    Lifetime {
        software: "Node.js",
        names: "`server.maxRequestsPerSocket`",
        source: "https://nodejs.org/api/http.html#servermaxrequestspersocket",
    },
    Lifetime {
        software: "Envoy",
        names: "`max_connection_duration`, `max_requests_per_connection`",
        source: "https://www.envoyproxy.io/docs/envoy/latest/api-v3/config/core/v3/protocol.proto",
    },
    Lifetime {
        software: "Squid",
        names: "`pconn_lifetime`",
        source: "https://github.com/squid-cache/squid/blob/SQUID_7_6/src/cf.data.pre#L7477",
    },
    Lifetime {
        software: "cpp-httplib (llama.cpp)",
        names: "`set_keep_alive_max_count()`",
        source: "https://github.com/yhirose/cpp-httplib/blob/v0.53.1/httplib.h#L34",
    },
    Lifetime {
        software: "Armeria",
        names: "`maxConnectionAge`, `maxNumRequestsPerConnection`",
        source: "https://github.com/line/armeria/blob/armeria-1.41.0/core/src/main/java/com/linecorp/armeria/server/ServerBuilder.java#L789",
    },
];

/// For a server's process, if that tells the software: a runtime may be any of several.
pub fn of(process: &str) -> Option<&'static Lifetime> {
    let is_its = |known: &&Lifetime| {
        super::all().any(|one| one.name == known.software && one.has_process(process))
    };
    let mut all = ALL.iter().filter(is_its);
    all.next().filter(|_| all.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_tells_whose_limit_it_is() {
        assert_eq!(of("gunicorn: worke").map(|known| known.names), Some("`--max-requests`"));
        assert_eq!(of("http-nio-8080-e").map(|known| known.software), Some("Tomcat"));
        for process in ["made-up", "java", "python3"] {
            assert!(of(process).is_none(), "{process}");
        }
        for known in ALL {
            assert!(known.source.starts_with("https://"), "{known:?}");
            assert!(
                super::super::all().any(|software| software.name == known.software),
                "{known:?}"
            );
        }
    }
}
