//! Certificates, and clients that use them.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::http::logins::tests::basic;

/// Signs certificates.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(super) pem: String,
}

/// A certificate and its key, in PEM.
pub(super) struct Identity {
    pub(super) certificate: String,
    pub(super) key: String,
}

impl Authority {
    pub(super) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub(super) fn sign(&self, params: CertificateParams) -> Identity {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Identity { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    pub(super) fn server(&self) -> Identity {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress("127.0.0.1".parse().unwrap())];
        self.sign(params)
    }

    pub(super) fn client(
        &self,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Identity {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        self.sign(params)
    }
}

/// A client, and the authority it trusts.
pub(super) struct Client<'a> {
    roots: &'a Authority,
    identity: Option<&'a Identity>,
    versions: &'a [&'static SupportedProtocolVersion],
    header: String,
}

impl<'a> Client<'a> {
    pub(super) fn new(roots: &'a Authority) -> Self {
        Self { roots, identity: None, versions: rustls::ALL_VERSIONS, header: String::new() }
    }

    pub(super) fn with(self, identity: &'a Identity) -> Self {
        Self { identity: Some(identity), ..self }
    }

    pub(super) fn login(self, login: &str) -> Self {
        Self { header: format!("authorization: {}\r\n", basic(login)), ..self }
    }

    pub(super) fn only(self, versions: &'a [&'static SupportedProtocolVersion]) -> Self {
        Self { versions, ..self }
    }

    /// The status of an answer that ends as it should, or what went wrong.
    async fn get(&self, address: SocketAddr) -> Result<String> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.roots.pem.as_bytes())?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(self.versions)?
            .with_root_certificates(roots);
        let config = match self.identity {
            Some(Identity { certificate, key }) => builder.with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes())?],
                PrivateKeyDer::from_pem_slice(key.as_bytes())?,
            )?,
            None => builder.with_no_client_auth(),
        };
        let stream = TcpStream::connect(address).await?;
        let name = ServerName::from(address.ip());
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        status(stream, &self.header).await
    }

    #[track_caller]
    pub(super) fn check(&self, address: SocketAddr, expected: &str) -> impl Future<Output = ()> {
        let place = std::panic::Location::caller();
        async move {
            let said = match self.get(address).await {
                Ok(status) => status,
                Err(error) => format!("{error:#}"),
            };
            assert!(said.contains(expected), "{place}\nexpected: {expected}\nsaid: {said}");
        }
    }
}

async fn status(mut stream: impl AsyncRead + AsyncWrite + Unpin, header: &str) -> Result<String> {
    let request = format!("GET /metrics HTTP/1.1\r\nhost: a\r\n{header}\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let status = answer.lines().next().unwrap_or_default().to_owned();
    assert_eq!(status.contains(" 200 "), answer.contains("Text004, "), "{answer}");
    Ok(status)
}

pub(super) async fn plain(address: SocketAddr, header: &str) -> String {
    let stream = TcpStream::connect(address).await.unwrap();
    status(stream, header).await.unwrap()
}
