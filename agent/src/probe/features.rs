//! What this kernel and these rights offer, read once at start as plain data.
//!
//! Little here is a promise: securityfs is rarely mounted in containers, and a function in BTF
//! may still refuse a probe. What only an attempt can show is in [`Trials`]; what counts in the end
//! is whether a program loads and attaches.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rustix::time::{ClockId, clock_getres};

use super::btf::Btf;
use super::config::KernelConfig;
use super::trials::Trials;

/// Where the kernel's file systems are mounted; tests put a directory in their place.
#[derive(Clone, Copy, Debug)]
pub struct Roots<'a> {
    pub proc: &'a Path,
    pub sys: &'a Path,
    pub boot: &'a Path,
}

impl Default for Roots<'_> {
    fn default() -> Self {
        Self { proc: Path::new("/proc"), sys: Path::new("/sys"), boot: Path::new("/boot") }
    }
}

/// Facts about the running kernel and this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    pub release: String,
    /// As Rust and `uname -m` name it: `x86_64`, `aarch64`.
    pub arch: &'static str,
    /// Where the offsets come from: the kernel's own BTF, or a file given instead.
    pub btf_path: PathBuf,
    /// Why there is no usable BTF; `None`: it was read and understood.
    pub btf_problem: Option<String>,
    /// Whether the kernel exposes its own BTF, against which it checks typed arguments.
    pub has_kernel_btf: bool,
    pub tracepoints: Tracepoints,
    /// Those of [`FUNCTIONS`] that the kernel has.
    pub functions: Vec<&'static str>,
    pub has_kprobes: bool,
    /// `None`: found neither in the kernel nor in the file system.
    pub config: Option<KernelConfig>,
    pub trials: Trials,
    pub lockdown: Lockdown,
    /// Effective capabilities, one bit each.
    pub capabilities: u64,
    /// The highest capability that the kernel knows; `None` if it does not report it.
    pub cap_last_cap: Option<u32>,
    /// Effective user id.
    pub uid: u32,
    /// Jiffies per second.
    pub hz: u32,
    /// The sysctl: 0 allowed, 1 forbidden for good, 2 forbidden; `None` if it does not exist.
    pub unprivileged_bpf_disabled: Option<u8>,
    /// The sysctl: 0 interpreted, 1 compiled, 2 with a trace; `None` where it cannot be read.
    pub bpf_jit_enable: Option<u8>,
    /// Whether the verifier knows that the sk of `tcp_send_reset` may be NULL. Only a probe
    /// program can tell, so the loader fills it in; `None`: not asked yet.
    pub reset_sk_nullable: Option<bool>,
}

/// Number of parameters of each tracepoint; `None` where the kernel lacks it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tracepoints {
    pub tcp_sendmsg_locked: Option<usize>,
    pub inet_sock_set_state: Option<usize>,
    pub tcp_receive_reset: Option<usize>,
    pub tcp_destroy_sock: Option<usize>,
    pub tcp_retransmit_skb: Option<usize>,
    pub tcp_send_reset: Option<usize>,
}

/// Kernel functions that programs attach to.
pub const FUNCTIONS: [&str; 5] = [
    "tcp_sendmsg_locked",
    "tcp_sendmsg",
    "do_tcp_sendpages",
    "tcp_v4_send_reset",
    "tcp_v6_send_reset",
];

/// The kernel's lockdown mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lockdown {
    None,
    Integrity,
    /// Programs may not call `bpf_probe_read_kernel`, and there are no kprobes.
    Confidentiality,
    /// securityfs is not mounted here, or there is no lockdown in this kernel.
    Unknown,
}

