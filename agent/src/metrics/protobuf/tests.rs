use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Read as _;

use finrace_logic::table::{Collection, Keeps, Table};
use flate2::read::GzDecoder;

use super::super::encoding::Number as _;
use super::super::tests::{busy_keeping, chunks, crowd};
use super::super::{Format, Naming, SERIES_MAX, Status, encode, stream};
use super::*;

#[derive(Clone, Copy, Debug)]
enum Value<'a> {
    Whole(u64),
    Double(f64),
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    fn bytes(self) -> &'a [u8] {
        let Self::Bytes(bytes) = self else { panic!("{self:?}") };
        bytes
    }

    fn text(self) -> &'a str {
        str::from_utf8(self.bytes()).unwrap()
    }

    fn number(self) -> f64 {
        let Self::Double(number) = self else { panic!("{self:?}") };
        number
    }

    fn whole(self) -> u64 {
        let Self::Whole(whole) = self else { panic!("{self:?}") };
        whole
    }
}

fn take_varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return value;
        }
    }
    panic!("too long")
}

fn take<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let length = take_varint(bytes) as usize;
    let (message, rest) = bytes.split_at(length);
    *bytes = rest;
    message
}

fn signed(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

/// The fields of a message, in order.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Value<'_>)> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = take_varint(&mut bytes);
        let value = match tag & 7 {
            0 => Value::Whole(take_varint(&mut bytes)),
            1 => {
                let (value, rest) = bytes.split_first_chunk().unwrap();
                bytes = rest;
                Value::Double(f64::from_le_bytes(*value))
            }
            2 => Value::Bytes(take(&mut bytes)),
            other => panic!("wire type {other}"),
        };
        fields.push((tag >> 3, value));
    }
    fields
}

fn one<'a>(fields: &[(u64, Value<'a>)], number: u64) -> Value<'a> {
    let mut found = fields.iter().filter(|(field, _)| *field == number);
    let (Some((_, value)), None) = (found.next(), found.next()) else { panic!("{fields:?}") };
    *value
}

fn all<'a>(fields: &[(u64, Value<'a>)], number: u64) -> impl Iterator<Item = Value<'a>> {
    fields.iter().filter(move |(field, _)| *field == number).map(|(_, value)| *value)
}

