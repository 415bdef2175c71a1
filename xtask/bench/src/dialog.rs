//! A child process that reads lines and answers with lines.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xtask::setup::let_end;

/// Enough for programs to be loaded on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A child that ends with its standard input, and so with us.
pub(super) struct Dialog {
    name: String,
    child: Child,
    /// None once it has to end.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    log: PathBuf,
}

impl Dialog {
    /// Starts `command`, with standard error in `log_dir/name.log`.
    pub(super) fn start(name: &str, mut command: Command, log_dir: &Path) -> Result<Self> {
        let log = log_dir.join(format!("{name}.log"));
        let error = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(error)
            .spawn()
            .with_context(|| format!("starting {name}: {command:?}"))?;
        let output = BufReader::new(child.stdout.take().context("no standard output")?);
        let input = child.stdin.take();
        Ok(Self { name: name.to_owned(), child, input, output, log })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a line and returns the line that answers it.
    pub(super) fn ask(&mut self, line: &str) -> Result<String> {
        let input = self.input.as_mut().context("nobody listens")?;
        let said = input.write_all(format!("{line}\n").as_bytes());
        said.with_context(|| format!("`{line}` to {}: {}", self.name, self.complaints()))?;
        self.hear().with_context(|| format!("after `{line}`"))
    }

    /// Sends a line that is answered with `ok`.
    pub(super) fn tell(&mut self, line: &str) -> Result<()> {
        let answer = self.ask(line)?;
        ensure!(answer == "ok", "{} answers `{answer}` to `{line}`", self.name);
        Ok(())
    }

    /// The next line.
    pub(super) fn hear(&mut self) -> Result<String> {
        if self.output.buffer().is_empty() {
            let patience = Timespec::try_from(PATIENCE)?;
            let mut polled = [PollFd::new(self.output.get_ref(), PollFlags::IN)];
            let ready = poll(&mut polled, Some(&patience))?;
            ensure!(ready > 0, "{} says nothing for {PATIENCE:?}", self.name);
        }
        let mut line = String::new();
        let read = self.output.read_line(&mut line);
        read.with_context(|| format!("listening to {}", self.name))?;
        ensure!(line.ends_with('\n'), "{} has ended: {}", self.name, self.complaints());
        Ok(line.trim_end().to_owned())
    }

    /// Lets the child end, and fails if it failed.
    pub(super) fn finish(mut self) -> Result<()> {
        self.end();
        let status = self.child.wait()?;
        ensure!(status.success(), "{}: {status}: {}", self.name, self.complaints());
        Ok(())
    }

    fn complaints(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn end(&mut self) {
        self.input = None;
        let_end(&mut self.child);
    }
}

impl Drop for Dialog {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dialog() {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            let name = format!("finrace-dialog-{}", std::process::id());
            Dialog::start(&name, command, &std::env::temp_dir()).unwrap()
        };
        let mut dialog = shell("echo ready; while read word; do echo $word; echo more; done");
        assert_eq!(dialog.hear().unwrap(), "ready");
        dialog.tell("ok").unwrap();
        assert_eq!(dialog.hear().unwrap(), "more");
        assert_eq!(dialog.ask("x").unwrap(), "x");
        dialog.finish().unwrap();

        let mut dialog = shell("echo wrong >&2; exit 3");
        let error = format!("{:#}", dialog.hear().unwrap_err());
        assert!(error.contains("wrong"), "{error}");
        let log = dialog.log.clone();
        assert!(dialog.finish().is_err());
        fs::remove_file(log).unwrap();
    }
}
