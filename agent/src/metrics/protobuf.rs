//! The protobuf format of Prometheus, the only one with native histograms: `MetricFamily` messages,
//! each preceded by its length. Field numbers are those of
//! <https://github.com/prometheus/client_model/blob/v0.6.2/io/prometheus/client/metrics.proto>.
//!
//! prometheus-client can write it, too, but only as a whole: it makes an object of each series, then
//! turns all of them into bytes; and its build needs protoc, or many crates instead. Here no series is kept.
//!
//! Note that a family's length comes before it, and a family may be most of the exposition. So
//! everything is encoded twice: the first pass keeps only the lengths, the second only a block at a time.

#[cfg(test)]
mod tests;

use std::fmt::{self, Display, Write as _};
use std::time::Duration;

use finrace_logic::native::{Native, ZERO_THRESHOLD};

use super::family::{Distribution, Exemplar, MetricType, Unit};
use super::out::{BLOCK, Out};

/// Writes what `say` says, which is the same both times.
pub(super) fn encode(
    out: &mut Out<'_>,
    say: impl Fn(&mut dyn Messages) -> fmt::Result,
) -> fmt::Result {
    let mut lengths = Lengths::default();
    say(&mut lengths)?;
    let (lengths, block) = (lengths.families.into_iter(), Vec::with_capacity(2 * BLOCK));
    let mut protobuf = Protobuf { lengths, message: Message::default(), block, out };
    say(&mut protobuf)?;
    protobuf.out.pass_on(&protobuf.block)
}

/// Encodes to find the length of each family.
#[derive(Default)]
struct Lengths {
    /// In order; 0 for a family without series.
    families: Vec<usize>,
    head: usize,
    message: Message,
}

/// Encodes once the lengths are known.
struct Protobuf<'a, 'b> {
    lengths: std::vec::IntoIter<usize>,
    message: Message,
    block: Vec<u8>,
    out: &'a mut Out<'b>,
}

/// What is done with a complete family or series.
pub(super) trait Messages {
    fn message(&mut self) -> &mut Message;
    fn begin(&mut self, head: &[u8]) -> fmt::Result;
    fn metric(&mut self) -> fmt::Result;
}

impl Messages for Lengths {
    fn message(&mut self) -> &mut Message {
        &mut self.message
    }

    fn begin(&mut self, head: &[u8]) -> fmt::Result {
        self.families.push(0);
        self.head = head.len();
        Ok(())
    }

    fn metric(&mut self) -> fmt::Result {
        let message = &mut self.message;
        message.nested.clear();
        bytes(&mut message.nested, METRIC, &message.metric);
        if let Some(length) = self.families.last_mut() {
            *length += std::mem::take(&mut self.head) + message.nested.len();
        }
        Ok(())
    }
}

impl Messages for Protobuf<'_, '_> {
    fn message(&mut self) -> &mut Message {
        &mut self.message
    }

    fn begin(&mut self, head: &[u8]) -> fmt::Result {
        let length = self.lengths.next().ok_or(fmt::Error)?;
        if length > 0 {
            varint(&mut self.block, length as u64);
            self.block.extend(head);
        }
        Ok(())
    }

    fn metric(&mut self) -> fmt::Result {
        bytes(&mut self.block, METRIC, &self.message.metric);
        if self.block.len() >= BLOCK {
            self.out.pass_on(&self.block)?;
            self.block.clear();
        }
        Ok(())
    }
}

/// Field number in a family.
const METRIC: u32 = 4;

/// A series in the making.
#[derive(Default)]
pub(super) struct Message {
    metric: Vec<u8>,
    value: Vec<u8>,
    nested: Vec<u8>,
    text: String,
}

