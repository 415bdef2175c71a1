//! Output that people and scripts read: standard output and error, and the format of durations there.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// Writes a whole text to standard output.
pub fn print(text: &str) -> Result<()> {
    ordinary(writeln!(io::stdout().lock(), "{text}"))
}

/// Treats a closed pipe as an ordinary end.
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

/// Makes visible what a terminal acts on, what a reader would not see, and what reverses the text around it: a
/// process can have any name. For a single line, not for a text of several.
pub fn visible(text: &str) -> Cow<'_, str> {
    // As nearly all texts are.
    let is_plain = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if is_plain || !text.contains(is_hidden) {
        return text.into();
    }
    let mut seen = String::with_capacity(text.len());
    for char in text.chars() {
        if is_hidden(char) {
            seen.extend(char.escape_unicode());
        } else {
            seen.push(char);
        }
    }
    seen.into()
}

/// Encodes as JSON, on one line or on several, with nothing hidden either: the value stays the same.
pub fn json(value: &impl Serialize, is_pretty: bool) -> Result<String> {
    let encode = if is_pretty { serde_json::to_string_pretty } else { serde_json::to_string };
    let json = encode(value).context("encoding as JSON")?;
    // Between strings the only such characters are the ends of lines.
    let is_hidden = |char| char != '\n' && is_hidden(char);
    if !json.contains(is_hidden) {
        return Ok(json);
    }
    let mut seen = String::with_capacity(json.len());
    for char in json.chars() {
        if is_hidden(char) {
            for unit in char.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                write!(seen, "\\u{unit:04x}").unwrap_or_default();
            }
        } else {
            seen.push(char);
        }
    }
    Ok(seen)
}

/// Control characters, direction marks, zero-width characters, and line separators.
fn is_hidden(char: char) -> bool {
    char.is_control()
        || matches!(
            char,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e0fff}'
        )
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

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\u{202e}b\u{0}\r\n\u{7f}\u{9b}31m\u{200d}\u{1b}]0;x\u{7}\u{e0001}c";

    #[test]
    fn nothing_is_hidden() {
        let seen = r"a\u{202e}b\u{0}\u{d}\u{a}\u{7f}\u{9b}31m\u{200d}\u{1b}]0;x\u{7}\u{e0001}c";
        assert_eq!(visible(HOSTILE), seen);
        for plain in ["nginx: worker <b>", "größer", "日本語", "שלום", "🦀"] {
            assert_eq!(visible(plain), plain);
            assert_eq!(json(&plain, false).unwrap(), format!("\"{plain}\""));
        }
    }

    #[test]
    fn json_means_the_same() {
        for is_pretty in [false, true] {
            let json = json(&[HOSTILE], is_pretty).unwrap();
            assert!(!json.contains(|char| char != '\n' && is_hidden(char)), "{json}");
            assert_eq!(serde_json::from_str::<Vec<String>>(&json).unwrap(), [HOSTILE]);
        }
    }
}
