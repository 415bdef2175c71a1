//! `cargo xtask rules`: alerts and recording rules, checked and tested by promtool. Every alert has a
//! test, and a page on what to do. The example of a web configuration is also valid for Prometheus.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use xtask::{report, root, setup, show};

const RULES: &str = "finrace.rules.yaml";
const TESTS: &str = "finrace.rules.test.yaml";
const WEB: &str = "web.yaml";
/// Where the pages are, for the reader of an alert.
const PAGES: &str = "https://github.com/finrace/finrace/blob/main/docs/runbooks/";

pub(crate) fn run() -> Result<()> {
    setup::ensure(&["openssl", "prometheus"])?;
    let directory = root().join("deploy/prometheus");
    for (what, file) in [("check", RULES), ("test", TESTS)] {
        show(Command::new("promtool").current_dir(&directory).args([what, "rules", file]))?;
    }
    let read = |file| {
        let path = directory.join(file);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let (rules, tests) = (read(RULES)?, read(TESTS)?);
    let alerts = named(&rules, "- alert: ");
    ensure!(alerts == named(&tests, "- alertname: "), "alerts and those in {TESTS} differ");
    let links: BTreeSet<_> = named(&rules, "runbook_url: ").into_iter().collect();
    let expected = alerts.iter().map(|alert| format!("{PAGES}{alert}.md")).collect();
    ensure!(links == expected, "alerts of {RULES} and their runbook_url differ");
    ensure!(pages()? == alerts, "alerts and pages in docs/runbooks differ");
    web_example(&directory)?;
    report(&format!("{} alerts, each with a test and a page", alerts.len()));
    Ok(())
}

/// A unit test checks that finrace accepts it.
fn web_example(directory: &Path) -> Result<()> {
    let place = setup::empty_directory(setup::target_dir().join("web"))?;
    fs::copy(directory.join(WEB), place.join(WEB)).with_context(|| format!("copying {WEB}"))?;
    // promtool looks at the certificates, too.
    let request =
        ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let names = ["-subj", "/CN=finrace", "-keyout", "tls.key", "-out", "tls.crt"];
    let mut openssl = Command::new("openssl");
    show(openssl.current_dir(&place).args(request).args(names))?;
    fs::copy(place.join("tls.crt"), place.join("ca.crt")).context("copying tls.crt")?;
    show(Command::new("promtool").current_dir(&place).args(["check", "web-config", WEB]))
}

/// What comes after `key` in all lines that begin with it.
fn named(text: &str, key: &str) -> BTreeSet<String> {
    let names = text.lines().filter_map(|line| line.trim_start().strip_prefix(key));
    names.map(str::to_owned).collect()
}

fn pages() -> Result<BTreeSet<String>> {
    let directory = root().join("docs/runbooks");
    let entries = fs::read_dir(&directory).context("listing docs/runbooks")?;
    let page = |entry: std::io::Result<fs::DirEntry>| {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let name = name.strip_suffix(".md").with_context(|| format!("{name} is no page"))?;
        Ok(name.to_owned())
    };
    entries.map(page).collect()
}
