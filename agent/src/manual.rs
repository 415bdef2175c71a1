//! Man pages and shell completions, made from the command line itself so that they cannot differ
//! from it. Packages ship them.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;

use crate::cli::Cli;
use crate::output::ordinary;

/// Prints the script that makes this shell complete our arguments.
///
/// # Errors
/// If standard output cannot be written to.
pub fn completions(shell: Shell) -> Result<()> {
    ordinary(io::stdout().lock().write_all(&completions_of(shell)))
}

/// Prints the page of the program, or writes all pages into a directory.
///
/// # Errors
/// If they cannot be written.
pub fn pages(directory: Option<&Path>) -> Result<()> {
    let Some(directory) = directory else {
        let mut page = Vec::new();
        Man::new(Cli::command()).render(&mut page).context("making the man page")?;
        return ordinary(io::stdout().lock().write_all(&page));
    };
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    // `finrace help` is an alias of `--help` and has no page.
    let command = Cli::command().disable_help_subcommand(true);
    clap_mangen::generate_to(command, directory)
        .with_context(|| format!("writing man pages into {}", directory.display()))
}

/// In memory first: the library panics if it cannot write, for example to a closed pipe.
fn completions_of(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "finrace", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    /// Long flags of a command, as typed.
    fn flags(command: &clap::Command) -> Vec<String> {
        let visible = command.get_arguments().filter(|argument| !argument.is_hide_set());
        visible.filter_map(|argument| Some(format!("--{}", argument.get_long()?))).collect()
    }

    #[test]
    fn each_command_has_a_page_with_all_its_flags() {
        let directory = std::env::temp_dir().join(format!("finrace-man-{}", std::process::id()));
        pages(Some(&directory)).unwrap();
        let read = |name: &str| {
            let page = fs::read_to_string(directory.join(name)).expect(name);
            page.replace("\\-", "-")
        };
        let command = Cli::command();
        let overview = read("finrace.1");
        for command in command.get_subcommands() {
            let name = command.get_name();
            assert!(overview.contains(&format!("finrace-{name}(1)")), "{name}: {overview}");
            let page = read(&format!("finrace-{name}.1"));
            for flag in flags(command) {
                assert!(page.contains(&flag), "{name} {flag}: {page}");
            }
        }
        let count = fs::read_dir(&directory).unwrap().count();
        fs::remove_dir_all(&directory).unwrap();
        assert_eq!(count, command.get_subcommands().count() + 1, "pages");
    }

    #[test]
    fn every_shell_completes_commands_and_flags() {
        for shell in Shell::value_variants() {
            let script = String::from_utf8(completions_of(*shell)).unwrap();
            for command in Cli::command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell}");
                for flag in flags(command) {
                    // Each shell has its own way to write the two dashes.
                    assert!(script.contains(flag.trim_start_matches('-')), "{shell} {flag}");
                }
            }
        }
    }
}
