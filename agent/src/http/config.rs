//! The file given with `--web.config.file`, in the format of exporter-toolkit: parsed, and checked as
//! far as the text alone allows.
//!
//! Note that some settings that the toolkit accepts are refused here, because they would protect less
//! than they seem to. docs/web.md lists them.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hyper::header::{HeaderName, HeaderValue};
use serde::Deserialize;

/// Checking a hash of cost 16 takes some 5 s; more would outlast a scrape.
const COST_MAX: u32 = 16;

/// So that no sum of intervals and times can overflow.
const INTERVAL_MAX: Duration = Duration::from_hours(24);

/// Response headers that may be set, with the values allowed; an empty list allows any.
const HEADERS: [(&str, &[&str]); 5] = [
    ("Content-Security-Policy", &[]),
    ("Strict-Transport-Security", &[]),
    ("X-Content-Type-Options", &["nosniff"]),
    ("X-Frame-Options", &["deny", "sameorigin"]),
    ("X-XSS-Protection", &[]),
];

/// The checked file. No `Debug`: it contains secrets.
#[derive(Default)]
pub(super) struct WebConfig {
    pub tls: Option<Tls>,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Bcrypt hashes by user name; none: no basic auth.
    pub users: BTreeMap<String, String>,
    pub rate_limit: Option<RateLimit>,
}

pub(super) struct Tls {
    pub certificate: Pem,
    pub key: Pem,
    pub client_auth: ClientAuth,
    pub client_ca: Option<Pem>,
    /// Empty: any client that `client_auth` accepts.
    pub client_allowed_sans: Vec<String>,
    pub versions: Versions,
    /// Go's names; empty: all there are.
    pub cipher_suites: Vec<String>,
    /// Go's names; empty: all there are.
    pub curves: Vec<String>,
    pub prefer_server_cipher_suites: bool,
}

/// Where a PEM text is, with the field that names it.
pub(super) enum Pem {
    File { field: &'static str, path: PathBuf },
    Inline { field: &'static str, text: String },
}

/// Go's names for what is required of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClientAuth {
    NoClientCert,
    RequestClientCert,
    RequireAnyClientCert,
    VerifyClientCertIfGiven,
    RequireAndVerifyClientCert,
}

impl ClientAuth {
    /// Whether a client must have a certificate.
    pub(super) const fn requires(self) -> bool {
        matches!(self, Self::RequireAnyClientCert | Self::RequireAndVerifyClientCert)
    }

