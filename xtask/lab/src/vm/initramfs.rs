//! What a guest boots into: busybox, what has to run there, a few modules and a script. Nothing else
//! is there: no udev, no tracefs, no disk.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::archive::{self, Archive};

/// What scenarios need beyond what Debian's kernels have built in: a slow link, and kTLS with
/// AES-GCM. A kernel without such a module has it built in or not at all, as a skip will show.
const MODULES: [&str; 5] = ["tun", "tls", "ctr", "ghash_generic", "gcm"];

/// A kernel and what comes with it, unpacked.
pub(super) struct Parts {
    directory: PathBuf,
}

impl Parts {
    /// Fetches and unpacks, unless the cache has it.
    pub(super) fn get(archive: &Archive, release: &str) -> Result<Self> {
        let mut packages = archive.fetch_kernel(release)?;
        packages.extend(archive.fetch(&["busybox-static"])?);
        let origin = format!("{MODULES:?} of {packages:?}");
        let directory = archive::cache()?.join("kernels").join(release);
        let record = directory.join("origin");
        if fs::read_to_string(&record).is_ok_and(|recorded| recorded == origin) {
            return Ok(Self { directory });
        }
        let unpacked = directory.join("unpacked");
        remove(&directory)?;
        archive::create(&directory)?;
        archive::unpack(&packages, &unpacked)?;
        let files = files_below(&unpacked)?;
        let is_kernel = |path: &&PathBuf| file_name(path).starts_with("vmlinuz");
        let is_busybox = |path: &&PathBuf| path.ends_with("bin/busybox");
        for (name, found) in
            [("kernel", files.iter().find(is_kernel)), ("busybox", files.iter().find(is_busybox))]
        {
            let found = found.with_context(|| format!("no {name} in {packages:?}"))?;
            fs::copy(found, directory.join(name))
                .with_context(|| format!("copying {}", found.display()))?;
        }
        let mut modules = Modules { files, chosen: Vec::new() };
        for name in MODULES {
            modules.choose(name)?;
        }
        for (number, (name, content)) in modules.chosen.iter().enumerate() {
            // A shell lists them in the order of loading.
            let path = directory.join(format!("{number:02}-{name}.ko"));
            fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        }
        remove(&unpacked)?;
        fs::write(&record, origin).with_context(|| format!("writing {}", record.display()))?;
        Ok(Self { directory })
    }

    pub(super) fn kernel(&self) -> PathBuf {
        self.directory.join("kernel")
    }

    /// An initramfs with these files, and `script` as its first process.
    pub(super) fn initramfs(&self, added: &[(&str, &Path)], script: &str) -> Result<Vec<u8>> {
        let mut archive = Cpio::default();
        for directory in ["bin", "dev", "modules", "proc", "sys", "tmp"] {
            archive.directory(directory);
        }
        archive.file("init", script.as_bytes());
        archive.file("bin/busybox", &read(&self.directory.join("busybox"))?);
        for (name, path) in added {
            archive.file(name, &read(path)?);
        }
        for path in files_below(&self.directory)? {
            if is_module(&path) {
                archive.file(&format!("modules/{}", file_name(&path)), &read(&path)?);
            }
        }
        Ok(archive.end())
    }
}

/// Modules of an unpacked kernel, chosen in the order of loading.
struct Modules {
    files: Vec<PathBuf>,
    chosen: Vec<(String, Vec<u8>)>,
}

impl Modules {
    fn choose(&mut self, name: &str) -> Result<()> {
        let is_chosen = self.chosen.iter().any(|(chosen, _)| chosen == name);
        let found = self.files.iter().find(|path| is_module(path) && module_name(path) == name);
        let Some(path) = found.filter(|_| !is_chosen) else { return Ok(()) };
        let content = if path.extension().is_some_and(|extension| extension == "xz") {
            let output = Command::new("xz").arg("-dc").arg(path).output().context("starting xz")?;
            ensure!(output.status.success(), "xz {}: {}", path.display(), output.status);
            output.stdout
        } else {
            read(path)?
        };
        for dependency in dependencies(&content) {
            self.choose(&dependency)?;
        }
        self.chosen.push((name.to_owned(), content));
        Ok(())
    }
}

fn is_module(path: &Path) -> bool {
    let mut name = file_name(path).split('.').skip(1);
    name.next() == Some("ko")
}

/// The kernel's name for it, in which there are no dashes.
fn module_name(path: &Path) -> String {
    file_name(path).split('.').next().unwrap_or_default().replace('-', "_")
}

/// A module's section `.modinfo` holds strings, each ending with a zero.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let after = module.windows(KEY.len()).position(|bytes| bytes == KEY).map(|at| at + KEY.len());
    let value = after.and_then(|after| module.get(after..)?.split(|byte| *byte == 0).next());
    let value = String::from_utf8_lossy(value.unwrap_or_default());
    value.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

/// An archive as the kernel unpacks it:
/// <https://www.kernel.org/doc/html/v6.12/driver-api/early-userspace/buffer-format.html>.
#[derive(Default)]
struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
}

impl Cpio {
    fn directory(&mut self, path: &str) {
        self.entry(path, 0o040_755, &[]);
    }

    fn file(&mut self, path: &str, content: &[u8]) {
        self.entry(path, 0o100_755, content);
    }

    fn end(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let (inode, size, name_size) = (self.entries, content.len(), path.len() + 1);
        // Owner, group, one link, time; then after the size four numbers of devices.
        let header = format!(
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}{0:08x}{0:08x}\
             {0:08x}{0:08x}{name_size:08x}{0:08x}{path}\0",
            0, 1
        );
        for part in [header.as_bytes(), content] {
            self.bytes.extend(part);
            self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        }
    }
}

fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries =
        fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("listing {}", directory.display()))?;
        let kind = entry.file_type().with_context(|| format!("{}", entry.path().display()))?;
        if kind.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("reading {}", path.display()))
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", directory.display()))
        }
        _ => Ok(()),
    }
}
