//! This node's pods from the kubelet, over TLS as in reality.

use std::io;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::server::TlsStream;

use super::server::{Accept, Files, PODS, SERVICES, Server, World};
use super::{
    config, container_id, errors, is_up, local, objects, pod, remote, start, status_of, uid, until,
};
use finrace::kube::{Account, Names, Reason};

/// Signs certificates.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("an authority"))
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    fn tls(&self, name: &str) -> Tls {
        let params = CertificateParams::new([name.to_owned()]).expect("a name");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key)
            .expect("a server's side");
        Tls(TlsAcceptor::from(Arc::new(config)))
    }
}

#[derive(Clone)]
struct Tls(TlsAcceptor);

impl Accept for Tls {
    type Stream = TlsStream<TcpStream>;
    async fn accept(self, stream: TcpStream) -> io::Result<Self::Stream> {
        self.0.accept(stream).await
    }
}

/// A kubelet with a certificate that `authority` signed for `name`, and its pod's service account.
async fn kubelet(
    authority: &Authority,
    name: &str,
    fill: impl FnOnce(&mut World),
) -> (Server, Files) {
    let server = Server::start_over(authority.tls(name)).await;
    server.with(|world| {
        world.token = Some("first".to_owned());
        fill(world);
    });
    let files = Files::new("http://127.0.0.1:9", "first");
    files.write("ca.crt", &authority.pem());
    (server, files)
}

fn ask(server: &Server, files: &Files, more: &str) -> Names {
    let account = Account { server: "https://127.0.0.1:9".to_owned(), directory: files.0.clone() };
    let line = format!("--kube.source kubelet --kube.kubelet https://{} {more}", server.address);
    start(config(&line, Some(account)))
}

#[tokio::test]
async fn pods_come_and_go_at_the_kubelet_too() {
    let hash = "b53dfa9e2dc9b890f7fadb2770857b03";
    let (server, files) = kubelet(&Authority::new(), "127.0.0.1", |world| {
        world.put(PODS, pod(1));
        // To a kubelet, a static pod has no owner, and its uid is the hash.
        let mut from_file = pod(2);
        from_file["metadata"]["name"] = json!("etcd-node-a");
        from_file["metadata"]["uid"] = json!(hash);
        from_file["metadata"]["ownerReferences"] = json!(null);
        from_file["metadata"]["annotations"] = json!({"kubernetes.io/config.hash": hash});
        world.put(PODS, from_file);
    })
    .await;
    let names = ask(&server, &files, "");
    until(&names, is_up).await;
    let whole = "shop/web/web-5d4f8c7b9-00001/app";
    assert_eq!(local(&names, None, Some(&container_id(1))), whole);
    assert_eq!(local(&names, Some(hash), None), "shop/etcd/etcd-node-a/");
    assert_eq!(status_of(&names, "kubelet").objects, [("pod", 2)]);
    server.with(|world| {
        world.put(PODS, pod(3));
        world.delete(PODS, "web-5d4f8c7b9-00001");
    });
    until(&names, |names| !local(names, Some(&uid(3)), None).is_empty()).await;
    until(&names, |names| objects(names, "pod") == 2).await;
    assert_eq!(local(&names, None, Some(&container_id(1))), whole, "kept");
    assert_eq!(server.with(|world| world.count(PODS)), 0, "the API server was not asked");
}

#[tokio::test]
async fn a_kubelet_without_rights_for_us_is_asked_again() {
    let (server, files) = kubelet(&Authority::new(), "127.0.0.1", |world| {
        world.put(PODS, pod(1));
        world.forbidden = vec![("list", "/pods")];
    })
    .await;
    let names = ask(&server, &files, "");
    until(&names, |names| errors(names, Reason::Forbidden) > 2).await;
    assert!(!is_up(&names));
    server.with(|world| {
        world.forbidden.clear();
        world.token = Some("second".to_owned());
    });
    until(&names, |names| errors(names, Reason::Unauthorized) > 2).await;
    files.set_token("second");
    until(&names, |names| is_up(names) && objects(names, "pod") == 1).await;
}

#[tokio::test]
async fn a_kubelets_certificate_is_verified_unless_told_otherwise() {
    let (cluster, own) = (Authority::new(), Authority::new());
    let (server, files) = kubelet(&own, "127.0.0.1", |world| world.put(PODS, pod(1))).await;
    let own_file = files.write("kubelet.crt", &own.pem());
    files.write("ca.crt", &cluster.pem());
    let names = ask(&server, &files, "");
    until(&names, |names| errors(names, Reason::Connect) > 2).await;
    assert!(!is_up(&names));
    assert_eq!(server.with(|world| world.requests.len()), 0, "nobody got the token");
    let names = ask(&server, &files, &format!("--kube.kubelet-ca {}", own_file.display()));
    until(&names, is_up).await;
    let names = ask(&server, &files, "--kube.kubelet-insecure-tls");
    until(&names, is_up).await;
    // Signed by the right authority, for another node.
    let (server, files) = kubelet(&own, "node-b", |world| world.put(PODS, pod(1))).await;
    let names = ask(&server, &files, "");
    until(&names, |names| errors(names, Reason::Connect) > 2).await;
    assert_eq!(server.with(|world| world.requests.len()), 0);
}

#[tokio::test]
async fn remote_ends_are_the_api_servers_all_the_same() {
    let (server, files) = kubelet(&Authority::new(), "127.0.0.1", |world| {
        world.put(PODS, pod(1));
        world.put(
            SERVICES,
            json!({"metadata": {"name": "svc", "namespace": "shop", "uid": uid(5)},
                "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}}),
        );
    })
    .await;
    let account =
        Account { server: format!("https://{}", server.address), directory: files.0.clone() };
    let line = format!(
        "--kube.source kubelet --kube.remote services --kube.kubelet https://{}",
        server.address
    );
    let names = start(config(&line, Some(account)));
    until(&names, is_up).await;
    assert_eq!(remote(&names, "10.96.0.1", 80), "shop/svc/");
    let sources: Vec<_> = names.status().into_iter().map(|status| status.source).collect();
    assert_eq!(sources, ["kubelet", "apiserver"]);
    assert_eq!(server.with(|world| world.count(PODS)), 0);
}
