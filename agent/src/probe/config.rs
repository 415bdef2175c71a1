//! The running kernel's build configuration, where it can be read. It never decides on its own
//! that something works; it explains why something cannot.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

/// Options whose lack explains a missing hook.
const OPTIONS: [&str; 4] = [
    "CONFIG_DEBUG_INFO_BTF",
    "CONFIG_BPF_EVENTS",
    "CONFIG_KPROBE_EVENTS",
    "CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS",
];

/// Which of [`OPTIONS`] are built in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelConfig {
    pub path: PathBuf,
    on: Vec<&'static str>,
}

impl KernelConfig {
    /// Reads it from the kernel itself, or else from where distributions put it.
    pub fn read(proc: &Path, boot: &Path, release: &str) -> Option<Self> {
        let embedded = proc.join("config.gz");
        let installed = boot.join(format!("config-{release}"));
        let mut text = String::new();
        if let Ok(file) = fs::File::open(&embedded)
            && GzDecoder::new(file).read_to_string(&mut text).is_ok()
        {
            return Some(Self::parse(embedded, &text));
        }
        Some(Self::parse(installed.clone(), &fs::read_to_string(installed).ok()?))
    }

    pub(super) fn parse(path: PathBuf, text: &str) -> Self {
        let is_on = |option: &&str| {
            text.lines().any(|line| line.strip_prefix(option).is_some_and(|value| value == "=y"))
        };
        Self { path, on: OPTIONS.into_iter().filter(is_on).collect() }
    }

    /// Whether `option` is one of those examined and the kernel was built without it.
    pub fn lacks(&self, option: &str) -> bool {
        OPTIONS.contains(&option) && !self.on.contains(&option)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_off_or_unknown_is_lacking() {
        let text = "# comment\nCONFIG_KPROBE_EVENTS=y\n# CONFIG_BPF_EVENTS is not set\n\
                    CONFIG_DEBUG_INFO_BTF_MODULES=y\n";
        let config = KernelConfig::parse(PathBuf::from("x"), text);
        assert!(!config.lacks("CONFIG_KPROBE_EVENTS"));
        assert!(config.lacks("CONFIG_BPF_EVENTS"));
        assert!(config.lacks("CONFIG_DEBUG_INFO_BTF"));
    }
}
