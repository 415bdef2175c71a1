//! The TLS side of a configuration: certificates and keys, what a client has to show, and which of
//! the suites and curves, by Go's names, rustls has.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{
    CryptoProvider, SupportedKxGroup, WebPkiSupportedAlgorithms, ring, verify_tls12_signature,
    verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{
    CertificateError, CipherSuite, DigitallySignedStruct, DistinguishedName, RootCertStore,
    ServerConfig, SignatureScheme, SupportedCipherSuite,
};

use super::config::{ClientAuth, Tls};
use super::san::subject_alt_names;

/// The contents of a configuration's files.
#[derive(PartialEq, Eq)]
pub(super) struct Pems {
    pub certificate: Vec<u8>,
    pub key: Vec<u8>,
    pub client_ca: Option<Vec<u8>>,
}

pub(super) fn server_config(tls: &Tls, pems: &Pems) -> Result<ServerConfig> {
    let provider = Arc::new(provider(tls)?);
    let mut versions = Vec::new();
    if tls.versions.tls12 {
        versions.push(&TLS12);
    }
    if tls.versions.tls13 {
        versions.push(&TLS13);
    }
    let certificate = tls.certificate.name();
    let chain = certificates(&pems.certificate).with_context(|| certificate.clone())?;
    let key = PrivateKeyDer::from_pem_slice(&pems.key)
        .with_context(|| format!("{}: no private key in PEM, not encrypted", tls.key.name()))?;
    let certified = CertifiedKey::from_der(chain, key, &provider)
        .with_context(|| format!("{certificate} and {} do not go together", tls.key.name()))?;

    let verifier = Clients::new(tls, pems, &provider)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .context("cipher_suites has none for the versions from min_version to max_version")?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.ignore_client_order = tls.prefer_server_cipher_suites;
    // A resumed session would not show its certificate again, and a scrape has no use for resumption.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.context("no certificates in PEM")?;
    ensure!(!certificates.is_empty(), "no certificate in PEM");
    Ok(certificates)
}

fn provider(tls: &Tls) -> Result<CryptoProvider> {
    let mut provider = ring::default_provider();
    if !tls.cipher_suites.is_empty() {
        // As in Go, the suites of TLS 1.3 cannot be chosen.
        let mut suites: Vec<_> = provider
            .cipher_suites
            .iter()
            .copied()
            .filter(|suite| suite.tls13().is_some())
            .collect();
        for name in &tls.cipher_suites {
            let suite = provider.cipher_suites.iter().find(|suite| go_name(**suite) == *name);
            let suite = *suite.with_context(|| {
                let known = provider.cipher_suites.iter().map(|suite| go_name(*suite));
                let known = known.collect::<Vec<_>>().join(", ");
                format!("cipher_suites: `{name}` is not one of {known}")
            })?;
            if !suites.contains(&suite) {
                suites.push(suite);
            }
        }
        provider.cipher_suites = suites;
    }
    if !tls.curves.is_empty() {
        provider.kx_groups = tls.curves.iter().map(|name| curve(name)).collect::<Result<_>>()?;
    }
    Ok(provider)
}

/// `TLS13_AES_128_GCM_SHA256` is `TLS_AES_128_GCM_SHA256` in Go, the others are the same.
fn go_name(suite: SupportedCipherSuite) -> String {
    let name = CipherSuite::as_str(&suite.suite()).unwrap_or_default();
    name.replace("TLS13_", "TLS_")
}

fn curve(name: &str) -> Result<&'static dyn SupportedKxGroup> {
    Ok(match name {
        "X25519" => ring::kx_group::X25519,
        "CurveP256" => ring::kx_group::SECP256R1,
        "CurveP384" => ring::kx_group::SECP384R1,
        other => {
            bail!("curve_preferences: `{other}` is not one of X25519, CurveP256, CurveP384")
        }
    })
}

/// What a client has to show.
#[derive(Debug)]
struct Clients {
    auth: ClientAuth,
    /// For the modes that verify.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    allowed_sans: Vec<String>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Clients {
    fn new(tls: &Tls, pems: &Pems, provider: &Arc<CryptoProvider>) -> Result<Self> {
        let verifier = match (&tls.client_ca, &pems.client_ca) {
            (Some(client_ca), Some(pem)) => {
                let roots = roots(pem).with_context(|| client_ca.name())?;
                let builder = WebPkiClientVerifier::builder_with_provider(
                    Arc::new(roots),
                    Arc::clone(provider),
                );
                Some(builder.build().with_context(|| client_ca.name())?)
            }
            _ => None,
        };
        ensure!(
            verifier.is_some() || !tls.client_auth.verifies(),
            "client_auth_type without client_ca"
        );
        Ok(Self {
            auth: tls.client_auth,
            verifier,
            allowed_sans: tls.client_allowed_sans.clone(),
            algorithms: provider.signature_verification_algorithms,
        })
    }
}

fn roots(pem: &[u8]) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).context("a certificate that cannot be a root")?;
    }
    Ok(roots)
}

impl ClientCertVerifier for Clients {
    fn offer_client_auth(&self) -> bool {
        self.auth != ClientAuth::NoClientCert
    }

    fn client_auth_mandatory(&self) -> bool {
        self.auth.requires()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.as_ref().map_or(&[], |verifier| verifier.root_hint_subjects())
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        if let Some(verifier) = &self.verifier {
            verifier.verify_client_cert(certificate, intermediates, now)?;
        }
        let is_allowed = |name: &String| self.allowed_sans.contains(name);
        if self.allowed_sans.is_empty() || subject_alt_names(certificate).iter().any(is_allowed) {
            return Ok(ClientCertVerified::assertion());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
