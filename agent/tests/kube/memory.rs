//! What names take in memory. The server is another process, so that only our side is measured:
//! `cargo test --release -p finrace --test kube -- --ignored --nocapture memory`.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use super::server::{Files, PODS, Server};
use super::{is_up, names_of, objects, pod, quick, until};
use finrace::kube::Pace;

/// How many pods the other process has.
const PODS_OF: &str = "FINRACE_TEST_PODS";
const MIB: f64 = 1024.0;

/// Memory in KiB, by the kernel's name for it.
fn memory(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a field");
    line.trim_matches([':', ' ', '\t', 'k', 'B']).parse().expect("a number")
}

#[tokio::test]
#[ignore = "the other process of the test below"]
async fn serve() {
    let Ok(count) = std::env::var(PODS_OF) else { return };
    let server = Server::start().await;
    server.with(|world| {
        for number in 0..count.parse().expect("a count") {
            let mut big = pod(number);
            if number >= 110 {
                big["spec"]["nodeName"] = json!("node-b");
            }
            big["metadata"]["managedFields"] = json!("f".repeat(9_000));
            world.put(PODS, big);
        }
    });
    println!("at {}", server.address);
    std::future::pending::<()>().await;
}

#[tokio::test]
#[ignore = "takes a minute"]
async fn memory_of_names() {
    for (pods, more) in [(110, ""), (10_000, "--kube.remote pods")] {
        let mut other = Command::new(std::env::current_exe().expect("this test"))
            .args(["memory::serve", "--exact", "--ignored", "--nocapture"])
            .env(PODS_OF, pods.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .expect("another process");
        let lines = BufReader::new(other.stdout.take().expect("its output")).lines();
        let mut lines = lines.map(|line| line.expect("a line"));
        let address = lines.find_map(|line| Some(line.strip_prefix("at ")?.to_owned()));
        let files = Files::new(&format!("http://{}", address.expect("an address")), "first");
        // Without the code, which is a debug build's.
        std::fs::write("/proc/self/clear_refs", "5").expect("the peak from here on");
        let (before, peak_before) = (memory("RssAnon"), memory("VmHWM"));
        let pace = Pace { request: Duration::from_mins(1), ..quick() };
        let names = names_of(&files, more, pace);
        let kind = if more.is_empty() { "pod" } else { "remote_pod" };
        until(&names, |names| is_up(names) && objects(names, kind) == pods).await;
        let grown = (memory("RssAnon") - before) / MIB;
        let peak = (memory("VmHWM") - peak_before) / MIB;
        println!("{pods} pods: {grown:.1} MiB more, {peak:.1} MiB more at most with code");
        other.kill().expect("an end");
        other.wait().expect("an end");
        assert!(grown < 20.0, "{grown} MiB");
    }
}
