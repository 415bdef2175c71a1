//! Writes families and series, in the same way for all formats: to prometheus-client, which writes
//! the text, or to [`super::protobuf`].
//!
//! A family's name is given without the suffixes that its kind and unit add.

use std::fmt::{self, Display, Write as _};
use std::time::UNIX_EPOCH;

use prometheus_client::encoding::{
    self as client, EncodeCounterValue, EncodeGaugeValue, EncodeLabelKey as _, EncodeLabelSet,
    LabelSetEncoder, NoLabelSet,
};
use prometheus_client::metrics::exemplar::CounterWithExemplar;

use super::family::{Distribution, Exemplar, MetricType, Unit};
use super::protobuf::Messages;

/// Takes families.
pub(super) enum DescriptorEncoder<'a> {
    Text(client::DescriptorEncoder<'a>),
    Protobuf(&'a mut dyn Messages),
}

/// Takes the series of a family: one without labels, or some with.
pub(super) enum MetricEncoder<'a> {
    Text(client::MetricEncoder<'a>),
    Protobuf(&'a mut dyn Messages),
}

/// A value; in text it is written in its own type.
pub(super) trait Number: EncodeCounterValue + EncodeGaugeValue {
    fn as_f64(&self) -> f64;
}

/// A set of labels.
pub(super) trait LabelSet {
    fn each(&self, label: &mut Label<'_>) -> fmt::Result;
}

/// Takes a label's name and value.
pub(super) type Label<'a> = dyn FnMut(&str, &dyn Display) -> fmt::Result + 'a;

impl DescriptorEncoder<'_> {
    pub(super) fn encode_descriptor<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        unit: Option<&'s Unit>,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        Ok(match self {
            Self::Text(out) => MetricEncoder::Text(out.encode_descriptor(name, help, unit, kind)?),
            Self::Protobuf(out) => {
                out.family(name, help, unit, kind)?;
                MetricEncoder::Protobuf(&mut **out)
            }
        })
    }
}

impl MetricEncoder<'_> {
    /// A series with labels.
    pub(super) fn with(
        &mut self,
        labels: &impl LabelSet,
        value: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        match self {
            Self::Text(out) => value(&mut MetricEncoder::Text(out.encode_family(&Via(labels))?)),
            Self::Protobuf(out) => {
                labels.each(&mut |name, value| {
                    out.label(name, value);
                    Ok(())
                })?;
                value(&mut MetricEncoder::Protobuf(&mut **out))
            }
        }
    }

    pub(super) fn encode_counter(
        &mut self,
        value: &impl Number,
        exemplar: Option<&Exemplar>,
    ) -> fmt::Result {
        match (self, exemplar) {
            (Self::Text(out), None) => out.encode_counter::<NoLabelSet, _, u64>(value, None),
            (Self::Text(out), Some(Exemplar { labels, time })) => {
                // Only such a counter provides an exemplar.
                let counter = CounterWithExemplar::<_>::default();
                counter.inc_by(1, Some(labels.as_slice()), UNIX_EPOCH.checked_add(*time));
                out.encode_counter(value, counter.get().1.as_ref())
            }
            (Self::Protobuf(out), exemplar) => out.counter(value.as_f64(), exemplar),
        }
    }

    pub(super) fn encode_gauge(&mut self, value: &impl Number) -> fmt::Result {
        match self {
            Self::Text(out) => out.encode_gauge(value),
            Self::Protobuf(out) => out.gauge(value.as_f64()),
        }
    }

    pub(super) fn encode_info(&mut self, labels: &impl LabelSet) -> fmt::Result {
        match self {
            Self::Text(out) => out.encode_info(&Via(labels)),
            Self::Protobuf(_) => self.with(labels, |series| series.encode_gauge(&1_u64)),
        }
    }

    pub(super) fn encode_histogram(&mut self, distribution: Distribution<'_>) -> fmt::Result {
        let Distribution { sum, count, buckets, .. } = distribution;
        match self {
            Self::Text(out) => out.encode_histogram::<NoLabelSet>(sum, count, buckets, None),
            Self::Protobuf(out) => out.histogram(distribution),
        }
    }
}

impl Number for u64 {
    /// Counts above 2^53 are rounded, as in Prometheus.
    #[expect(clippy::cast_precision_loss, reason = "Prometheus has nothing else")]
    fn as_f64(&self) -> f64 {
        *self as f64
    }
}

impl Number for f64 {
    fn as_f64(&self) -> f64 {
        *self
    }
}

impl<V: Display, const N: usize> LabelSet for [(&str, V); N] {
    fn each(&self, label: &mut Label<'_>) -> fmt::Result {
        self.iter().try_for_each(|(name, value)| label(name, value))
    }
}

/// One after another.
impl<A: LabelSet, B: LabelSet> LabelSet for (&A, B) {
    fn each(&self, label: &mut Label<'_>) -> fmt::Result {
        self.0.each(label)?;
        self.1.each(label)
    }
}

/// Labels for prometheus-client.
struct Via<'a, L>(&'a L);

impl<L: LabelSet> EncodeLabelSet for Via<'_, L> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.0.each(&mut |name, value| {
            let mut label = encoder.encode_label();
            let mut key = label.encode_label_key()?;
            name.encode(&mut key)?;
            let mut text = key.encode_label_value()?;
            write!(text, "{value}")?;
            text.finish()
        })
    }
}
