//! Rows and ports with the labels of their series: which labels, and what to do when two have the
//! same.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use clap::ValueEnum;
use finrace_logic::estimate::Population;
use finrace_logic::knobs::Side;
use finrace_logic::model::{Closer, Endpoint, Name, Role};
use finrace_logic::owner::{End, Owner};
use finrace_logic::peer::{PortKey, RowKey};
use finrace_logic::table::{Advised, Counts, Export, Left, Level, Shown};
use finrace_logic::verdict::State;

use super::encoding::{self, LabelSet};
use crate::output::visible;
use crate::who::Who;

/// A label of peers that can be left out, or several: those of both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Label {
    Peer,
    #[value(name = "peer_ip")]
    PeerIp,
    #[value(name = "server_port")]
    ServerPort,
    Netns,
    Process,
    Namespace,
    Workload,
    Pod,
    Container,
}

/// Which labels the series of peers and ports have, and where the names in them come from.
#[derive(Clone, Debug)]
pub struct Naming {
    pub labels: Vec<Label>,
    pub who: Who,
    past: Past,
}

/// The counts of rows and ports that have left, by the labels of their series. A series continues as
/// long as there is another row with these labels, and must never decrease.
#[derive(Clone, Debug, Default)]
struct Past(Arc<Mutex<HashMap<Labels, Counts>>>);

impl Past {
    /// Each change is atomic, so the state that a panic leaves behind is valid.
    fn lock(&self) -> MutexGuard<'_, HashMap<Labels, Counts>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Naming {
    /// All labels, and no names of owners.
    fn default() -> Self {
        Self::new(Label::value_variants().to_vec(), Who::default())
    }
}

impl Naming {
    pub fn new(labels: Vec<Label>, who: Who) -> Self {
        Self { labels, who, past: Past::default() }
    }

    /// Adds what has left; called once per scrape.
    pub(super) fn remember(&self, export: &mut Export) {
        let mut past = self.past.lock();
        self.remember_all(&mut past, mem::take(&mut export.rows.left));
        self.remember_all(&mut past, mem::take(&mut export.ports.left));
    }

    fn remember_all<K: Keyed>(&self, past: &mut HashMap<Labels, Counts>, left: Vec<Left<K>>) {
        for Left { key, counts, process, process_owner, .. } in left {
            let labels = self.labels_of(&key, process, process_owner);
            past.entry(labels).or_default().absorb(&counts);
        }
    }

    /// Which labels identify a row or a port: its name, the peer's address, the server's port.
    fn named<K: Keyed>(&self) -> [bool; 3] {
        if K::NAME == RowKey::NAME {
            [Label::Peer, Label::PeerIp, Label::ServerPort].map(|label| self.has(label))
        } else {
            // A port's name is the server's port.
            [true, false, false]
        }
    }

    fn labels_of<K: Keyed>(&self, key: &K, process: Option<Name>, of_process: Owner) -> Labels {
        let ends = self.who.ends(key.role(), key.owner().or(of_process), key.remote());
        let [client, server] = ends.map(|end| self.chosen(end));
        let [is_named, has_ip, has_port] = self.named::<K>();
        let ip = key.remote().filter(|_| has_ip).map(|remote| remote.ip.to_string().into());
        Labels {
            is_other: false,
            netns: self.has(Label::Netns).then(|| key.netns()),
            role: key.role().as_str(),
            name: K::NAME,
            value: is_named.then(|| key.value().into()),
            ip,
            port: has_port.then(|| key.server_port().to_string().into()),
            process: process.filter(|_| self.has(Label::Process)),
            client,
            server,
        }
    }

    /// The labels for the sum of what has no series of its own.
    fn labels_of_others<K: Keyed>(&self, role: &'static str) -> Labels {
        let named = self.named::<K>();
        let [value, ip, port] = named.map(|is_there| is_there.then(|| "other".into()));
        Labels {
            is_other: named.contains(&true),
            netns: None,
            role,
            name: K::NAME,
            value,
            ip,
            port,
            process: None,
            client: End::default(),
            server: End::default(),
        }
    }