impl Features {
    /// Reads everything but [`Self::trials`]. The BTF is returned, too, since the layout is resolved
    /// from it next; with `btf_file` it is read from there.
    pub fn read(roots: Roots<'_>, btf_file: Option<&Path>) -> Result<(Self, Option<Btf>)> {
        let release_path = roots.proc.join("sys/kernel/osrelease");
        let release = text(&release_path)?;
        let status_path = roots.proc.join("self/status");
        let (uid, capabilities) = rights(&text(&status_path)?)
            .with_context(|| format!("no Uid and CapEff in {}", status_path.display()))?;
        let kernel_btf = roots.sys.join("kernel/btf/vmlinux");
        let has_kernel_btf = kernel_btf.exists();
        let btf_path = btf_file.map_or(kernel_btf, Path::to_owned);
        let btf = fs::read(&btf_path)
            .with_context(|| format!("reading {}", btf_path.display()))
            .and_then(|bytes| {
                Btf::parse(bytes).with_context(|| format!("parsing {}", btf_path.display()))
            });
        let (btf, btf_problem) = match btf {
            Ok(btf) => (Some(btf), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        let args = |name| btf.as_ref()?.tracepoint_args(name);
        let tracepoints = Tracepoints {
            tcp_sendmsg_locked: args("tcp_sendmsg_locked"),
            inet_sock_set_state: args("inet_sock_set_state"),
            tcp_receive_reset: args("tcp_receive_reset"),
            tcp_destroy_sock: args("tcp_destroy_sock"),
            tcp_retransmit_skb: args("tcp_retransmit_skb"),
            tcp_send_reset: args("tcp_send_reset"),
        };
        let functions = FUNCTIONS
            .into_iter()
            .filter(|name| btf.as_ref().is_some_and(|btf| btf.func_exists(name)));
        let sysctl =
            |path| -> Option<u8> { text(&roots.proc.join("sys").join(path)).ok()?.parse().ok() };
        let tick = clock_getres(ClockId::MonotonicCoarse);
        let features = Self {
            config: KernelConfig::read(roots.proc, roots.boot, &release),
            release,
            arch: std::env::consts::ARCH,
            btf_path,
            btf_problem,
            has_kernel_btf,
            tracepoints,
            functions: functions.collect(),
            has_kprobes: has_kprobes(roots.sys),
            trials: Trials::default(),
            lockdown: lockdown(text(&roots.sys.join("kernel/security/lockdown")).ok().as_deref()),
            capabilities,
            cap_last_cap: sysctl("kernel/cap_last_cap").map(u32::from),
            uid,
            hz: hz(tick.tv_sec, tick.tv_nsec)?,
            unprivileged_bpf_disabled: sysctl("kernel/unprivileged_bpf_disabled"),
            bpf_jit_enable: sysctl("net/core/bpf_jit_enable"),
            reset_sk_nullable: None,
        };
        Ok((features, btf))
    }
}

fn text(path: &Path) -> Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(text.trim().to_owned())
}

/// Effective user id and effective capabilities, from `/proc/self/status`.
fn rights(status: &str) -> Option<(u32, u64)> {
    let value = |key| status.lines().find_map(|line| line.strip_prefix(key));
    let uid = value("Uid:")?.split_whitespace().nth(1)?.parse().ok()?;
    let capabilities = u64::from_str_radix(value("CapEff:")?.trim(), 16).ok()?;
    Some((uid, capabilities))
}

/// The mode in brackets: `none [integrity] confidentiality`.
fn lockdown(text: Option<&str>) -> Lockdown {
    let chosen = text.and_then(|text| text.split_once('[')?.1.split_once(']'));
    match chosen.map(|(mode, _)| mode) {
        Some("none") => Lockdown::None,
        Some("integrity") => Lockdown::Integrity,
        Some("confidentiality") => Lockdown::Confidentiality,
        _ => Lockdown::Unknown,
    }
}

fn has_kprobes(sys: &Path) -> bool {
    [
        "bus/event_source/devices/kprobe/type",
        "kernel/tracing/kprobe_events",
        "kernel/debug/tracing/kprobe_events",
    ]
    .iter()
    .any(|path| sys.join(path).exists())
}

/// The resolution of the coarse clocks is one tick, whatever the configuration says:
/// <https://git.kernel.org/pub/scm/linux/kernel/git/stable/linux.git/tree/kernel/time/posix-timers.c?h=v5.10.223#n241>.
fn hz(secs: i64, nanos: i64) -> Result<u32> {
    let tick = secs.saturating_mul(1_000_000_000).saturating_add(nanos);
    let hz = if tick > 0 { (1_000_000_000 + tick / 2) / tick } else { 0 };
    ensure!((24..=10_000).contains(&hz), "a coarse clock tick of {tick} ns is not believable");
    u32::try_from(hz).context("ticks per second")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with the given files, removed when dropped.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = format!("finrace-features-{name}-{}", std::process::id());
            let root = std::env::temp_dir().join(root);
            for (path, content) in files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
            Self(root)
        }

