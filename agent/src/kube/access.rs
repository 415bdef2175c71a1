//! How to reach a server, and what its errors mean.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use ::kube::client::ClientBuilder;
use ::kube::config::{AuthInfo, Kubeconfig};
use ::kube::core::Status;
use ::kube::{Client, Config};
use anyhow::{Context as _, Result};
use tokio::time::error::Elapsed;
use tower::layer::layer_fn;

use super::Account;
use super::bounded::{Bounded, TooLong};
use super::feed::{Failure, Reason};

/// Maximum number of characters kept of a server's message.
const MESSAGE_MAX: usize = 300;

/// How to reach a server. A new client is made after each failure, so the current contents of these
/// files apply at once; a client itself rereads a token every minute, as well as the certificates of
/// a service account.
#[derive(Clone, Debug)]
pub(super) enum Access {
    Kubeconfig(PathBuf),
    Account(Account),
    Kubelet { url: String, verify: Verify, credentials: Box<Access> },
}

/// What a kubelet's certificate is checked against.
#[derive(Clone, Debug)]
pub(super) enum Verify {
    /// The same as the API server's.
    Cluster,
    File(PathBuf),
    Nothing,
}

impl Access {
    pub(super) fn client(&self) -> Result<Client, Failure> {
        // Files that are not there yet will appear: not the server's fault.
        let config = self.config().map_err(|error| Failure { reason: Reason::Other, error })?;
        let builder = ClientBuilder::try_from(config).map_err(|error| {
            let reason = reason_of(&error);
            let error = anyhow::Error::new(error).context("setting up a client");
            Failure { reason, error }
        })?;
        Ok(builder.with_layer(&layer_fn(Bounded)).build())
    }

    pub(super) fn config(&self) -> Result<Config> {
        let mut config = match self {
            Self::Kubeconfig(path) => {
                let named = || format!("--kube.config {}", path.display());
                let file = Kubeconfig::read_from(path).with_context(named)?;
                Config::try_from(file).with_context(named)?
            }
            Self::Account(account) => {
                let url = account.server.parse();
                let mut config =
                    Config::new(url.with_context(|| format!("API server {}", account.server))?);
                config.root_cert_file = Some(account.directory.join("ca.crt"));
                let token = account.directory.join("token").display().to_string();
                config.auth_info = AuthInfo { token_file: Some(token), ..AuthInfo::default() };
                config
            }
            Self::Kubelet { url, verify, credentials } => {
                let mut config = credentials.config()?;
                config.cluster_url =
                    url.parse().with_context(|| format!("--kube.kubelet {url}"))?;
                // A server name and a proxy are meant for the API server.
                config.tls_server_name = None;
                config.proxy_url = None;
                config.accept_invalid_certs = matches!(verify, Verify::Nothing);
                if let Verify::File(path) = verify {
                    config.root_cert_file = Some(path.clone());
                }
                config
            }
        };
        // We retry ourselves, and count.
        config.default_retry = false;
        Ok(config)
    }
}

impl From<::kube::Error> for Failure {
    fn from(error: ::kube::Error) -> Self {
        if let ::kube::Error::Api(status) = error {
            return Self::from(status);
        }
        Self { reason: reason_of(&error), error: anyhow::Error::new(error) }
    }
}

impl From<Box<Status>> for Failure {
    fn from(status: Box<Status>) -> Self {
        let Status { code, message, .. } = *status;
        // Whatever stands in front of a server may answer with a page.
        let message = message.lines().next().unwrap_or_default();
        let message: String = message.chars().take(MESSAGE_MAX).collect();
        Self { reason: reason_of_code(code), error: anyhow::anyhow!("{code}: {message}") }
    }
}

impl From<Elapsed> for Failure {
    fn from(_: Elapsed) -> Self {
        Self { reason: Reason::Timeout, error: anyhow::anyhow!("no answer in time") }
    }
}

impl Failure {
    /// For a whole answer that cannot be decoded.
    pub(super) fn decode(error: impl Into<anyhow::Error>) -> Self {
        Self { reason: Reason::Decode, error: error.into().context("reading a list") }
    }
}

fn reason_of_code(code: u16) -> Reason {
    match code {
        401 => Reason::Unauthorized,
        403 => Reason::Forbidden,
        410 => Reason::Gone,
        408 | 504 => Reason::Timeout,
        _ => Reason::Other,
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "what is new there is `other` here")]
fn reason_of(error: &::kube::Error) -> Reason {
    use ::kube::Error as E;
    let is_too_long = anyhow::Chain::new(error).any(<dyn Error>::is::<TooLong>);
    match error {
        _ if is_too_long => Reason::Decode,
        E::Api(status) => reason_of_code(status.code),
        E::Auth(_) => Reason::Unauthorized,
        E::SerdeError(_) | E::FromUtf8(_) => Reason::Decode,
        E::HyperError(_) | E::Service(_) | E::ReadEvents(_) => {
            if is_timeout(error) {
                Reason::Timeout
            } else {
                Reason::Connect
            }
        }
        _ => Reason::Other,
    }
}

fn is_timeout(error: &(dyn Error + 'static)) -> bool {
    anyhow::Chain::new(error).any(|error| {
        error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::TimedOut)
    })
}