    fn has(&self, label: Label) -> bool {
        self.labels.contains(&label)
    }

    /// The names that were chosen.
    fn chosen(&self, end: End) -> End {
        let End { namespace, workload, pod, container } = end;
        End {
            namespace: namespace.filter(|_| self.has(Label::Namespace)),
            workload: workload.filter(|_| self.has(Label::Workload)),
            pod: pod.filter(|_| self.has(Label::Pod)),
            container: container.filter(|_| self.has(Label::Container)),
        }
    }
}

/// Labels of a row or a port; sorted in the order of these fields.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Labels {
    /// Sums of what has no series of its own come last.
    is_other: bool,
    netns: Option<u32>,
    role: &'static str,
    /// `peer` or `server_port`; the value follows.
    name: &'static str,
    value: Option<Box<str>>,
    /// The peer's address.
    ip: Option<Box<str>>,
    /// The server's port.
    port: Option<Box<str>>,
    process: Option<Name>,
    client: End,
    server: End,
}

impl LabelSet for Labels {
    fn each(&self, label: &mut encoding::Label<'_>) -> fmt::Result {
        label("role", &self.role)?;
        if let Some(value) = &self.value {
            label(self.name, value)?;
        }
        if let Some(ip) = &self.ip {
            label("peer_ip", ip)?;
        }
        if let Some(port) = &self.port {
            label("server_port", port)?;
        }
        if let Some(netns) = &self.netns {
            label("netns", netns)?;
        }
        if let Some(process) = &self.process {
            label("process", &visible(process.as_str()))?;
        }
        let names = [
            "client_namespace",
            "client_workload",
            "client_pod",
            "client_container",
            "server_namespace",
            "server_workload",
            "server_pod",
            "server_container",
        ];
        let values = [&self.client, &self.server]
            .into_iter()
            .flat_map(|end| [&end.namespace, &end.workload, &end.pod, &end.container]);
        for (name, value) in names.into_iter().zip(values) {
            if let Some(value) = value {
                label(name, &visible(value))?;
            }
        }
        Ok(())
    }
}

/// Rows or ports with the same labels.
pub(super) struct Line<'a> {
    pub(super) labels: Labels,
    pub(super) counts: Cow<'a, Counts>,
    /// See [`Shown::withheld`].
    pub(super) withheld: u64,
    /// None for a mixture.
    pub(super) judged: Option<Judged>,
}

/// What the observations amount to.
pub(super) struct Judged {
    pub(super) timeouts: [Option<Population>; Closer::ENDS.len()],
    pub(super) expected: Option<f64>,
    pub(super) verdict: Option<State>,
    /// Idle timeouts to set, in seconds: the client's, the server's.
    pub(super) advised: [Option<f64>; 2],
    /// Whether a client's row has the same problem.
    pub(super) is_other_end: bool,
}

/// All rows, or all ports.
pub(super) type Lines<'a> = [Line<'a>];

/// What a row or a port is called.
pub(super) trait Keyed {
    const NAME: &'static str;

    fn role(&self) -> Role;
    fn netns(&self) -> u32;
    fn owner(&self) -> Owner;
    /// The other end, if there is a single one.
    fn remote(&self) -> Option<Endpoint>;
    fn value(&self) -> String;
    fn server_port(&self) -> u16;
}

impl Keyed for RowKey {
    const NAME: &'static str = "peer";

    fn role(&self) -> Role {
        self.role()
    }

    fn netns(&self) -> u32 {
        self.netns
    }

    fn owner(&self) -> Owner {
        self.owner
    }

    fn remote(&self) -> Option<Endpoint> {
        Some(self.remote())
    }

    fn value(&self) -> String {
        self.to_string()
    }

    fn server_port(&self) -> u16 {
        self.port().port
    }
}

impl Keyed for PortKey {
    const NAME: &'static str = "server_port";

    fn role(&self) -> Role {
        self.role
    }

    fn netns(&self) -> u32 {
        self.netns
    }

    fn owner(&self) -> Owner {
        self.owner
    }

    fn remote(&self) -> Option<Endpoint> {
        None
    }

