//! What the tasks share with the lab and the benchmarks: where things are, how programs are run, and the object
//! that is loaded into the kernel.

pub mod bpf;
pub mod page;
pub mod setup;

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

/// Tells something to the person who started the task.
#[expect(clippy::print_stderr, reason = "xtask talks to a person; its parts have no log")]
pub fn report(text: &str) {
    eprintln!("{text}");
}

/// What a program ends with: the error, if there is one, is for the person who waits for it.
pub fn end(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The directory of the workspace.
pub fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// The cargo that runs us.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a command whose output is for the person who waits for it.
pub fn show(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    let name = command.get_program().display();
    ensure!(status.success(), "{name} {:?}: {status}", command.get_args().collect::<Vec<_>>());
    Ok(())
}