        fn read(&self) -> Result<Features> {
            let [proc, sys, boot] = ["proc", "sys", "boot"].map(|name| self.0.join(name));
            let roots = Roots { proc: &proc, sys: &sys, boot: &boot };
            Features::read(roots, None).map(|(features, _)| features)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    const STATUS: &str = "Name:\tfinrace\nUid:\t1000\t65532\t0\t0\nCapEff:\t000000c000000000\n";

    #[test]
    fn a_container_without_btf() {
        let tree = Tree::new(
            "container",
            &[
                ("proc/sys/kernel/osrelease", "6.1.0-9-amd64\n"),
                ("proc/sys/kernel/unprivileged_bpf_disabled", "2\n"),
                ("proc/self/status", STATUS),
                ("sys/bus/event_source/devices/kprobe/type", "8\n"),
                ("proc/sys/kernel/cap_last_cap", "40\n"),
                ("proc/sys/net/core/bpf_jit_enable", "1\n"),
                ("boot/config-6.1.0-9-amd64", "CONFIG_KPROBE_EVENTS=y\n"),
                ("sys/kernel/security/lockdown", "none [integrity] confidentiality\n"),
            ],
        );
        let features = tree.read().unwrap();
        let problem = features.btf_problem.clone().unwrap();
        assert!(problem.starts_with("reading ") && problem.contains("btf/vmlinux: No such file"));
        let hz = features.hz;
        assert!((24..=10_000).contains(&hz));
        let expected = Features {
            release: "6.1.0-9-amd64".to_owned(),
            arch: std::env::consts::ARCH,
            btf_path: tree.0.join("sys/kernel/btf/vmlinux"),
            btf_problem: Some(problem),
            has_kernel_btf: false,
            tracepoints: Tracepoints::default(),
            functions: Vec::new(),
            has_kprobes: true,
            config: features.config.clone(),
            trials: Trials::default(),
            lockdown: Lockdown::Integrity,
            capabilities: 0xc0_0000_0000,
            cap_last_cap: Some(40),
            uid: 65532,
            hz,
            unprivileged_bpf_disabled: Some(2),
            bpf_jit_enable: Some(1),
            reset_sk_nullable: None,
        };
        assert_eq!(features, expected);
        let config = features.config.unwrap();
        assert!(config.lacks("CONFIG_DEBUG_INFO_BTF") && !config.lacks("CONFIG_KPROBE_EVENTS"));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let release = ("proc/sys/kernel/osrelease", "6.1.0");
        let check = |name: &str, files: &[(&str, &str)], expected: &str| {
            let error = format!("{:#}", Tree::new(name, files).read().unwrap_err());
            assert!(error.contains(expected), "{error}");
        };
        check("no-release", &[("sys/x", "")], "proc/sys/kernel/osrelease: No such file");
        check("no-status", &[release], "proc/self/status: No such file");
        check("no-caps", &[release, ("proc/self/status", "Uid: 0 0")], "no Uid and CapEff in ");
        let garbage = [release, ("proc/self/status", STATUS), ("sys/kernel/btf/vmlinux", "ELF!")];
        let features = Tree::new("garbage", &garbage).read().unwrap();
        let problem = features.btf_problem.unwrap();
        assert!(problem.ends_with("btf/vmlinux: not little-endian BTF: magic 0x4c45"), "{problem}");
    }

    #[test]
    fn ticks() {
        let check = |nanos: i64, expected: Option<u32>| assert_eq!(hz(0, nanos).ok(), expected);
        check(4_000_000, Some(250));
        check(1_000_000, Some(1000));
        check(3_333_333, Some(300));
        check(10_000_000, Some(100));
        check(976_562, Some(1024)); // alpha's
        check(41_666_666, Some(24));
        check(1, None);
        check(0, None);
        check(-1, None);
        assert_eq!(hz(1, 0).ok(), None);
        assert_eq!(hz(i64::MAX, 0).ok(), None);
    }

    #[test]
    fn lockdown_modes() {
        let check = |text, expected| assert_eq!(lockdown(text), expected);
        check(Some("[none] integrity confidentiality"), Lockdown::None);
        check(Some("none [integrity] confidentiality"), Lockdown::Integrity);
        check(Some("none integrity [confidentiality]"), Lockdown::Confidentiality);
        check(Some("none"), Lockdown::Unknown);
        check(None, Lockdown::Unknown);
    }
}
