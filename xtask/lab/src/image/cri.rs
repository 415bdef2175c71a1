//! The image as the container runtimes of Kubernetes start it, by runc itself: a user who is not
//! root gets capabilities as permitted, but none of them as ambient, so that only file capabilities
//! bring them past execve. And the profile is read in the runtime's own format.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xtask::{report, setup};

const NAME: &str = "frimage-cri";

pub(super) fn run(image: &str, profile: &Path, directory: &Path) -> Result<()> {
    let text = fs::read_to_string(profile).with_context(|| format!("{}", profile.display()))?;
    let seccomp: Value = serde_json::from_str(&text).context("reading the seccomp profile")?;
    let bundle = setup::empty_directory(directory.join("bundle"))?;
    setup::run(Command::new("runc").arg("spec").current_dir(&bundle))?;
    let file = bundle.join("config.json");
    let text = fs::read_to_string(&file).context("reading runc's config.json")?;
    let template: Value = serde_json::from_str(&text).context("reading runc's config.json")?;
    let root = Mounted::of(image)?;

    let check = |capabilities: &[&str], expected: &str, status: i32| {
        let mut config = template.clone();
        let process = json!({
            "args": ["/finrace", "check"],
            "cwd": "/",
            "user": {"uid": 65532, "gid": 65532},
            "noNewPrivileges": true,
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
        });
        put(&mut config, "", "process", process)?;
        put(&mut config, "", "root", json!({"path": root.path, "readonly": true}))?;
        put(&mut config, "/linux", "seccomp", seccomp.clone())?;
        fs::write(&file, config.to_string()).context("writing config.json")?;
        // A container left by an interrupted run; usually there is none.
        Command::new("runc").args(["delete", "--force", NAME]).output().context("starting runc")?;
        let mut runc = Command::new("runc");
        let output = runc.args(["run", "--bundle"]).arg(&bundle).arg(NAME).output();
        let output = output.context("starting runc")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.code() == Some(status) && said.contains(expected),
            "{capabilities:?}: {}, without `{expected}`: {said}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    };
    check(&["CAP_BPF", "CAP_PERFMON"], "\ncan run", 0)?;
    check(&[], "cannot run: missing CAP_BPF, CAP_PERFMON", 1)?;
    report("without ambient capabilities, as in Kubernetes: can run with the two, says so without");
    Ok(())
}

fn put(config: &mut Value, parent: &str, key: &str, value: Value) -> Result<()> {
    let parent = config.pointer_mut(parent).and_then(Value::as_object_mut);
    parent.context("runc's config.json is another")?.insert(key.to_owned(), value);
    Ok(())
}

/// A root made of an image, mounted while it lives. Unlike the image's own it can be written to: the
/// runtime makes /proc and the like in there before it is read-only.
struct Mounted {
    container: String,
    path: String,
}

impl Mounted {
    fn of(image: &str) -> Result<Self> {
        let buildah = |arguments: [&str; 2]| {
            let output = setup::run(Command::new("buildah").args(arguments))?;
            Ok::<_, anyhow::Error>(output.trim().to_owned())
        };
        let container = buildah(["from", image])?;
        let mut mounted = Self { container, path: String::new() };
        mounted.path = buildah(["mount", &mounted.container])?;
        Ok(mounted)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        setup::run(Command::new("buildah").args(["rm", &self.container])).ok();
    }
}
