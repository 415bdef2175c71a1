//! Real handshakes over loopback.

mod client;

use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{ExtendedKeyUsagePurpose, date_time_ymd};
use rustls::version::{TLS12, TLS13};

use self::client::{Authority, Client, plain};
use super::*;
use crate::http::logins::tests::{basic, hash};
use crate::http::tests::{Server, agent, exchange, start_with};

/// A separate directory with the configuration in it.
struct Place {
    path: PathBuf,
    /// Servers that run for as long as it exists.
    servers: Mutex<Vec<Server>>,
}

impl Place {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("finrace-web-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self { path, servers: Mutex::default() }
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path.join(name), text).unwrap();
    }

    /// `HASH` stands for the hash of "sesame".
    fn config(&self, text: &str) {
        self.write("web.yaml", text.replace("HASH", &hash()));
    }

    fn load(&self) -> Result<Security> {
        Security::load(Some(&self.path.join("web.yaml")))
    }

    async fn start(&self) -> SocketAddr {
        let server = start_with(self.load().unwrap(), 4, agent).await;
        let address = server.address;
        self.servers.lock().await.push(server);
        address
    }

    /// Checks the error with which a start refuses it.
    #[track_caller]
    fn refuses(&self, expected: &str) {
        let error = self.load().err().map(|error| format!("{error:#}")).unwrap_or_default();
        assert!(error.contains(expected), "expected: {expected}\nsaid: {error}");
        assert!(error.contains("web.yaml"), "{error}");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.path));
    }
}

const TLS: &str = "tls_server_config:\n  cert_file: tls.crt\n  key_file: tls.key\n";
const USERS: &str = "basic_auth_users:\n  alice: HASH\n";

/// A place with a certificate for the server.
fn place(authority: &Authority) -> Place {
    let place = Place::new();
    let server = authority.server();
    place.write("tls.crt", &server.certificate);
    place.write("tls.key", &server.key);
    place
}

