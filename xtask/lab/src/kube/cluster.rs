//! etcd and the API server on loopback, with RBAC, and access to them as administrator and as the
//! agent's service account.

use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::setup::{Process, run, server_port, until, wait_port};

/// Time for the API server to come up, even on a busy machine.
const START: Duration = Duration::from_mins(1);

/// The administrator's token. It opens nothing but this server on loopback.
const ADMIN: &str = "finrace-kube-test";

/// Addresses of Services.
pub(super) const SERVICES: &str = "10.96.0.0/24";

pub(super) struct Cluster {
    directory: PathBuf,
    api_program: PathBuf,
    kubectl: PathBuf,
    address: SocketAddr,
    etcd_address: SocketAddr,
    api: Option<Process>,
    _etcd: Process,
    tokens: u32,
}

impl Cluster {
    /// Starts both, empty.
    pub(super) fn start(
        directory: PathBuf,
        api_program: PathBuf,
        kubectl: PathBuf,
    ) -> Result<Self> {
        certify(&directory)?;
        let tokens = directory.join("tokens.csv");
        fs::write(&tokens, format!("{ADMIN},admin,admin,\"system:masters\"\n"))
            .with_context(|| format!("writing {}", tokens.display()))?;
        let etcd_address = loopback()?;
        let (clients, peers) =
            (format!("http://{etcd_address}"), format!("http://{}", loopback()?));
        let mut command = Command::new("etcd");
        command
            .arg("--data-dir")
            .arg(directory.join("etcd"))
            .args(["--unsafe-no-fsync", "--listen-client-urls", &clients])
            .args(["--advertise-client-urls", &clients, "--listen-peer-urls", &peers])
            .args(["--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("default={peers}")]);
        let etcd = Process::spawn("etcd", command, &directory)?;
        let mut cluster = Self {
            address: loopback()?,
            directory,
            api_program,
            kubectl,
            etcd_address,
            api: None,
            _etcd: etcd,
            tokens: 0,
        };
        wait_port(etcd_address, START).context("etcd")?;
        cluster.start_api()?;
        Ok(cluster)
    }

    /// Starts the API server, and waits until it is ready.
    pub(super) fn start_api(&mut self) -> Result<()> {
        let key = self.directory.join("accounts.key");
        let mut command = Command::new(&self.api_program);
        command
            .arg(format!("--etcd-servers=http://{}", self.etcd_address))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            .arg(format!("--secure-port={}", self.address.port()))
            .arg("--tls-cert-file")
            .arg(self.directory.join("server.pem"))
            .arg("--tls-private-key-file")
            .arg(self.directory.join("server.key"))
            .arg("--token-auth-file")
            .arg(self.directory.join("tokens.csv"))
            .arg("--service-account-key-file")
            .arg(&key)
            .arg("--service-account-signing-key-file")
            .arg(&key)
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--service-cluster-ip-range={SERVICES}"))
            // Its controller, which makes secrets for accounts, does not run here.
            .arg("--disable-admission-plugins=ServiceAccount")
            .args(["--authorization-mode=RBAC", "--allow-privileged=true"])
            .arg("--endpoint-reconciler-type=none");
        let mut process = Process::spawn("kube-apiserver", command, &self.directory)?;
        until("the API server is ready", START, || {
            ensure!(process.is_running()?, "the API server has ended");
            self.get("/readyz").map(|_| true)
        })
        .with_context(|| process.log().display().to_string())?;
        self.api = Some(process);
        Ok(())
    }

    pub(super) fn stop_api(&mut self) {
        self.api = None;
    }

    /// Starts it if it is not running.
    pub(super) fn ensure_api(&mut self) -> Result<()> {
        if self.api.is_none() { self.start_api() } else { Ok(()) }
    }

    pub(super) fn restart_api(&mut self) -> Result<()> {
        self.stop_api();
        self.start_api()
    }

    pub(super) fn create(&self, path: &str, object: &Value) -> Result<Value> {
        self.call("POST", path, Some(object))
    }

    /// Merges `change` into an object.
    pub(super) fn change(&self, path: &str, change: &Value) -> Result<Value> {
        self.call("PATCH", path, Some(change))
    }

    pub(super) fn get(&self, path: &str) -> Result<Value> {
        self.call("GET", path, None)
    }

    /// Deletes at once: no kubelet will ever report that the containers have ended.
    pub(super) fn delete(&self, path: &str) -> Result<()> {
        self.call("DELETE", path, Some(&json!({ "gracePeriodSeconds": 0 }))).map(drop)
    }

    /// A request as the administrator. An answer that is not JSON, like that of a probe, is a string.
    fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--show-error", "--fail-with-body", "--request", method]);
        for (name, value) in self.options(method) {
            curl.arg(format!("--{name}")).arg(value);
        }
        if let Some(body) = body {
            curl.args(["--data", &body.to_string()]);
        }
        curl.arg(self.url(path));
        let answer = run(&mut curl).with_context(|| format!("{method} {path}"))?;
        Ok(serde_json::from_str(&answer).unwrap_or(Value::String(answer)))
    }

    /// Options of curl for a request as the administrator.
    pub(super) fn options(&self, method: &str) -> [(&str, String); 3] {
        let kind = if method == "PATCH" { "merge-patch+json" } else { "json" };
        [
            ("cacert", self.ca().display().to_string()),
            ("header", format!("Authorization: Bearer {ADMIN}")),
            ("header", format!("Content-Type: application/{kind}")),
        ]
    }

    /// How many pods there are with an address of their own.
    pub(super) fn pods(&self) -> Result<u32> {
        let answer = self.get("/api/v1/pods")?;
        let items = answer.pointer("/items").and_then(Value::as_array).into_iter().flatten();
        let own = items.filter(|pod| pod.pointer("/spec/hostNetwork") != Some(&Value::Bool(true)));
        Ok(u32::try_from(own.count())?)
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    /// The directory of its files.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    fn ca(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// kubectl as the administrator; returns what it prints.
    pub(super) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(&self.kubectl);
        command.env("HOME", &self.directory).env_remove("KUBECONFIG");
        command.args(["--server", &self.url(""), "--token", ADMIN]);
        command.arg("--certificate-authority").arg(self.ca()).args(arguments);
        run(&mut command)
    }

    /// A kubeconfig of the service account, whose token is in a file.
    pub(super) fn agent_config(&self) -> Result<PathBuf> {
        let path = self.directory.join("agent.kubeconfig");
        let text = format!(
            "apiVersion: v1
kind: Config
clusters:
- name: test
  cluster:
    server: {}
    certificate-authority: {}
users:
- name: finrace
  user:
    tokenFile: {}
contexts:
- name: finrace@test
  context:
    cluster: test
    user: finrace
current-context: finrace@test
",
            self.url(""),
            self.ca().display(),
            self.account().join("token").display()
        );
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// What a pod of the service account would have mounted.
    fn account(&self) -> PathBuf {
        self.directory.join("account")
    }

    /// A program that runs `finrace` as in such a pod: with the account where every pod has it, and
    /// the server's address in the environment.
    pub(super) fn in_pod(&self, finrace: &Path) -> Result<PathBuf> {
        let path = self.directory.join("in-pod.sh");
        let text = format!(
            r#"#!/bin/sh
export KUBERNETES_SERVICE_HOST={} KUBERNETES_SERVICE_PORT={}
mount='
    account=/run/secrets/kubernetes.io/serviceaccount
    mount -t tmpfs tmpfs /run && mkdir -p "$account" && mount --bind "$1" "$account" && shift &&
    exec "$@"'
exec unshare --mount sh -c "$mount" sh '{}' '{}' "$@"
"#,
            self.address.ip(),
            self.address.port(),
            self.account().display(),
            finrace.display()
        );
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        fs::set_permissions(&path, Permissions::from_mode(0o755)).context("in-pod.sh")?;
        Ok(path)
    }

    /// A token of the service account that holds as long as the Secret of this name exists.
    pub(super) fn token(&self, secret: &str) -> Result<String> {
        self.create(
            "/api/v1/namespaces/finrace/secrets",
            &json!({ "metadata": { "name": secret } }),
        )?;
        let request = json!({
            "spec": {
                // The shortest that the API server allows.
                "expirationSeconds": 600,
                "boundObjectRef": { "apiVersion": "v1", "kind": "Secret", "name": secret },
            }
        });
        let path = "/api/v1/namespaces/finrace/serviceaccounts/finrace/token";
        let answer = self.create(path, &request)?;
        let token = answer.pointer("/status/token").and_then(Value::as_str);
        Ok(token.context("a TokenRequest without a token")?.to_owned())
    }

    /// Makes a token invalid, as its expiry would; no token lasts less than ten minutes.
    pub(super) fn revoke(&self, secret: &str) -> Result<()> {
        self.delete(&format!("/api/v1/namespaces/finrace/secrets/{secret}"))
    }

    /// Puts a token where the agents read it, the way the kubelet does: in a directory with a new name,
    /// to which a link is switched.
    pub(super) fn mount_token(&mut self, token: &str) -> Result<()> {
        self.tokens += 1;
        let (account, version) = (self.account(), format!("..{}", self.tokens));
        let real = account.join(&version);
        fs::create_dir_all(&real).with_context(|| format!("creating {}", real.display()))?;
        fs::write(real.join("token"), token).context("writing a token")?;
        fs::copy(self.ca(), real.join("ca.crt")).context("copying the authority")?;
        symlink(&version, account.join("..data_tmp")).context("linking a token's directory")?;
        fs::rename(account.join("..data_tmp"), account.join("..data"))
            .context("turning the link to a token's directory")?;
        if self.tokens == 1 {
            for name in ["token", "ca.crt"] {
                symlink(Path::new("..data").join(name), account.join(name)).context(name)?;
            }
        }
        Ok(())
    }

    /// Whether the server refuses a watch from this version of the list of pods: 410 Gone.
    pub(super) fn is_gone(&self, version: &str) -> Result<bool> {
        let path = format!("/api/v1/pods?watch=1&resourceVersion={version}&timeoutSeconds=1");
        // In an event of the stream, or as the answer.
        match self.get(&path) {
            Ok(answer) => Ok(answer.pointer("/object/code") == Some(&json!(410))),
            Err(error) if format!("{error:#}").contains("returned error: 410") => Ok(true),
            Err(error) => Err(error),
        }
    }
}

fn loopback() -> Result<SocketAddr> {
    Ok(SocketAddr::from(([127, 0, 0, 1], server_port()?)))
}

/// An authority, a certificate of the server, and a key for tokens of service accounts.
fn certify(directory: &Path) -> Result<()> {
    let request = |name: &str, arguments: &[&str]| {
        let curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let mut command = Command::new("openssl");
        command.current_dir(directory).args(["req", "-x509", "-days", "2"]).args(curve);
        command.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.pem")]);
        run(command.args(arguments)).with_context(|| format!("making the certificate {name}"))
    };
    request("ca", &["-subj", "/CN=finrace-kube-test"])?;
    request(
        "server",
        &[
            "-subj",
            "/CN=kube-apiserver",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ],
    )?;
    let mut key = Command::new("openssl");
    key.current_dir(directory).args(["genrsa", "-out", "accounts.key", "2048"]);
    run(&mut key).context("making the key of service accounts").map(drop)
}
