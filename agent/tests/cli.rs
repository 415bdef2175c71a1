//! The built binary at its edges: bad usage, a port in use, no rights, help.
//!
//! Root is not needed. When run as root, rights are dropped, so that the results are the same.
#![cfg(test)]

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::IntoRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};

use rustix::io::{FdFlags, fcntl_setfd};
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_finrace");
const NOBODY: u32 = 65_534;

struct Run {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs it as an ordinary user, without any settings from outside.
fn finrace(line: &str) -> Run {
    let mut command = if rustix::process::geteuid().is_root() {
        // By descriptor: an ordinary user may not be able to follow the path.
        let binary = File::open(BINARY).unwrap();
        fcntl_setfd(&binary, FdFlags::empty()).unwrap();
        let mut command = Command::new(format!("/proc/self/fd/{}", binary.into_raw_fd()));
        command.arg0("finrace").uid(NOBODY).gid(NOBODY);
        command
    } else {
        Command::new(BINARY)
    };
    for (name, _) in
        std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FINRACE_"))
    {
        command.env_remove(name);
    }
    let output = command.args(line.split_whitespace()).stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn bad_usage_names_the_offending_text() {
    for (line, offending) in [
        ("watch --for 5x", "5x"),
        ("watch --for 0s", "0s"),
        ("report --for -3s", "-3"),
        ("watch --reuse-threshold 1ms", "1ms"),
        ("serve --reuse-threshold 2h", "2h"),
        ("watch --class fin_cross", "fin_cross"),
        ("watch --peer 10.0.0.300", "10.0.0.300"),
        ("watch --peer [::1]", "[::1]"),
        ("watch --port 70000", "70000"),
        ("watch --hook write=usdt", "usdt"),
        ("watch --hook wirte=none", "wirte"),
        ("check --hook write", "write"),
        ("serve --web.listen-address 9502", "9502"),
        ("serve --web.listen-address 127.0.0.1:65536", "127.0.0.1:65536"),
        ("check --log.level loud", "loud"),
        ("report --peers.max many", "many"),
        ("report --fail-on racing,late", "late"),
        ("report --against /nowhere/before.json", "/nowhere/before.json"),
        // A file that is not a report, and one that anyone may read.
        ("report --against /proc/self/status", "/proc/self/status"),
        ("wach", "wach"),
    ] {
        let run = finrace(line);
        assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{line}: {}", run.stderr);
        assert!(run.stderr.contains(offending), "{line}: {}", run.stderr);
    }
}

#[test]
fn a_port_in_use_is_bad_usage() {
    for ip in ["127.0.0.1", "[::1]"] {
        // A host may have no IPv6.
        let Ok(taken) = TcpListener::bind(format!("{ip}:0")) else { continue };
        let address = taken.local_addr().unwrap().to_string();
        let run = finrace(&format!("serve --web.listen-address {address}"));
        assert_eq!((run.code, run.stderr.lines().count()), (Some(2), 1), "{}", run.stderr);
        assert!(run.stderr.contains(&address), "{}", run.stderr);
    }
}

/// Reported before anything else, as a port in use is.
#[test]
fn a_broken_web_configuration_is_bad_usage() {
    let directory = std::env::temp_dir().join(format!("finrace-cli-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let file = directory.join("web.yaml");
    let line =
        format!("serve --web.listen-address 127.0.0.1:0 --web.config.file {}", file.display());
    for (text, expected) in [
        (None, "No such file"),
        (Some("tls_server_config:\n  cert_filse: a\n"), "cert_filse"),
        (Some("tls_server_config: {cert_file: a, key_file: b}\n"), "tls_server_config: cert_file "),
        (Some("basic_auth_users: {alice: open}\n"), "what `alice` has is no bcrypt hash"),
    ] {
        if let Some(text) = text {
            std::fs::write(&file, text).unwrap();
        }
        let run = finrace(&line);
        assert_eq!((run.code, run.stderr.lines().count()), (Some(2), 1), "{}", run.stderr);
        assert!(run.stderr.contains("--web.config.file"), "{}", run.stderr);
        assert!(run.stderr.contains(expected), "{}", run.stderr);
    }
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn without_rights_one_line_says_what_to_do() {
    for line in [
        "watch --for 1s",
        "watch --json --for 1s",
        "report --for 1s",
        "serve --web.listen-address 127.0.0.1:0",
    ] {
        let run = finrace(line);
        assert_eq!((run.code, run.stdout.as_str()), (Some(1), ""), "{line}: {}", run.stderr);
        assert_eq!(run.stderr.lines().count(), 1, "{line}: {}", run.stderr);
        assert_is_remedy(&run.stderr);
    }
}

/// That it cannot run is the answer, not an error.
#[test]
fn check_without_rights_answers_and_fails() {
    let run = finrace("check");
    assert_eq!((run.code, run.stderr.as_str()), (Some(1), ""), "{}", run.stdout);
    assert_is_remedy(run.stdout.lines().last().unwrap());

    let run = finrace("check --json");
    assert_eq!((run.code, run.stderr.as_str()), (Some(1), ""), "{}", run.stdout);
    let answer: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(answer["can_run"], false, "{answer}");
    assert_eq!(answer["missing_capabilities"].as_array().unwrap().len(), 2, "{answer}");
    assert_is_remedy(answer["problem"].as_str().unwrap());
}

fn assert_is_remedy(text: &str) {
    for word in ["CAP_BPF", "CAP_PERFMON", "root", "setcap"] {
        assert!(text.contains(word), "no {word} in: {text}");
    }
}

#[test]
fn help_has_examples() {
    for (command, expected) in [
        ("watch", "Examples:\n  finrace watch"),
        ("report", "Examples:\n  finrace report"),
        ("serve", "Examples:\n  finrace serve"),
        ("check", "Examples:\n  finrace check"),
    ] {
        let run = finrace(&format!("{command} --help"));
        assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""), "{command}");
        assert!(run.stdout.contains(expected), "{command}: {}", run.stdout);
    }
    for line in ["--help", "--version"] {
        let run = finrace(line);
        assert_eq!(run.code, Some(0), "{line}: {}", run.stderr);
        assert!(run.stdout.contains("finrace"), "{}", run.stdout);
    }
}
