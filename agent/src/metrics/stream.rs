//! The exposition as it is written: in small pieces, so that it never exists as a whole.

use std::fmt;
use std::io::{self, Write};

use bytes::Bytes;
use finrace_logic::table::Export;
use flate2::Compression;
use flate2::write::GzEncoder;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::registry::Registry;

use super::format::{Format, ToText004};
use super::out::{BLOCK, Out};
use super::{Exposition, Naming, Status, encoding, protobuf};

/// The size of the pieces that are sent.
pub const CHUNK: usize = 64 * 1024;

/// Writes all of it, one chunk after another, until `send` accepts no more.
pub fn write(
    mut table: Export,
    status: Status,
    naming: Naming,
    (format, is_gzip): (Format, bool),
    send: impl FnMut(Bytes) -> io::Result<()>,
) -> io::Result<()> {
    let mut chunks = Chunks { buffer: Vec::with_capacity(CHUNK), send };
    naming.remember(&mut table);
    let scrape = Exposition { table, status, naming, format };
    if is_gzip {
        let mut gzip = GzEncoder::new(chunks, Compression::fast());
        encode(scrape, &mut gzip)?;
        chunks = gzip.finish()?;
    } else {
        encode(scrape, &mut chunks)?;
    }
    chunks.finish()
}

/// The same as one text.
pub(super) fn to_text(table: Export, status: Status, naming: Naming, format: Format) -> String {
    String::from_utf8(to_bytes(table, status, naming, format)).unwrap_or_default()
}

/// The same in one piece.
pub(super) fn to_bytes(table: Export, status: Status, naming: Naming, format: Format) -> Vec<u8> {
    let mut bytes = Vec::new();
    let written = write(table, status, naming, (format, false), |chunk| {
        bytes.extend_from_slice(&chunk);
        Ok(())
    });
    debug_assert!(written.is_ok(), "memory takes everything");
    bytes
}

fn encode(scrape: Exposition, writer: &mut dyn Write) -> io::Result<()> {
    let mut out = Out::to(writer);
    let encoded = match scrape.format {
        Format::Protobuf => {
            let said = scrape.lines();
            protobuf::encode(&mut out, |messages| {
                scrape.say(&said, &mut encoding::DescriptorEncoder::Protobuf(messages))
            })
        }
        Format::OpenMetrics | Format::Text004 => Sink::new(scrape.format, &mut out).encode(scrape),
    };
    out.finish().and(encoded.map_err(io::Error::other))
}

/// Takes the encoder's text, and passes on whole lines in the requested format.
struct Sink<'a, 'b> {
    text: String,
    to_text004: Option<ToText004>,
    converted: String,
    out: &'a mut Out<'b>,
}

impl<'a, 'b> Sink<'a, 'b> {
    fn new(format: Format, out: &'a mut Out<'b>) -> Self {
        let to_text004 = (format == Format::Text004).then(ToText004::default);
        let text = String::with_capacity(2 * BLOCK);
        Self { text, to_text004, converted: String::new(), out }
    }

    fn encode(mut self, scrape: Exposition) -> fmt::Result {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(scrape));
        text::encode(&mut self, &registry)?;
        self.pass_on()
    }

    /// Passes on all complete lines.
    fn pass_on(&mut self) -> fmt::Result {
        let end = self.text.rfind('\n').map_or(0, |at| at + 1);
        let lines = self.text.get(..end).unwrap_or_default();
        match &mut self.to_text004 {
            Some(to_text004) => {
                self.converted.clear();
                to_text004.convert(lines, &mut self.converted);
                self.out.pass_on(self.converted.as_bytes())?;
            }
            None => self.out.pass_on(lines.as_bytes())?,
        }
        self.text.drain(..end);
        Ok(())
    }
}

impl fmt::Write for Sink<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.text.push_str(text);
        if self.text.len() < BLOCK { Ok(()) } else { self.pass_on() }
    }
}

impl Collector for Exposition {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.say(&self.lines(), &mut encoding::DescriptorEncoder::Text(encoder))
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