    fn value(&self) -> String {
        self.port.to_string()
    }

    fn server_port(&self) -> u16 {
        self.port
    }
}

/// The lines that are shown, in order, and the sums of the others; no two with the same labels.
pub(super) fn lines<'a, K: Keyed>(level: &'a Level<K>, naming: &Naming) -> Vec<Line<'a>> {
    let shown = level.shown.iter().map(|row| {
        let Shown { key, counts, process, process_owner, .. } = row;
        let labels = naming.labels_of(key, *process, *process_owner);
        let Shown { timeouts, expected, verdict, advised, is_other_end, withheld, .. } = *row;
        let advised = by_side(advised);
        let judged = Some(Judged { timeouts, expected, verdict, advised, is_other_end });
        Line { labels, counts: Cow::Borrowed(&**counts), withheld, judged }
    });
    let others = level.others.iter().map(|(role, counts)| {
        let labels = naming.labels_of_others::<K>(role.as_str());
        Line { labels, counts: Cow::Borrowed(counts), withheld: 0, judged: None }
    });
    let mut lines: Vec<_> = shown.chain(others).collect();
    lines.sort_by(|a, b| a.labels.cmp(&b.labels));
    lines.dedup_by(|line, kept| {
        let is_same = line.labels == kept.labels;
        if is_same {
            kept.join(line);
        }
        is_same
    });
    add_past::<K>(&mut lines, naming);
    lines
}

/// Adds the counts of those that have left; counts under labels that no longer exist go to the
/// others.
fn add_past<K: Keyed>(lines: &mut [Line<'_>], naming: &Naming) {
    let mut past = naming.past.lock();
    let ended =
        past.extract_if(|labels, _| labels.name == K::NAME && find(lines, labels).is_none());
    for (labels, counts) in ended.collect::<Vec<_>>() {
        past.entry(naming.labels_of_others::<K>(labels.role)).or_default().absorb(&counts);
    }
    for (labels, counts) in past.iter().filter(|(labels, _)| labels.name == K::NAME) {
        if let Some(at) = find(lines, labels)
            && let Some(line) = lines.get_mut(at)
        {
            line.counts.to_mut().absorb(counts);
        }
    }
}

fn by_side(advised: Option<Advised>) -> [Option<f64>; 2] {
    [Side::Client, Side::Server].map(|side| {
        let advised = advised.filter(|(of, _)| *of == side);
        advised.map(|(_, seconds)| seconds)
    })
}

fn find(lines: &[Line<'_>], labels: &Labels) -> Option<usize> {
    lines.binary_search_by(|line| line.labels.cmp(labels)).ok()
}

impl Line<'_> {
    /// Adds a line with the same labels.
    fn join(&mut self, other: &mut Self) {
        self.counts.to_mut().absorb(&other.counts);
        self.withheld += other.withheld;
        self.judged = match (self.judged.take(), other.judged.take()) {
            (Some(one), Some(other)) => Some(one.with(other)),
            (one, other) => one.or(other),
        };
    }
}

impl Judged {
    /// Combines both: the timeouts that more closes agree on, the races of both, the worse verdict, and
    /// the advice that helps both: clients must be below all servers, servers above all clients.
    fn with(mut self, mut other: Self) -> Self {
        for (one, other) in self.timeouts.iter_mut().zip(&mut other.timeouts) {
            let closes = |timeout: &Option<Population>| timeout.map_or(0, |found| found.count);
            if closes(one).cmp(&closes(other)) == Ordering::Less {
                mem::swap(one, other);
            }
        }
        self.expected = match (self.expected, other.expected) {
            (Some(one), Some(other)) => Some(one + other),
            (one, other) => one.or(other),
        };
        // The worst comes first.
        self.verdict = self.verdict.into_iter().chain(other.verdict).min();
        let ([client, server], [other_client, other_server]) = (self.advised, other.advised);
        self.advised = [
            client.into_iter().chain(other_client).reduce(f64::min),
            server.into_iter().chain(other_server).reduce(f64::max),
        ];
        self.is_other_end &= other.is_other_end;
        self
    }
}