#[tokio::test]
async fn passwords_alone() {
    let place = Place::new();
    place.config(USERS);
    let address = place.start().await;
    let check = async |header: &str, expected: &str| {
        let said = plain(address, header).await;
        assert!(said.contains(expected), "{header}\nexpected: {expected}\nsaid: {said}");
    };
    let login = |login: &str| format!("authorization: {}\r\n", basic(login));
    check("", " 401 ").await;
    check(&login("alice:open"), " 401 ").await;
    check(&login("bob:sesame"), " 401 ").await;
    check("authorization: Bearer sesame\r\n", " 401 ").await;
    check(&login("alice:sesame"), " 200 ").await;
    check(&login("alice:sesame"), " 200 ").await;
    check(&login("alice:open"), " 401 ").await;
    // Every path is protected, and which ones exist is not revealed either.
    for path in ["/", "/-/healthy", "/-/ready", "/nothing", "/api/v1/status"] {
        let answer = exchange(address, &format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 401 Unauthorized\r\n"), "{path}: {answer}");
        assert!(answer.contains("www-authenticate: Basic realm=\"finrace\"\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nunauthorized\n"), "{answer}");
    }
}

#[tokio::test]
async fn tls_alone() {
    let authority = Authority::new("ours");
    let place = place(&authority);
    place.config(TLS);
    let address = place.start().await;
    Client::new(&authority).check(address, " 200 ").await;
    Client::new(&authority).only(&[&TLS12]).check(address, " 200 ").await;
    Client::new(&authority).only(&[&TLS13]).check(address, " 200 ").await;
    Client::new(&Authority::new("other")).check(address, "UnknownIssuer").await;
    // A client that is not asked for a certificate shows none.
    let stranger = Authority::new("other").client("prometheus", |_| {});
    Client::new(&authority).with(&stranger).check(address, " 200 ").await;
    // Plain HTTP gets an answer that says so; what is neither gets none.
    let answer = exchange(address, "GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{answer}");
    assert!(answer.ends_with("this is an HTTPS port, and the request was HTTP\n"), "{answer}");
}

#[tokio::test]
async fn versions_and_suites() {
    let authority = Authority::new("ours");
    let place = place(&authority);
    place.config(&format!("{TLS}  min_version: TLS13\n"));
    let address = place.start().await;
    Client::new(&authority).only(&[&TLS13]).check(address, " 200 ").await;
    Client::new(&authority).only(&[&TLS12]).check(address, "ProtocolVersion").await;

    place.config(&format!("{TLS}  max_version: TLS12\n"));
    let address = place.start().await;
    Client::new(&authority).only(&[&TLS12]).check(address, " 200 ").await;
    Client::new(&authority).only(&[&TLS13]).check(address, "ProtocolVersion").await;

    // The key is an elliptic-curve key, so nothing is left but TLS 1.3.
    let suite = "  cipher_suites: [TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256]\n";
    place.config(&format!("{TLS}{suite}  curve_preferences: [CurveP384]\n"));
    let address = place.start().await;
    Client::new(&authority).only(&[&TLS13]).check(address, " 200 ").await;
    Client::new(&authority).only(&[&TLS12]).check(address, "HandshakeFailure").await;
}

#[tokio::test]
async fn client_certificates() {
    let (authority, other) = (Authority::new("ours"), Authority::new("other"));
    let place = place(&authority);
    place.write("ca.crt", &authority.pem);
    let asks = |policy: &str, more: &str| {
        place.config(&format!("{TLS}  client_auth_type: {policy}\n{more}"));
    };
    let ca = "  client_ca_file: ca.crt\n";
    let ours = authority.client("prometheus", |_| {});
    let server_only = authority.client("prometheus", |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    let expired = authority.client("prometheus", |params| {
        params.not_before = date_time_ymd(2001, 1, 1);
        params.not_after = date_time_ymd(2002, 1, 1);
    });
    let foreign = other.client("prometheus", |_| {});
    // With the same name as ours, signed by another authority.
    let namesake = Authority::new("ours").client("prometheus", |_| {});
    let client = || Client::new(&authority);

    asks("RequireAndVerifyClientCert", ca);
    let address = place.start().await;
    client().with(&ours).check(address, " 200 ").await;
    client().with(&ours).only(&[&TLS12]).check(address, " 200 ").await;
    for versions in [&[&TLS12], &[&TLS13]] {
        client().only(versions).check(address, "alert: ").await;
        client().with(&foreign).only(versions).check(address, "alert: ").await;
    }
    client().check(address, "CertificateRequired").await;
    client().with(&expired).check(address, "CertificateExpired").await;
    client().with(&server_only).check(address, "alert: ").await;
    client().with(&namesake).check(address, "alert: ").await;

    asks("VerifyClientCertIfGiven", ca);
    let address = place.start().await;
    client().check(address, " 200 ").await;
    client().with(&ours).check(address, " 200 ").await;
    client().with(&expired).check(address, "CertificateExpired").await;

    asks("RequireAnyClientCert", "");
    let address = place.start().await;
    client().check(address, "CertificateRequired").await;
    client().with(&foreign).check(address, " 200 ").await;

    asks("RequestClientCert", "");
    let address = place.start().await;
    client().check(address, " 200 ").await;
    client().with(&expired).check(address, " 200 ").await;

    asks("RequireAndVerifyClientCert", &format!("{ca}  client_allowed_sans: [a, prometheus]\n"));
    let address = place.start().await;
    client().with(&ours).check(address, " 200 ").await;
    for name in ["prometheus2", "a.prometheus", "*.prometheus", "b"] {
        let wrong = authority.client(name, |_| {});
        client().with(&wrong).check(address, "alert: ").await;
    }
    let foreign = other.client("prometheus", |_| {});
    client().with(&foreign).check(address, "alert: ").await;
}

#[tokio::test]
async fn certificates_and_passwords() {
    let authority = Authority::new("ours");
    let place = place(&authority);
    let policy = "  client_auth_type: RequireAndVerifyClientCert\n  client_ca: |\n";
    let ca = authority.pem.replace('\n', "\n    ");
    place.config(&format!("{TLS}{policy}    {ca}\n{USERS}"));
    let address = place.start().await;
    let ours = authority.client("prometheus", |_| {});
    let client = || Client::new(&authority);
    client().with(&ours).login("alice:sesame").check(address, " 200 ").await;
    client().with(&ours).login("alice:open").check(address, " 401 ").await;
    client().with(&ours).check(address, " 401 ").await;
    client().login("alice:sesame").check(address, "CertificateRequired").await;
}

#[tokio::test]
async fn headers_are_added_and_requests_limited() {
    let place = Place::new();
    place.config(
        "http_server_config:\n  headers:\n    X-Frame-Options: deny\n\
         rate_limit:\n  interval: 1h\n  burst: 2\n",
    );
    let address = place.start().await;
    for expected in [" 200 ", " 200 ", " 429 "] {
        let answer = exchange(address, "GET /-/ready HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(answer.lines().next().unwrap().contains(expected), "{expected}: {answer}");
        assert!(answer.contains("x-frame-options: deny\r\n"), "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_rate_limit_fills_again() {
    let (interval, now) = (Duration::from_secs(1), Instant::now());
    let mut bucket = TokenBucket { limit: RateLimit { interval, burst: 3 }, full: now };
    let mut take = |seconds: f64| bucket.take(now + Duration::from_secs_f64(seconds));
    let times = [0.0, 0.0, 0.0, 0.0, 0.9, 1.0, 1.0, 3.0, 3.0, 3.0, 99.0, 99.0, 99.0, 99.0];
    let taken = times.map(|time| if take(time) { '+' } else { '-' });
    assert_eq!(String::from_iter(taken), "+++--+-++-+++-");
}

#[tokio::test]
async fn a_certificate_is_renewed_while_it_runs() {
    let (old, new) = (Authority::new("old"), Authority::new("new"));
    let place = place(&old);
    place.config(TLS);
    let address = place.start().await;
    Client::new(&old).check(address, " 200 ").await;
    let server = new.server();
    // The certificate is there, the key not yet: what was there before still holds.
    place.write("tls.crt", &server.certificate);
    Client::new(&old).check(address, " 200 ").await;
    place.write("tls.key", &server.key);
    Client::new(&new).check(address, " 200 ").await;
    Client::new(&old).check(address, "UnknownIssuer").await;
}

#[tokio::test]
async fn passwords_change_while_it_runs() {
    let place = Place::new();
    place.config(USERS);
    let address = place.start().await;
    let login = |login: &str| format!("authorization: {}\r\n", basic(login));
    assert!(plain(address, &login("alice:sesame")).await.contains(" 200 "));
    place.config("basic_auth_users:\n  bob: HASH\n");
    assert!(plain(address, &login("alice:sesame")).await.contains(" 401 "));
    assert!(plain(address, &login("bob:sesame")).await.contains(" 200 "));
}

#[tokio::test]
async fn nothing_falls_open_while_it_runs() {
    let authority = Authority::new("ours");
    let place = place(&authority);
    place.write("ca.crt", &authority.pem);
    let policy = "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n";
    let names = "  client_allowed_sans: [prometheus]\n";
    let full = format!("{TLS}{policy}{names}{USERS}");
    place.config(&full);
    let address = place.start().await;
    let (ours, other) =
        (authority.client("prometheus", |_| {}), authority.client("grafana", |_| {}));
    let check = async |why: &str| {
        let client = || Client::new(&authority).with(&ours);
        client().login("alice:sesame").check(address, " 200 ").await;
        client().check(address, " 401 ").await;
        Client::new(&authority).check(address, "CertificateRequired").await;
        Client::new(&authority).with(&other).check(address, "alert: ").await;
        let answer = exchange(address, "GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{why}: {answer}");
    };
    check("as it began").await;
    for broken in [
        "",
        "basic_auth_users: [",
        "basic_auth_users:\n  alice: open\n",
        TLS,
        USERS,
        &format!("{TLS}{USERS}"),
        &format!("{TLS}{policy}{names}"),
        &format!("{TLS}{policy}{USERS}"),
        &format!(
            "{TLS}  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: ca.crt\n{USERS}"
        ),
    ] {
        place.config(broken);
        check(broken).await;
    }
    place.config(&full);
    place.write("ca.crt", "");
    check("no CA").await;
    fs::remove_file(place.path.join("tls.key")).unwrap();
    check("no key").await;
    fs::remove_file(place.path.join("web.yaml")).unwrap();
    check("no file").await;
}

/// Requiring a certificate and verifying it are two separate demands, and neither may be dropped.
#[tokio::test]
async fn a_certificate_is_asked_for_no_less_while_it_runs() {
    let authority = Authority::new("ours");
    let place = place(&authority);
    place.write("ca.crt", &authority.pem);
    let config = |policy: &str| place.config(&format!("{TLS}  client_auth_type: {policy}\n"));
    let foreign = Authority::new("other").client("prometheus", |_| {});
    let client = || Client::new(&authority);
    let (any, if_given) =
        ("RequireAnyClientCert", "VerifyClientCertIfGiven\n  client_ca_file: ca.crt");

    config(any);
    let address = place.start().await;
    config(if_given);
    client().check(address, "CertificateRequired").await;
    client().with(&foreign).check(address, " 200 ").await;

    config(if_given);
    let address = place.start().await;
    config(any);
    client().check(address, " 200 ").await;
    client().with(&foreign).check(address, "alert: ").await;

    // Asking for more is allowed.
    config("RequireAndVerifyClientCert\n  client_ca_file: ca.crt");
    client().check(address, "CertificateRequired").await;
    client().with(&foreign).check(address, "alert: ").await;
}

#[test]
fn what_a_start_refuses() {
    let authority = Authority::new("ours");
    let place = place(&authority);
    place.refuses("No such file");
    place.config("tls_server_config: {cert: a, key_file: tls.key}");
    place.refuses("tls_server_config: cert: no certificate in PEM");
    place.config("tls_server_config: {cert_file: none.crt, key_file: tls.key}");
    place.refuses("tls_server_config: cert_file ");
    place.refuses("none.crt: No such file");
    place.config("tls_server_config: {cert_file: ., key_file: tls.key}");
    place.refuses("no regular file");
    place.config("tls_server_config: {cert_file: tls.crt, key_file: tls.crt}");
    place.refuses("tls.crt: no private key in PEM");
    place.write("other.key", authority.server().key);
    place.config("tls_server_config: {cert_file: tls.crt, key_file: other.key}");
    place.refuses("other.key do not go together");
    place.write("empty.crt", "");
    place.config(&format!(
        "{TLS}  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: empty.crt\n"
    ));
    place.refuses("empty.crt: no certificate in PEM");
    place.config(&format!("{TLS}  cipher_suites: [TLS_RSA_WITH_AES_128_CBC_SHA]\n"));
    place.refuses("`TLS_RSA_WITH_AES_128_CBC_SHA` is not one of TLS_AES_256_GCM_SHA384, ");
    place.config(&format!("{TLS}  curve_preferences: [CurveP521]\n"));
    place.refuses("`CurveP521` is not one of X25519, CurveP256, CurveP384");
    place
        .config(&format!("{TLS}  max_version: TLS12\n  cipher_suites: [TLS_AES_128_GCM_SHA256]\n"));
    place.refuses("cipher_suites has none for the versions");
    place.write("web.yaml", [0xff, 0xfe]);
    place.refuses("no UTF-8");
    place.write("web.yaml", vec![b'#'; 2 << 20]);
    place.refuses("larger than");
}

#[tokio::test(start_paused = true)]
async fn what_happens_often_is_said_once_a_minute() {
    let rarely = Rarely::default();
    assert_eq!(rarely.others(), Some(0));
    assert_eq!(rarely.others(), None);
    assert_eq!(rarely.others(), None);
    tokio::time::advance(Rarely::EACH).await;
    assert_eq!(rarely.others(), Some(2));
    tokio::time::advance(Rarely::EACH).await;
    assert_eq!(rarely.others(), Some(0));
}