impl dyn Messages + '_ {
    pub(super) fn family(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        kind: MetricType,
    ) -> fmt::Result {
        let (suffix, kind) = match kind {
            MetricType::Counter => ("_total", 0),
            MetricType::Gauge | MetricType::Unknown => ("", 1),
            MetricType::Info => ("_info", 1),
            MetricType::Histogram => ("", 4),
        };
        let unit = unit.map_or_else(String::new, |unit| format!("_{}", unit.as_str()));
        let mut head = Vec::new();
        bytes(&mut head, 1, format!("{name}{unit}{suffix}").as_bytes());
        bytes(&mut head, 2, help.as_bytes());
        whole(&mut head, 3, kind);
        self.begin(&head)
    }

    /// Adds a label to the series whose value comes next.
    pub(super) fn label(&mut self, name: &str, value: &dyn Display) {
        let Message { metric, nested, text, .. } = self.message();
        pair(metric, (name, value), nested, text);
    }

    pub(super) fn counter(&mut self, value: f64, exemplar: Option<&Exemplar>) -> fmt::Result {
        let Message { value: counter, nested, text, .. } = self.message();
        double(counter, 1, value);
        if let Some(exemplar) = exemplar {
            let mut message = Vec::new();
            for (name, value) in &exemplar.labels {
                pair(&mut message, (name, value), nested, text);
            }
            double(&mut message, 2, 1.0);
            timestamp(&mut message, 3, exemplar.time);
            bytes(counter, 2, &message);
        }
        self.end(3)
    }

    pub(super) fn gauge(&mut self, value: f64) -> fmt::Result {
        double(&mut self.message().value, 1, value);
        self.end(2)
    }

    pub(super) fn histogram(&mut self, distribution: Distribution<'_>) -> fmt::Result {
        let Distribution { sum, count, buckets, native } = distribution;
        let Message { value: histogram, nested, .. } = self.message();
        whole(histogram, 1, count);
        double(histogram, 2, sum);
        let mut cumulative = 0;
        for (bound, count) in buckets {
            cumulative += count;
            nested.clear();
            whole(nested, 1, cumulative);
            double(nested, 2, *bound);
            bytes(histogram, 3, nested);
        }
        if let Some(native) = native {
            sparse(histogram, native, nested);
        }
        self.end(7)
    }

    /// Completes the value, and with it the series.
    fn end(&mut self, field: u32) -> fmt::Result {
        let Message { metric, value, .. } = self.message();
        bytes(metric, field, value);
        self.metric()?;
        let Message { metric, value, .. } = self.message();
        metric.clear();
        value.clear();
        Ok(())
    }
}

/// The native part of a histogram. Its threshold, which is not 0, tells a reader that there is one.
fn sparse(histogram: &mut Vec<u8>, native: &Native, nested: &mut Vec<u8>) {
    whole(histogram, 5, zigzag(native.schema().into()));
    double(histogram, 6, ZERO_THRESHOLD);
    whole(histogram, 7, native.zero());
    let mut span = |offset: i64, length: u64| {
        nested.clear();
        whole(nested, 1, zigzag(offset));
        whole(nested, 2, length);
        bytes(histogram, 12, nested);
    };
    let (mut offset, mut length, mut next) = (0, 0, 0);
    for (index, _) in native.buckets() {
        let index = i64::from(index);
        if index != next || length == 0 {
            if length > 0 {
                span(offset, length);
            }
            (offset, length) = (index - next, 0);
        }
        length += 1;
        next = index + 1;
    }
    if length > 0 {
        span(offset, length);
    }
    nested.clear();
    let mut before = 0;
    for (_, count) in native.buckets() {
        varint(nested, zigzag(count.cast_signed() - before));
        before = count.cast_signed();
    }
    bytes(histogram, 13, nested);
}

/// A message with a label's name and value; field 1 wherever there are labels.
fn pair(
    out: &mut Vec<u8>,
    (name, value): (&str, &dyn Display),
    nested: &mut Vec<u8>,
    text: &mut String,
) {
    text.clear();
    write!(text, "{value}").ok();
    nested.clear();
    bytes(nested, 1, name.as_bytes());
    bytes(nested, 2, text.as_bytes());
    bytes(out, 1, nested);
}

/// A `google.protobuf.Timestamp` message.
fn timestamp(out: &mut Vec<u8>, field: u32, time: Duration) {
    let mut message = Vec::new();
    whole(&mut message, 1, time.as_secs());
    whole(&mut message, 2, time.subsec_nanos().into());
    bytes(out, field, &message);
}

fn whole(out: &mut Vec<u8>, field: u32, value: u64) {
    varint(out, u64::from(field) << 3);
    varint(out, value);
}

fn double(out: &mut Vec<u8>, field: u32, value: f64) {
    varint(out, u64::from(field) << 3 | 1);
    out.extend(value.to_le_bytes());
}

/// A string, a message, or packed numbers.
fn bytes(out: &mut Vec<u8>, field: u32, value: &[u8]) {
    varint(out, u64::from(field) << 3 | 2);
    varint(out, value.len() as u64);
    out.extend(value);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Small numbers of either sign as small numbers.
const fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63).cast_unsigned()
}
