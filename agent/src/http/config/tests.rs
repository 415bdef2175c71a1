use super::*;

const HASH: &str = "$2y$10$X0h1gDsPszWURQaxFh.zoubFi6DXncSjhoQNJgRrnGs7EsimhC7zG";

fn read(text: &str) -> Result<WebConfig> {
    parse(&text.replace("HASH", HASH), Path::new("/etc/finrace"))
}

/// Checks the result as one line of text: what was understood, or the error.
fn check(text: &str, expected: &str) {
    let said = match read(text) {
        Ok(config) => show(&config),
        Err(error) => format!("{error:#}"),
    };
    assert!(said.contains(expected), "{text}\nexpected: {expected}\nsaid: {said}");
    assert!(!said.contains("$2y$"), "a secret: {said}");
}

fn show(config: &WebConfig) -> String {
    let pem = |pem: &Pem| match pem {
        Pem::File { path, .. } => path.display().to_string(),
        Pem::Inline { text, .. } => format!("`{}`", text.trim()),
    };
    let tls = config.tls.as_ref().map_or("plain".to_owned(), |tls| {
        format!(
            "{} {} {:?} {:?} {:?} {:?} {:?} {:?} {}",
            pem(&tls.certificate),
            pem(&tls.key),
            tls.client_auth,
            tls.client_ca.as_ref().map(pem),
            tls.client_allowed_sans,
            tls.versions,
            tls.cipher_suites,
            tls.curves,
            tls.prefer_server_cipher_suites,
        )
    });
    let users = config.users.keys().collect::<Vec<_>>();
    format!("{tls}; {:?}; {users:?}; {:?}", config.headers, config.rate_limit)
}

#[test]
fn what_is_understood() {
    for nothing in ["", "# nothing\n", "---\n", "tls_server_config:\nbasic_auth_users:\n"] {
        check(nothing, "plain; []; []; None");
    }
    check(
        "tls_server_config:\n  cert_file: tls.crt\n  key_file: /run/tls.key\n",
        "/etc/finrace/tls.crt /run/tls.key NoClientCert None [] \
         Versions { tls12: true, tls13: true } [] [] true; []; []; None",
    );
    check(
        "tls_server_config:\n  cert: |\n    a\n  key: b\n  client_ca: c\n  \
         client_auth_type: RequireAndVerifyClientCert\n  client_allowed_sans: [one, \"2\"]\n  \
         min_version: TLS13\n  cipher_suites: [d]\n  curve_preferences: [e]\n  \
         prefer_server_cipher_suites: false\n",
        "`a` `b` RequireAndVerifyClientCert Some(\"`c`\") [\"one\", \"2\"] \
         Versions { tls12: false, tls13: true } [\"d\"] [\"e\"] false",
    );
    check(
        "http_server_config:\n  http2: true\n  headers:\n    X-Frame-Options: deny\n    \
         X-XSS-Protection: 1\n    Content-Security-Policy: \"\"\n",
        "[(\"x-frame-options\", \"deny\"), (\"x-xss-protection\", \"1\")]",
    );
    check("basic_auth_users:\n  alice: HASH\n  bob: HASH\n", "[\"alice\", \"bob\"]");
    check("rate_limit:\n  interval: 100ms\n  burst: 5\n", "{ interval: 100ms, burst: 5 }");
    check("rate_limit:\n  interval: 0\n  burst: 5\n", "; None");
    check("rate_limit:\n  interval: 0s\n", "; None");
}

/// `cargo xtask rules` checks that Prometheus accepts it, too.
#[test]
fn the_example_is_understood() {
    let example = include_str!("../../../../deploy/prometheus/web.yaml");
    check(example, "/etc/finrace/tls.crt /etc/finrace/tls.key RequireAndVerifyClientCert");
    check(example, "[\"prometheus\"]");
}

#[test]
fn what_is_refused() {
    let tls = |more: &str| {
        format!("tls_server_config:\n  cert_file: a\n  key_file: b\n{}", more.replace("- ", "  "))
    };
    check("tls_server_confg:\n", "tls_server_confg");
    check("tls_server_config:\n  cert_filse: a\n", "cert_filse");
    check("basic_auth_users:\n  alice: HASH\n  alice: HASH\n", "alice");
    check("[", "line 1");
    check("http_server_config:\n  http3: true\n", "http3");
    check("tls_server_config:\n  key_file: a\n", "cert or cert_file is missing");
    check("tls_server_config:\n  cert_file: a\n", "key or key_file is missing");
    // The toolkit would speak plain HTTP then.
    check("tls_server_config:\n  min_version: TLS13\n", "cert or cert_file is missing");
    check(&tls("- cert: c\n"), "cert and cert_file are both there");
    check(&tls("- client_auth_type: Require\n"), "client_auth_type `Require` is not one of");
    check(&tls("- client_auth_type: VerifyClientCertIfGiven\n"), "needs client_ca");
    check(&tls("- client_ca_file: c\n"), "client_ca is not asked");
    for weak in ["RequireAnyClientCert", "VerifyClientCertIfGiven\n- client_ca: c"] {
        check(
            &tls(&format!("- client_auth_type: {weak}\n- client_allowed_sans: [a]\n")),
            "client_allowed_sans protects nothing",
        );
    }
    check(&tls("- min_version: TLS10\n"), "min_version `TLS10` is not one of TLS12, TLS13");
    check(&tls("- min_version: TLS13\n- max_version: TLS12\n"), "above max_version");
    check("http_server_config:\n  headers:\n    Server: a\n", "`Server` is not one of");
    check(
        "http_server_config:\n  headers:\n    X-Frame-Options: allow\n",
        "X-Frame-Options `allow` is not one of deny, sameorigin",
    );
    check("basic_auth_users:\n  alice: secret\n", "what `alice` has is no bcrypt hash");
    check(
        &format!("basic_auth_users:\n  alice: {}\n", HASH.replace("$10$", "$17$")),
        "`alice` has a cost of 17",
    );
    check("basic_auth_users:\n  a:b: HASH\n", "`a:b` has a colon");
    check("rate_limit:\n  interval: often\n  burst: 1\n", "interval `often`");
    check("rate_limit:\n  interval: 25h\n  burst: 1\n", "longer than a day");
    check("rate_limit:\n  interval: 1s\n", "every request would be refused");
}