fn labels(message: &[(u64, Value<'_>)]) -> String {
    let pairs = all(message, 1).map(|pair| {
        let pair = fields(pair.bytes());
        let value = one(&pair, 2).text().replace('\\', "\\\\").replace('"', "\\\"");
        format!("{}=\"{}\"", one(&pair, 1).text(), value.replace('\n', "\\n"))
    });
    pairs.collect::<Vec<_>>().join(",")
}

/// A native histogram as read: its series, schema, zeros, and buckets.
type Sparse = (String, i64, u64, BTreeMap<i64, i64>);

/// What was read.
#[derive(Default)]
struct Exposition {
    /// HELP and TYPE as in 0.0.4, with the samples and their values in between.
    lines: Vec<(String, f64)>,
    native: Vec<Sparse>,
    /// Series and labels, value, and time.
    exemplars: Vec<(String, String, f64, Duration)>,
}

fn read(mut bytes: &[u8]) -> Exposition {
    let mut read = Exposition::default();
    while !bytes.is_empty() {
        let family = fields(take(&mut bytes));
        let (name, kind) = (one(&family, 1).text(), one(&family, 3).whole());
        let word = ["counter", "gauge", "", "", "histogram"][kind as usize];
        read.lines.push((format!("# HELP {name} {}", one(&family, 2).text()), 0.0));
        read.lines.push((format!("# TYPE {name} {word}"), 0.0));
        for metric in all(&family, u64::from(METRIC)) {
            let metric = fields(metric.bytes());
            let labels = labels(&metric);
            let series = |suffix, le: Option<f64>| match (le, &*labels) {
                (None, "") => format!("{name}{suffix}"),
                (None, labels) => format!("{name}{suffix}{{{labels}}}"),
                (Some(f64::INFINITY), labels) => format!("{name}{suffix}{{le=\"+Inf\",{labels}}}"),
                (Some(le), labels) => format!("{name}{suffix}{{le=\"{le:?}\",{labels}}}"),
            };
            match kind {
                0 => {
                    let counter = fields(one(&metric, 3).bytes());
                    read.lines.push((series("", None), one(&counter, 1).number()));
                    for exemplar in all(&counter, 2) {
                        read.exemplar(series("", None), &fields(exemplar.bytes()));
                    }
                }
                1 => {
                    let gauge = fields(one(&metric, 2).bytes());
                    read.lines.push((series("", None), one(&gauge, 1).number()));
                }
                _ => {
                    let histogram = fields(one(&metric, 7).bytes());
                    read.lines.push((series("_sum", None), one(&histogram, 2).number()));
                    let count = one(&histogram, 1).whole();
                    read.lines.push((series("_count", None), count.as_f64()));
                    for bucket in all(&histogram, 3) {
                        let bucket = fields(bucket.bytes());
                        let series = series("_bucket", Some(one(&bucket, 2).number()));
                        let count = one(&bucket, 1).whole();
                        read.lines.push((series, count.as_f64()));
                    }
                    read.sparse(series("", None), count, &histogram);
                }
            }
        }
    }
    read
}

impl Exposition {
    fn exemplar(&mut self, series: String, exemplar: &[(u64, Value<'_>)]) {
        let time = fields(one(exemplar, 3).bytes());
        let nanos = one(&time, 2).whole() as u32;
        let time = Duration::new(one(&time, 1).whole(), nanos);
        self.exemplars.push((series, labels(exemplar), one(exemplar, 2).number(), time));
    }

    /// Reads the native part, whose counts must match those of the classic one.
    fn sparse(&mut self, series: String, count: u64, histogram: &[(u64, Value<'_>)]) {
        if all(histogram, 6).next().is_none() {
            assert!(histogram.iter().all(|(field, _)| *field <= 3), "{series}");
            return;
        }
        assert!(one(histogram, 6).number() > 0.0);
        let mut packed = one(histogram, 13).bytes();
        let (mut index, mut at) = (0, 0);
        let mut buckets = BTreeMap::new();
        for span in all(histogram, 12) {
            let span = fields(span.bytes());
            index += signed(one(&span, 1).whole());
            let length = one(&span, 2).whole();
            assert!(length > 0);
            for _ in 0..length {
                at += signed(take_varint(&mut packed));
                assert!(at > 0);
                buckets.insert(index, at);
                index += 1;
            }
        }
        let zeros = one(histogram, 7).whole();
        let sum = zeros + buckets.values().sum::<i64>().cast_unsigned();
        assert_eq!((packed, sum), (&[][..], count), "{series}");
        self.native.push((series, signed(one(histogram, 5).whole()), zeros, buckets));
    }
}

fn protobuf(table: &mut Table, status: Status) -> Vec<u8> {
    let room = status.room(SERIES_MAX);
    let export = Collection::begin(table, room, None).finish(table);
    stream::to_bytes(export, status, Naming::default(), Format::Protobuf)
}

/// The lines of the older text, without families that have no series: protobuf has none.
fn lines(text004: &str) -> Vec<(String, f64)> {
    let mut lines: Vec<(String, f64)> = Vec::new();
    for line in text004.lines().chain(["# HELP end"]) {
        if line.starts_with("# HELP ") {
            while lines.pop_if(|(line, _)| line.starts_with('#')).is_some() {}
        }
        match line.rsplit_once(' ').filter(|_| !line.starts_with('#')) {
            Some((series, value)) => lines.push((series.to_owned(), value.parse().unwrap())),
            None => lines.push((line.to_owned(), 0.0)),
        }
    }
    lines.pop();
    lines
}

const ALL: Keeps = Keeps { native: true, examples: true };

#[test]
fn it_says_what_the_text_says() {
    for keeps in [Keeps::default(), ALL] {
        let (mut table, status) = busy_keeping(keeps);
        let text = encode(&mut table, status.clone(), Format::Text004);
        let read = read(&protobuf(&mut table, status));
        assert_eq!(read.lines, lines(&text));
        assert!(read.lines.len() > 200);
        assert_eq!(read.native.is_empty(), !keeps.native);
        assert_eq!(read.exemplars.is_empty(), !keeps.examples);
    }
    let mut empty = Table::new(1, Duration::from_millis(200), finrace_logic::model::Nanos(0));
    let text = encode(&mut empty, Status::default(), Format::Text004);
    assert_eq!(read(&protobuf(&mut empty, Status::default())).lines, lines(&text));
}

#[test]
fn a_large_one_comes_in_chunks_and_with_gzip() {
    let mut table = crowd(300);
    let text = chunks(&mut table, SERIES_MAX, Format::Text004, false).concat();
    let plain = chunks(&mut table, SERIES_MAX, Format::Protobuf, false);
    assert!(plain.len() > 1 && plain.iter().all(|chunk| chunk.len() <= stream::CHUNK));
    assert_eq!(read(&plain.concat()).lines, lines(str::from_utf8(&text).unwrap()));
    let gzip = chunks(&mut table, SERIES_MAX, Format::Protobuf, true).concat();
    let mut unpacked = Vec::new();
    GzDecoder::new(gzip.as_slice()).read_to_end(&mut unpacked).unwrap();
    assert!(unpacked == plain.concat());
}

/// No matter what lies between the buckets.
#[test]
fn spans_lead_to_the_buckets() {
    for millis in [&[0][..], &[1, 1, 1, 5], &[0, 800, 800, 900, 1000, 1090], &[1, 60_000, 62_000]] {
        let mut native = Native::default();
        for millis in millis {
            native.add(Duration::from_millis(*millis));
        }
        let (mut histogram, mut read) = (Vec::new(), Exposition::default());
        sparse(&mut histogram, &native, &mut Vec::new());
        read.sparse(String::new(), millis.len() as u64, &fields(&histogram));
        let [(_, 3, zeros, buckets)] = &read.native[..] else { panic!("{:?}", read.native) };
        let expected = native.buckets().map(|(i, count)| (i.into(), count.cast_signed()));
        assert_eq!((*zeros, buckets.clone()), (native.zero(), expected.collect()));
    }
}

#[test]
fn native_buckets_and_exemplars() {
    let (mut table, status) = busy_keeping(ALL);
    let read = read(&protobuf(&mut table, status));
    let mut text = String::new();
    for (series, schema, zeros, buckets) in read.native {
        writeln!(text, "{series} {schema} {zeros} {buckets:?}").unwrap();
    }
    for (series, labels, value, time) in read.exemplars {
        writeln!(text, "{series} # {{{labels}}} {value} {time:?}").unwrap();
    }
    let expected = include_str!("../../golden/busy.native.txt");
    if std::env::var_os("GOLDEN").is_some_and(|value| value == "write") {
        let path = format!("{}/src/golden/busy.native.txt", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(path, text).unwrap();
    } else {
        assert!(text == expected, "golden/busy.native.txt differs, is now:\n{text}");
    }
}