    /// Whether a client's certificate, if it has one, must be signed by one of `client_ca`.
    pub(super) const fn verifies(self) -> bool {
        matches!(self, Self::VerifyClientCertIfGiven | Self::RequireAndVerifyClientCert)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Versions {
    pub tls12: bool,
    pub tls13: bool,
}

/// A token bucket: `burst` requests at once, and one more each `interval`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RateLimit {
    pub interval: Duration,
    pub burst: u32,
}

impl Pem {
    /// Its name in errors.
    pub(super) fn name(&self) -> String {
        match self {
            Self::File { field, path } => format!("tls_server_config: {field} {}", path.display()),
            Self::Inline { field, .. } => format!("tls_server_config: {field}"),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct File {
    tls_server_config: Option<TlsSection>,
    http_server_config: Option<HttpSection>,
    basic_auth_users: Option<BTreeMap<String, String>>,
    rate_limit: Option<RateSection>,
}

#[derive(Default, Deserialize, PartialEq, Eq)]
#[serde(default, deny_unknown_fields)]
struct TlsSection {
    cert: Option<String>,
    key: Option<String>,
    client_ca: Option<String>,
    cert_file: Option<String>,
    key_file: Option<String>,
    client_auth_type: Option<String>,
    client_ca_file: Option<String>,
    client_allowed_sans: Option<Vec<String>>,
    cipher_suites: Option<Vec<String>>,
    curve_preferences: Option<Vec<String>>,
    min_version: Option<String>,
    max_version: Option<String>,
    prefer_server_cipher_suites: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct HttpSection {
    /// Allowing HTTP/2 does not require it.
    #[serde(rename = "http2")]
    _http2: Option<bool>,
    headers: Option<BTreeMap<String, String>>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RateSection {
    interval: Option<String>,
    burst: Option<u32>,
}

/// Relative paths in `text` are relative to `directory`, where the file is.
pub(super) fn parse(text: &str, directory: &Path) -> Result<WebConfig> {
    // An error that quotes the file could show a key.
    let options = serde_saphyr::options! { with_snippet: false };
    let file: Option<File> = serde_saphyr::from_str_with_options(text, options)?;
    let file = file.unwrap_or_default();
    let tls = match file.tls_server_config {
        Some(section) if section != TlsSection::default() => {
            Some(tls(section, directory).context("tls_server_config")?)
        }
        _ => None,
    };
    let headers = file.http_server_config.and_then(|section| section.headers);
    let users = file.basic_auth_users.unwrap_or_default();
    users.iter().try_for_each(|(user, hash)| check_user(user, hash)).context("basic_auth_users")?;
    Ok(WebConfig {
        tls,
        headers: self::headers(headers.unwrap_or_default())
            .context("http_server_config: headers")?,
        users,
        rate_limit: rate_limit(file.rate_limit.unwrap_or_default()).context("rate_limit")?,
    })
}

fn tls(section: TlsSection, directory: &Path) -> Result<Tls> {
    let certificate = pem("cert", section.cert, "cert_file", section.cert_file, directory)?
        .context("cert or cert_file is missing")?;
    let key = pem("key", section.key, "key_file", section.key_file, directory)?
        .context("key or key_file is missing")?;
    let client_ca =
        pem("client_ca", section.client_ca, "client_ca_file", section.client_ca_file, directory)?;
    let client_auth = client_auth(given(section.client_auth_type).as_deref())?;
    let verifies = client_auth.verifies();
    let client_allowed_sans = section.client_allowed_sans.unwrap_or_default();
    ensure!(
        !verifies || client_ca.is_some(),
        "client_auth_type {client_auth:?} needs client_ca or client_ca_file: those of the system \
         are not asked"
    );
    ensure!(
        verifies || client_ca.is_none(),
        "client_ca is not asked with client_auth_type {client_auth:?}: set it to \
         RequireAndVerifyClientCert"
    );
    ensure!(
        client_auth == ClientAuth::RequireAndVerifyClientCert || client_allowed_sans.is_empty(),
        "client_allowed_sans protects nothing with client_auth_type {client_auth:?}, which lets in \
         clients without a verified certificate: set it to RequireAndVerifyClientCert"
    );
    Ok(Tls {
        certificate,
        key,
        client_auth,
        client_ca,
        client_allowed_sans,
        versions: versions(given(section.min_version), given(section.max_version))?,
        cipher_suites: section.cipher_suites.unwrap_or_default(),
        curves: section.curve_preferences.unwrap_or_default(),
        prefer_server_cipher_suites: section.prefer_server_cipher_suites.unwrap_or(true),
    })
}

/// An empty text counts as none.
fn given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

fn pem(
    field: &'static str,
    text: Option<String>,
    file_field: &'static str,
    file: Option<String>,
    directory: &Path,
) -> Result<Option<Pem>> {
    Ok(match (given(text), given(file)) {
        (Some(_), Some(_)) => bail!("{field} and {file_field} are both there: leave one out"),
        (Some(text), None) => Some(Pem::Inline { field, text }),
        (None, Some(file)) => Some(Pem::File { field: file_field, path: directory.join(file) }),
        (None, None) => None,
    })
}

fn client_auth(name: Option<&str>) -> Result<ClientAuth> {
    Ok(match name {
        None | Some("NoClientCert") => ClientAuth::NoClientCert,
        Some("RequestClientCert") => ClientAuth::RequestClientCert,
        // The second is an old name that the toolkit still accepts.
        Some("RequireAnyClientCert" | "RequireClientCert") => ClientAuth::RequireAnyClientCert,
        Some("VerifyClientCertIfGiven") => ClientAuth::VerifyClientCertIfGiven,
        Some("RequireAndVerifyClientCert") => ClientAuth::RequireAndVerifyClientCert,
        Some(other) => bail!(
            "client_auth_type `{other}` is not one of NoClientCert, RequestClientCert, \
             RequireAnyClientCert, VerifyClientCertIfGiven, RequireAndVerifyClientCert"
        ),
    })
}

fn versions(least: Option<String>, most: Option<String>) -> Result<Versions> {
    let version = |field, name: &str| match name {
        "TLS12" => Ok(12),
        "TLS13" => Ok(13),
        other => bail!("{field} `{other}` is not one of TLS12, TLS13"),
    };
    let least = version("min_version", least.as_deref().unwrap_or("TLS12"))?;
    let most = version("max_version", most.as_deref().unwrap_or("TLS13"))?;
    ensure!(least <= most, "min_version is above max_version");
    Ok(Versions { tls12: least == 12, tls13: most == 13 })
}

fn headers(headers: BTreeMap<String, String>) -> Result<Vec<(HeaderName, HeaderValue)>> {
    let mut checked = Vec::new();
    for (name, value) in headers.into_iter().filter(|(_, value)| !value.is_empty()) {
        let Some((_, values)) = HEADERS.iter().find(|(known, _)| *known == name) else {
            let known = HEADERS.map(|(name, _)| name).join(", ");
            bail!("`{name}` is not one of {known}");
        };
        ensure!(
            values.is_empty() || values.contains(&value.as_str()),
            "{name} `{value}` is not one of {}",
            values.join(", ")
        );
        let value = HeaderValue::from_str(&value)
            .with_context(|| format!("{name} `{value}` cannot be sent"))?;
        checked.push((HeaderName::from_bytes(name.as_bytes())?, value));
    }
    Ok(checked)
}

fn check_user(user: &str, hash: &str) -> Result<()> {
    ensure!(!user.contains(':'), "`{user}` has a colon, which basic auth cannot send");
    let parts: bcrypt::HashParts =
        hash.parse().with_context(|| format!("what `{user}` has is no bcrypt hash"))?;
    let cost = parts.get_cost();
    ensure!(
        (4..=COST_MAX).contains(&cost),
        "the hash of `{user}` has a cost of {cost}, and may have 4 to {COST_MAX}"
    );
    Ok(())
}

fn rate_limit(section: RateSection) -> Result<Option<RateLimit>> {
    let interval = match section.interval.as_deref() {
        None | Some("" | "0") => return Ok(None),
        Some(text) => humantime::parse_duration(text)
            .with_context(|| format!("interval `{text}` is not a duration, as in 100ms or 1s"))?,
    };
    if interval.is_zero() {
        return Ok(None);
    }
    ensure!(interval <= INTERVAL_MAX, "interval is longer than a day");
    match section.burst {
        None | Some(0) => bail!("with a burst of 0 every request would be refused"),
        Some(burst) => Ok(Some(RateLimit { interval, burst })),
    }
}
