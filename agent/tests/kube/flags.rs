//! What the flags ask for, and what they refuse.

use finrace::kube::{self, Account};
use finrace::usage::Usage;

use super::config;
use super::server::Files;

fn account() -> Account {
    Account { server: "http://127.0.0.1:9".to_owned(), directory: "/nonexistent".into() }
}

/// The sources it starts with, or the error text.
fn outcome(line: &str, account: Option<Account>) -> String {
    match kube::start(config(line, account)) {
        Ok(Some(names)) => {
            names.status().iter().map(|status| status.source).collect::<Vec<_>>().join(" ")
        }
        Ok(None) => "none".to_owned(),
        Err(error) => {
            assert!(error.is::<Usage>(), "{error:#}");
            format!("{error:#}")
        }
    }
}

#[test]
fn a_source_is_asked_where_there_is_one() {
    assert_eq!(outcome("", None), "none");
    assert_eq!(outcome("--kube.source none --kube.node a", Some(account())), "none");
    assert_eq!(outcome("--kube.node a", Some(account())), "apiserver");
    // A pod that was not told its node's name goes on without names.
    assert_eq!(outcome("", Some(account())), "none");
    let kubelet = "--kube.source kubelet --kube.node-ip 192.0.2.1";
    assert_eq!(outcome(kubelet, Some(account())), "kubelet");
    let both = format!("{kubelet} --kube.remote services");
    assert_eq!(outcome(&both, Some(account())), "kubelet apiserver");
}

#[test]
fn what_is_missing_or_wrong_is_named_with_the_remedy() {
    let refuse = |line: &str, account: Option<Account>, part: &str| {
        let text = outcome(line, account);
        assert!(text.contains(part), "{line}: {text}");
    };
    refuse("--kube.source apiserver --kube.node a", None, "--kube.config FILE");
    refuse("--kube.source apiserver", Some(account()), "FINRACE_KUBE_NODE");
    refuse("--kube.node a,b", Some(account()), "`a,b`");
    refuse("--kube.source kubelet", Some(account()), "FINRACE_KUBE_NODE_IP");
    refuse("--kube.source kubelet --kube.node-ip ::1", None, "--kube.config FILE");
    refuse("--kube.source kubelet --kube.kubelet node:10250", Some(account()), "`node:10250`");
    refuse("--kube.source kubelet --kube.kubelet http://[", Some(account()), "http://[");
    refuse("--kube.remote services", None, "--kube.remote");
    refuse("--kube.source none --kube.remote pods", Some(account()), "--kube.remote");
    refuse("--kube.node a --kube.config /nonexistent/config", None, "/nonexistent/config");
    let files = Files::new("http://127.0.0.1:9", "x");
    let file = files.write("broken", "clusters: 7\n");
    refuse(&format!("--kube.node a --kube.config {}", file.display()), None, "broken");
}
