//! Which host a request is meant for, where access is open: a web page can make a browser on this host ask for what
//! is on loopback, under a name of its own whose address it then changes (DNS rebinding).

use std::net::IpAddr;

use hyper::Request;
use hyper::header::HOST;
use hyper::http::uri::Authority;

/// Suffixes that cannot be registered: RFC 6761, RFC 6762, RFC 8375, ICANN's `internal`, and those of clusters.
const PRIVATE: [&str; 7] =
    [".localhost", ".local", ".internal", ".home.arpa", ".test", ".svc", ".cluster.local"];

/// Whether a request can be meant for this host: by an address, a name without a dot, `node`, or a name that
/// cannot be a web page's. One that names no host does not come from a browser.
pub(super) fn is_meant<T>(request: &Request<T>, node: &str) -> bool {
    let authority = match (request.uri().authority(), request.headers().get(HOST)) {
        (Some(authority), _) => Some(authority.clone()),
        (None, Some(host)) => match Authority::try_from(host.as_bytes()) {
            Ok(authority) => Some(authority),
            Err(_) => return false,
        },
        (None, None) => None,
    };
    authority.is_none_or(|authority| is_own(authority.host(), node))
}

fn is_own(host: &str, node: &str) -> bool {
    let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    is_address
        || !name.contains('.')
        || name == node.to_ascii_lowercase()
        || PRIVATE.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_web_pages_are_not_ours() {
        let is_meant = |host: &str| {
            let request = Request::builder().uri("/metrics").header(HOST, host).body(()).unwrap();
            is_meant(&request, "Node-7.Example.COM")
        };
        for host in [
            "127.0.0.1",
            "127.0.0.1:9502",
            "[::1]:9502",
            "localhost:9502",
            "localhost.:9502",
            "LOCALHOST",
            "finrace:9502",
            "node-7.example.com:9502",
            "finrace.monitoring.svc:9502",
            "finrace.monitoring.svc.cluster.local",
            "printer.local",
        ] {
            assert!(is_meant(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:9502",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "node-7.example.com.evil.example",
            "notlocal.xlocal.com",
            "evil.example.",
            "",
            "a b",
        ] {
            assert!(!is_meant(host), "{host}");
        }
        let silent = Request::builder().uri("/metrics").body(()).unwrap();
        assert!(super::is_meant(&silent, "node"));
    }
}
