//! What people and scripts read: standard output and error, and how durations look there.

use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Writes a whole text to standard output.
pub fn print(text: &str) -> Result<()> {
    ordinary(writeln!(io::stdout().lock(), "{text}"))
}

/// A closed pipe is an ordinary end.
pub fn ordinary(written: io::Result<()>) -> Result<()> {
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("writing to standard output")
        }
        _ => Ok(()),
    }
}

/// A line to standard error; nobody may be there to read it.
pub fn eprintln_quietly(line: &str) {
    if let Err(error) = writeln!(io::stderr(), "{line}") {
        log::debug!("standard error: {error}");
    }
}

/// `1.203 s`, `41.0 ms`, `120 us`.
pub fn seconds(duration: Duration) -> String {
    let value = duration.as_secs_f64();
    if value >= 1.0 {
        format!("{value:.3} s")
    } else if value >= 0.001 {
        format!("{:.1} ms", value * 1e3)
    } else {
        format!("{:.0} us", value * 1e6)
    }
}
