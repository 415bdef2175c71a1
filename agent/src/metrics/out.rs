//! The way out for what is encoded, in any format.

use std::fmt;
use std::io::{self, Write};

/// Encoded text is converted and compressed in pieces of about this size.
pub(super) const BLOCK: usize = 8 * 1024;

/// Where the output goes, and the error that ended it, which encoders do not pass on.
pub(super) struct Out<'a> {
    writer: &'a mut dyn Write,
    error: io::Result<()>,
}

impl<'a> Out<'a> {
    pub(super) fn to(writer: &'a mut dyn Write) -> Self {
        Self { writer, error: Ok(()) }
    }

    pub(super) fn pass_on(&mut self, bytes: &[u8]) -> fmt::Result {
        self.error = self.writer.write_all(bytes);
        if self.error.is_ok() { Ok(()) } else { Err(fmt::Error) }
    }

    pub(super) fn finish(self) -> io::Result<()> {
        self.error
    }
}
