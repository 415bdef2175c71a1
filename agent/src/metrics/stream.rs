//! The exposition as it is written: in small pieces, so that it is nowhere as a whole.

use std::fmt;
use std::io::{self, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

use super::format::{Format, ToText004};
use super::{Naming, Scrape, Status};
use crate::logic::table::Export;

/// The size of the pieces that are sent.
pub const CHUNK: usize = 64 * 1024;

/// Text is converted and compressed in pieces of about this size.
const BLOCK: usize = 8 * 1024;

/// Writes all of it, a chunk after the other, until `send` takes no more.
pub fn write(
    table: Export,
    status: Status,
    naming: Naming,
    (format, is_gzip): (Format, bool),
    send: impl FnMut(Bytes) -> io::Result<()>,
) -> io::Result<()> {
    let chunks = Chunks { buffer: Vec::with_capacity(CHUNK), send };
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape { table, status, naming }));
    let chunks = if is_gzip {
        let mut sink = Sink::new(GzEncoder::new(chunks, Compression::fast()), format);
        sink.encode(&registry)?;
        sink.out.finish()?
    } else {
        let mut sink = Sink::new(chunks, format);
        sink.encode(&registry)?;
        sink.out
    };
    chunks.finish()
}

/// The same in one text.
pub(super) fn to_text(table: Export, status: Status, naming: Naming, format: Format) -> String {
    let mut text = Vec::new();
    let written = write(table, status, naming, (format, false), |chunk| {
        text.extend_from_slice(&chunk);
        Ok(())
    });
    debug_assert!(written.is_ok(), "memory takes everything");
    String::from_utf8(text).unwrap_or_default()
}

/// Takes the text of the encoder, and hands on whole lines in the format asked for.
struct Sink<W> {
    text: String,
    to_text004: Option<ToText004>,
    converted: String,
    out: W,
    error: Option<io::Error>,
}

impl<W: Write> Sink<W> {
    fn new(out: W, format: Format) -> Self {
        let to_text004 = (format == Format::Text004).then(ToText004::default);
        let text = String::with_capacity(2 * BLOCK);
        Self { text, to_text004, converted: String::new(), out, error: None }
    }

    fn encode(&mut self, registry: &Registry) -> io::Result<()> {
        let encoded = text::encode(self, registry).map_err(io::Error::other);
        match self.error.take() {
            Some(error) => Err(error),
            None => encoded.and_then(|()| self.pass_on()),
        }
    }

    /// All whole lines that there are.
    fn pass_on(&mut self) -> io::Result<()> {
        let end = self.text.rfind('\n').map_or(0, |at| at + 1);
        let lines = self.text.get(..end).unwrap_or_default();
        match &mut self.to_text004 {
            Some(to_text004) => {
                self.converted.clear();
                to_text004.convert(lines, &mut self.converted);
                self.out.write_all(self.converted.as_bytes())?;
            }
            None => self.out.write_all(lines.as_bytes())?,
        }
        self.text.drain(..end);
        Ok(())
    }
}

impl<W: Write> fmt::Write for Sink<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.text.push_str(text);
        if self.text.len() < BLOCK {
            return Ok(());
        }
        self.pass_on().map_err(|error| {
            self.error = Some(error);
            fmt::Error
        })
    }
}

/// Cuts what is written into chunks.
struct Chunks<F> {
    buffer: Vec<u8>,
    send: F,
}

impl<F: FnMut(Bytes) -> io::Result<()>> Chunks<F> {
    fn finish(mut self) -> io::Result<()> {
        if self.buffer.is_empty() { Ok(()) } else { (self.send)(self.buffer.into()) }
    }
}

impl<F: FnMut(Bytes) -> io::Result<()>> Write for Chunks<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK - self.buffer.len());
        self.buffer.extend(bytes.iter().take(taken));
        if self.buffer.len() == CHUNK {
            let full = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
            (self.send)(full.into())?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
