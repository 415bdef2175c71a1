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
];

/// Of a server's process, if it is known.
pub fn of(process: &str) -> Option<&'static Lifetime> {
    let names =
        super::all().filter(|software| software.has_process(process)).map(|software| software.name);
    names.into_iter().find_map(|name| ALL.iter().find(|known| known.software == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_tells_whose_limit_it_is() {
        assert_eq!(of("gunicorn: worke").map(|known| known.names), Some("`--max-requests`"));
        assert!(of("made-up").is_none());
        for known in ALL {
            assert!(known.source.starts_with("https://"), "{known:?}");
            assert!(
                super::super::all().any(|software| software.name == known.software),
                "{known:?}"
            );
        }
    }
}
