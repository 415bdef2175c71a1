//! Whose turn it is on a connection, and so what happened to bytes of ours: every class is decided here.
//!
//! A connection takes turns: one side asks, the other acknowledges and answers. What a record shows of
//! that is in the socket: how far our bytes are acknowledged, what came since and whether it came before
//! that acknowledgement, how far the application has read, what its first bytes were. **Order decides**;
//! a clock only where nothing else is left, and then the event says [`Certainty::Inferred`].
//!
//! What it amounts to, row by row, first match first (`docs/classes.md` has the table for people, and
//! the tests below have it for the compiler). Of a client's bytes:
//!
//! | they were written | and then | class |
//! |---|---|---|
//! | with words that end a conversation | anything | `farewell` |
//! | with words that ask nothing | the peer's FIN or RST | `stale_probe` |
//! | on a connection that was never answered on | the peer's FIN | `unused_close` |
//! | after the peer's FIN or its farewell, its answer read | anything | `stale_write` |
//! | after the peer's FIN, its answer unread or ours not acknowledged | an acknowledgement, or RST | `half_close`, `early_response` |
//! | before the peer's FIN came, which does not acknowledge them; no answer had begun | anything | `fin_crossed` |
//! | likewise, but part is acknowledged or an answer had begun | anything | `early_response` |
//! | and acknowledged | FIN without an answer | `read_and_closed` at the peer's timeout, else `premature_close` |
//! | after a turn was complete | RST of a live socket | `unread_close`, if at once or at the peer's timeout |
//! | likewise | RST of none, or nothing | `silent_drop` |
//! | on a socket that an RST had ended | an error of the call | `write_after_reset` |
//! | otherwise | RST | `mid_stream_reset` |
//!
//! The surprise: in ESTABLISHED an RST's own ACK is not yet applied when it is seen, so `snd_una` may be
//! too low there.

use std::time::Duration;

use finrace_ebpf::abi::flag;
use finrace_ebpf::decide::{FEW_BYTES, distance};

use super::event::{Event, Ticks, Word};
use super::model::{
    Certainty, Class, Closer, Evidence, How, Incident, Nanos, Outcome, Process, Read, Role,
};
use super::owner::Owner;

/// Beside a round trip: what comes this soon after another thing may be one with it. Where nothing but
/// time is left to tell, and for what a close says of a timeout; such a class is inferred.
pub const AT_ONCE: Duration = Duration::from_millis(50);

/// Where no hook sees sockets end: an RST this soon after a small write may have come before the close
/// that makes it a farewell: on loopback it is there before the write returns.
pub const BEFORE_CLOSE: Duration = Duration::from_millis(1);

/// Within this time, an event loop has dealt with the RST that woke it.
const REACTION: Duration = Duration::from_millis(10);

/// What may come unread with a FIN and still be the reason of an idle close in words, which some
/// servers send: `PostgreSQL` 15's for `idle_session_timeout` takes 116 bytes. Makes no class.
const IDLE_MESSAGE_BYTES: u32 = 192;

/// Linux's `ETIMEDOUT`, in `sk_err` when the kernel gave up on a connection.
const ETIMEDOUT: u32 = 110;

/// `ENETUNREACH`, `EHOSTDOWN`, `EHOSTUNREACH`: in its place where ICMP had told why nobody answers
/// (`tcp_write_err` prefers `sk_err_soft`, v6.12 `net/ipv4/tcp_timer.c`).
const UNREACHABLE: [u32; 3] = [101, 112, 113];

/// What holds for a whole run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub ticks: Ticks,
    /// A gap longer than this makes a write a reuse.
    pub threshold: Duration,
    /// A hook sees writes: what it did not record did not happen.
    pub sees_writes: bool,
    /// A hook sees sockets end: what a socket's owner knew by then is told.
    pub sees_ends: bool,
    /// When the programs were attached.
    pub start: Nanos,
}

/// A write after a gap, remembered until the connection shows what became of it.
#[derive(Clone, Debug)]
pub struct Asked {
    pub time: Nanos,
    pub role: Role,
    pub kind: AskedKind,
    pub word: Word,
    /// Bytes of the first write.
    pub bytes: u32,
    /// `write_seq` before it: the sequence number of its first byte.
    pub start: u32,
    /// `rcv_nxt` then: an answer moves it.
    pub rcv_nxt: u32,
    /// What of the peer's the application had not read then.
    pub unread: u32,
    /// Bytes of the peer's last segment before it; 0 where that is not known.
    pub last_heard: u32,
    /// From our last data before it to the peer's.
    pub silence: Duration,
    /// Whether the peer had ever sent a byte.
    pub is_used: bool,
    /// Segments with data sent and received before it.
    pub segs_out: u32,
    pub segs_in: u32,
    pub owner: Owner,
    pub process: Option<Process>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskedKind {
    /// We spoke after this long a gap.
    Gap(Duration),
    /// The peer spoke after this long a silence, and we at once: maybe our reply to its farewell,
    /// or a request that came just after it.
    Reply(Duration),
}

/// What came back for a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    None,
    /// Bytes that do not acknowledge it: the peer's parting words, sent before they had it.
    Parting,
    Answered,
}

impl Asked {
    /// As a record of a write tells it.
    pub fn of(event: &Event, role: Role, kind: AskedKind, silence: Duration) -> Self {
        let raw = &event.raw;
        Self {
            time: event.time,
            role,
            kind,
            word: event.word(),
            bytes: raw.size,
            start: raw.write_seq,
            rcv_nxt: raw.rcv_nxt,
            unread: event.unread(false),
            last_heard: event.last_heard(),
            silence,
            is_used: raw.bytes_received > 0,
            segs_out: raw.data_segs_out,
            segs_in: raw.data_segs_in,
            owner: event.owner,
            process: event.process(),
        }
    }

    /// The gap before it, if it may have been a request. After the peer's farewell, the silence is.
    pub fn gap(&self) -> Option<Duration> {
        match self.kind {
            _ if !self.word.may_ask() => None,
            AskedKind::Gap(_) if self.came_after_words() => Some(self.silence),
            AskedKind::Gap(gap) => Some(gap),
            AskedKind::Reply(silence) if !self.is_short() || self.unread > 0 => Some(silence),
            AskedKind::Reply(_) => None,
        }
    }

    /// The gap before it, if it was an exchange and no farewell: what a reuse says.
    pub fn reuse_gap(&self) -> Option<Duration> {
        match (self.role, self.kind) {
            _ if self.word == Word::Farewell => None,
            (Role::Client, AskedKind::Gap(gap)) | (Role::Server, AskedKind::Reply(gap)) => {
                Some(gap)
            }
            _ => None,
        }
    }

    /// Whether a close that follows must say whether it asked anything.
    pub fn is_doubtful(&self) -> bool {
        self.word.is_doubtful() && self.is_short()
    }

    /// Short enough to be anything but a request.
    pub fn is_short(&self) -> bool {
        self.bytes <= FEW_BYTES
    }

    /// Whether the peer's last words came after a silence and were still unread: nobody had asked for
    /// them, so they were its farewell, and this was written in ignorance of it.
    fn came_after_words(&self) -> bool {
        // The first segment that ever came on a connection answers something.
        self.unread > 0
            && self.unread <= IDLE_MESSAGE_BYTES
            && self.segs_in != 1
            && self.silence > Duration::ZERO
            && (self.word != Word::Unknown || self.unread <= FEW_BYTES)
    }

    /// Whether it was written with an answer unread that somebody had asked for: more of the same, as an
    /// upload goes on that was answered early.
    fn continues(&self) -> bool {
        self.unread > 0 && !self.came_after_words() && self.word != Word::Request
    }

    /// Whether nothing was written after it, up to this event.
    fn is_last(&self, event: &Event) -> bool {
        event.raw.write_seq.wrapping_sub(self.start) == self.bytes
    }

    /// Bytes received since; `fin` if the peer's FIN is counted in `rcv_nxt`.
    fn heard(&self, event: &Event, fin: bool) -> u32 {
        event.raw.rcv_nxt.wrapping_sub(self.rcv_nxt).saturating_sub(fin.into())
    }

    /// What came back. Bytes that acknowledge it and come after it are its answer, however few.
    fn answer(&self, event: &Event, ticks: Ticks, fin: bool) -> Answer {
        let raw = &event.raw;
        let heard = self.heard(event, fin);
        if heard == 0 {
            return Answer::None;
        }
        if raw.snd_una == self.start {
            return Answer::Parting;
        }
        let later = event.acked_after_heard(ticks);
        if later && self.is_last(event) { Answer::Parting } else { Answer::Answered }
    }
}

/// What is known of a connection beside the record at hand.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    pub role: Role,
    /// Its last write after a gap.
    pub asked: Option<&'a Asked>,
    /// The server's end as it closed, where that is on this host.
    pub server: Option<ServerEnd>,
    pub settings: Settings,
}

/// How far a server had got when it closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerEnd {
    /// Its kernel, and its application.
    pub received: u32,
    pub read: u32,
}

/// What a server had of a request when it closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Had {
    /// It came later.
    Nothing,
    /// Its kernel alone, or its application some of it, or all.
    Unread,
    Part,
    All,
}

impl Known<'_> {
    /// What the server had of what began at `start`: on this host.
    fn had(&self, start: u32, end: u32) -> Option<Had> {
        let ServerEnd { received, read } = self.server?;
        Some(if distance(received, start) <= 0 {
            Had::Nothing
        } else if distance(read, start) <= 0 {
            Had::Unread
        } else if distance(read, end) < 0 {
            Had::Part
        } else {
            Had::All
        })
    }

    /// The gap before a request of ours that was not told: a write without a record had none, unless no
    /// hook was there to see it. Then stamps are all there is, and cannot tell a long upload from one.
    fn unseen_gap(&self, stamps: &Stamps) -> Option<Duration> {
        let gap = Some(stamps.sent_after).filter(|gap| *gap > self.settings.threshold);
        if self.settings.sees_writes { None } else { gap }
    }
}

/// Durations of a record's stamps.
#[derive(Clone, Copy, Debug)]
pub struct Stamps {
    /// Since our last data.
    pub sent_ago: Duration,
    /// Since the peer's last data.
    pub heard_ago: Duration,
    /// Our last data after the peer's, by stamps: zero if it came before.
    pub sent_after: Duration,
    /// The peer's last data after ours.
    pub heard_after: Duration,
}

impl Stamps {
    pub fn of(event: &Event, ticks: Ticks) -> Self {
        let raw = &event.raw;
        Self {
            sent_ago: ticks.between(raw.lsndtime, raw.jiffies),
            heard_ago: ticks.between(raw.lrcvtime, raw.jiffies),
            sent_after: ticks.between(raw.lrcvtime, raw.lsndtime),
            heard_after: ticks.between(raw.lsndtime, raw.lrcvtime),
        }
    }

    pub fn idle(&self) -> Duration {
        self.sent_ago.min(self.heard_ago)
    }
}

/// What a close says about an idle timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    pub closer: Closer,
    pub evidence: Evidence,
    pub idle: Duration,
}

/// What happened to bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    pub class: Class,
    pub certainty: Certainty,
    pub read: Read,
    pub gap: Option<Duration>,
    /// The silence at the end, where only the peer's timeout can tell whether it acted on the request.
    pub doubt: Option<Duration>,
}

impl Told {
    const fn new(class: Class, certainty: Certainty, gap: Option<Duration>) -> Self {
        Self { class, certainty, read: Read::Unknown, gap, doubt: None }
    }

    const fn certain(class: Class, gap: Option<Duration>) -> Self {
        Self::new(class, Certainty::Certain, gap)
    }

    const fn inferred(class: Class, gap: Option<Duration>) -> Self {
        Self::new(class, Certainty::Inferred, gap)
    }
}

/// Bytes of ours at risk on a socket past the peer's FIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtRisk {
    None,
    /// A request that was on its way when the FIN came, or was written after it.
    Request {
        class: Class,
        certainty: Certainty,
        gap: Option<Duration>,
        /// What was written, and whether that leaves a doubt that it asked anything.
        word: Word,
        is_doubtful: bool,
    },
    /// Last words, by what they say.
    Farewell,
    /// A ping or a test query.
    Probe,
    /// Continue what was under way at the FIN.
    Continued,
}

/// The peer's FIN, ESTABLISHED->CLOSE_WAIT: `tcp_ack` has run, `rcv_nxt` counts the FIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtFin {
    pub ended: Ended,
    /// What an outcome is waited for.
    pub at_risk: AtRisk,
    /// What is decided already.
    pub told: Option<Told>,
}

pub fn peer_fin(event: &Event, known: Known<'_>) -> AtFin {
    let Known { role, asked, settings: Settings { ticks, threshold, .. }, .. } = known;
    let stamps = Stamps::of(event, ticks);
    let ended = |evidence, idle| Ended { closer: Closer::Peer, evidence, idle };
    if let Some(ended) = last_words(event, known, &stamps) {
        let at_risk = if event.unacked() == 0 { AtRisk::None } else { AtRisk::Farewell };
        return AtFin { ended, at_risk, told: None };
    }
    let quiet = quiet_fin(event, known, &stamps);
    let nothing = AtFin { ended: quiet, at_risk: AtRisk::None, told: None };
    if role != Role::Client {
        return nothing;
    }
    let open = asked.filter(|asked| {
        asked.answer(event, ticks, true) != Answer::Answered
            && (asked.is_last(event) || asked.heard(event, true) == 0)
    });
    if let Some(asked) = open.filter(|asked| !asked.word.may_ask()) {
        return asks_nothing(event, asked, &stamps, threshold);
    }
    if event.unacked() != 0 {
        return crossed(event, known, open, &stamps);
    }
    if let Some(asked) = open.filter(|asked| asked.gap().is_some() && !asked.continues()) {
        // The words ended the idle, however late the FIN came.
        let ended = if asked.came_after_words() {
            ended(Evidence::UpperBound, asked.silence)
        } else {
            ended(Evidence::Unanswered, stamps.sent_ago)
        };
        let told = Some(unanswered(event, known, asked));
        return AtFin { ended, at_risk: AtRisk::None, told };
    }
    if stamps.sent_after > Duration::ZERO && open.is_none_or(|asked| asked.gap().is_none()) {
        return spoke_last(event, known, &stamps);
    }
    nothing
}

/// Words that ask nothing were our last, and met the peer's FIN: an idle close, since when we last
/// said or heard anything that counts.
fn asks_nothing(event: &Event, asked: &Asked, stamps: &Stamps, threshold: Duration) -> AtFin {
    let is_idle = stamps.idle() > threshold;
    let evidence = if is_idle { Evidence::Idle } else { Evidence::UpperBound };
    let before = match asked.kind {
        AskedKind::Gap(gap) => gap,
        AskedKind::Reply(silence) => silence,
    };
    let idle = if is_idle { stamps.idle() } else { before + stamps.sent_ago };
    let met_the_close = event.unacked() != 0 || asked.word == Word::Probe;
    AtFin {
        ended: Ended { closer: Closer::Peer, evidence, idle },
        at_risk: if event.unacked() != 0 { AtRisk::Probe } else { AtRisk::None },
        told: (met_the_close && event.unacked() == 0)
            .then_some(Told::certain(Class::StaleProbe, Some(before))),
    }
}

/// A FIN that leaves bytes of ours unacknowledged: its sender had not got them.
fn crossed(event: &Event, known: Known<'_>, open: Option<&Asked>, stamps: &Stamps) -> AtFin {
    let raw = &event.raw;
    let early = |idle| AtFin {
        ended: Ended { closer: Closer::Peer, evidence: Evidence::Unanswered, idle },
        at_risk: AtRisk::Continued,
        told: Some(Told::certain(Class::EarlyResponse, None)),
    };
    let request = |class, certainty, gap: Option<Duration>, word: Word, is_doubtful| AtFin {
        ended: Ended {
            closer: Closer::Peer,
            evidence: Evidence::Unanswered,
            idle: gap.unwrap_or(stamps.idle()),
        },
        at_risk: AtRisk::Request { class, certainty, gap, word, is_doubtful },
        told: None,
    };
    // A FIN that acknowledges part of a request comes from a server that has read that part.
    if let Some(asked) = open.filter(|asked| asked.start == raw.snd_una) {
        let Some(gap) = asked.gap() else { return early(stamps.idle()) };
        if asked.continues() {
            return early(stamps.idle());
        }
        let class = if !asked.is_used {
            Class::UnusedClose
        } else if asked.came_after_words() {
            Class::StaleWrite
        } else {
            Class::FinCrossed
        };
        return request(class, Certainty::Certain, Some(gap), asked.word, asked.is_doubtful());
    }
    if open.is_none()
        && let Some(gap) = known.unseen_gap(stamps)
    {
        return request(Class::FinCrossed, Certainty::Inferred, Some(gap), Word::Unknown, true);
    }
    // No gap before it. A new turn all the same if the one before was complete: the peer spoke before
    // this flight began, we have read what it said, and none of the flight is acknowledged.
    let peer_spoke_since = raw.rcv_nxt.wrapping_sub(raw.rcv_wup) > 1;
    let is_fresh = raw.sent_us != 0 && raw.sent_us == raw.acked_us;
    let has_read = event.unread(true) == 0;
    if is_fresh && has_read && !peer_spoke_since && raw.bytes_received > 1 {
        let gap = Some(stamps.sent_after);
        return request(Class::FinCrossed, Certainty::Inferred, gap, Word::Unknown, false);
    }
    if raw.bytes_received <= 1
        && is_fresh
        && raw.snd_nxt.wrapping_sub(raw.snd_una) == event.unacked()
    {
        let gap = Some(stamps.sent_after);
        return request(Class::UnusedClose, Certainty::Inferred, gap, Word::Unknown, false);
    }
    early(stamps.idle())
}

/// A request that was acknowledged and not answered, and the peer's FIN.
fn unanswered(event: &Event, known: Known<'_>, asked: &Asked) -> Told {
    let gap = asked.gap();
    if !asked.is_used {
        return Told::certain(Class::PrematureClose, gap);
    }
    if asked.came_after_words() {
        return Told::certain(Class::StaleWrite, gap);
    }
    let at_once = event.time.since(asked.time) <= event.rtt() + AT_ONCE;
    match known.had(asked.start, asked.start.wrapping_add(asked.bytes)) {
        // On the wire as if it had been read.
        Some(Had::Unread) if at_once => Told::certain(Class::ReadAndClosed, gap),
        Some(Had::Unread) => Told::certain(Class::UnreadClose, gap),
        // At the peer's timeout or not: the table knows its estimate.
        _ if at_once => Told { doubt: gap, ..Told::inferred(Class::ReadAndClosed, gap) },
        _ => Told::certain(Class::PrematureClose, gap),
    }
}

/// We spoke last, without a gap that was told, and the FIN acknowledges it.
fn spoke_last(event: &Event, known: Known<'_>, stamps: &Stamps) -> AtFin {
    let Settings { ticks, threshold, .. } = known.settings;
    let gap = known.unseen_gap(stamps);
    let ended = |evidence| Ended { closer: Closer::Peer, evidence, idle: stamps.sent_ago };
    let at_once = event.rtt() + ticks.duration(2);
    if gap.is_none() && stamps.sent_ago > threshold {
        // What follows the peer's words at once and gets no answer is a control frame (WINDOW_UPDATE,
        // pong), and the close an idle one; else a server that gave up. Of the latter nothing is claimed.
        let evidence =
            if stamps.sent_after <= at_once { Evidence::Idle } else { Evidence::Unanswered };
        return AtFin { ended: ended(evidence), at_risk: AtRisk::None, told: None };
    }
    let told = if gap.is_some() && stamps.sent_ago <= event.rtt() + AT_ONCE {
        Told { doubt: gap, ..Told::inferred(Class::ReadAndClosed, gap) }
    } else {
        Told::inferred(Class::PrematureClose, gap)
    };
    AtFin { ended: ended(Evidence::Unanswered), at_risk: AtRisk::None, told: Some(told) }
}

/// The peer's FIN soon after last words of ours, and before our own FIN.
fn last_words(event: &Event, known: Known<'_>, stamps: &Stamps) -> Option<Ended> {
    let ticks = known.settings.ticks;
    let ours = known.asked.filter(|asked| {
        let is_named = asked.word == Word::Farewell;
        let is_reply = matches!(asked.kind, AskedKind::Reply(_));
        let soon = event.time.since(asked.time) <= event.rtt() + AT_ONCE;
        asked.is_last(event)
            && (is_named || (asked.is_doubtful() && is_reply && soon && asked.unread == 0))
            && (asked.answer(event, ticks, true) != Answer::Answered
                || (stamps.heard_ago <= AT_ONCE && asked.heard(event, true) <= FEW_BYTES))
    })?;
    Some(parted(ours))
}

/// Who ended the idle, where our last words were these.
fn parted(ours: &Asked) -> Ended {
    let peer_first = |idle| Ended { closer: Closer::Peer, evidence: Evidence::UpperBound, idle };
    match ours.kind {
        // We have replied to the peer's.
        AskedKind::Reply(silence) => peer_first(silence),
        // Alerts of one TLS connection are as long in either direction.
        AskedKind::Gap(_) if ours.silence > Duration::ZERO && ours.last_heard == ours.bytes => {
            peer_first(ours.silence)
        }
        AskedKind::Gap(idle) => Ended { closer: Closer::Local, evidence: Evidence::Idle, idle },
    }
}

/// A FIN of the peer with nothing at risk: is it an idle close?
fn quiet_fin(event: &Event, known: Known<'_>, stamps: &Stamps) -> Ended {
    let Settings { threshold, .. } = known.settings;
    let raw = &event.raw;
    let ended = |evidence, idle| Ended { closer: Closer::Peer, evidence, idle };
    // `bytes_received` counts the FIN.
    if raw.bytes_received <= 1 && raw.data_segs_out == 0 {
        return ended(Evidence::Unused, stamps.idle());
    }
    if stamps.idle() > threshold {
        return ended(Evidence::Idle, stamps.idle());
    }
    // Words came with the FIN, long after our last data: an answer that took long, or a farewell?
    if stamps.sent_ago <= threshold || is_first_answer(event, known.asked) {
        return ended(Evidence::AfterData, stamps.idle());
    }
    if let Some(silence) = event.silence_since_ack() {
        // We had acknowledged something before: an answer, `silence` ago.
        if silence > threshold {
            let is_tight = stamps.sent_ago.saturating_sub(silence) <= AT_ONCE;
            let evidence = if is_tight { Evidence::Idle } else { Evidence::UpperBound };
            return ended(evidence, stamps.sent_ago);
        }
        // Or just now, a part of the same words: that says nothing of them.
        if silence > REACTION {
            return ended(Evidence::AfterData, stamps.idle());
        }
    }
    if event.unread(true) > IDLE_MESSAGE_BYTES {
        return ended(Evidence::AfterData, stamps.idle());
    }
    ended(Evidence::UpperBound, stamps.sent_ago)
}

/// Whether the peer's last segment is the first since our request, or since the connection began: then
/// it is the answer.
fn is_first_answer(event: &Event, asked: Option<&Asked>) -> bool {
    let segs_in = event.raw.data_segs_in;
    segs_in != 0
        && (segs_in == 1 || asked.is_some_and(|asked| segs_in.wrapping_sub(asked.segs_in) == 1))
}

/// A write after the peer's FIN. `fin` is the record of the FIN, `at_fin` what was said of it.
pub fn late_write(
    event: &Event,
    fin: Option<&Event>,
    ended: Option<Ended>,
    known: Known<'_>,
) -> AtRisk {
    let Settings { ticks, threshold, .. } = known.settings;
    let word = event.word();
    let raw = &event.raw;
    if word == Word::Farewell {
        return AtRisk::Farewell;
    }
    // A farewell with the FIN does not end the idle: our own last data counts then.
    let after_words = ended.is_some_and(|ended| ended.evidence == Evidence::UpperBound);
    let since = if after_words { raw.lsndtime } else { raw.lrcvtime };
    let gap = ticks.between(since, raw.jiffies);
    if !word.may_ask() {
        return AtRisk::Probe;
    }
    let request = |class, certainty| AtRisk::Request {
        class,
        certainty,
        gap: Some(gap),
        word,
        is_doubtful: word.is_doubtful() && raw.size <= FEW_BYTES,
    };
    let stamps = Stamps::of(event, ticks);
    // `bytes_received` counts the FIN.
    if raw.bytes_received <= 1 {
        return request(Class::UnusedClose, Certainty::Certain);
    }
    if word == Word::Request {
        return request(Class::StaleWrite, Certainty::Certain);
    }
    // Ours was the last word, by stamps: what follows continues it, unless nothing came of it so long
    // that it was none.
    let was_open = fin.is_some_and(|fin| Stamps::of(fin, ticks).sent_after > Duration::ZERO)
        && ended.is_none_or(|ended| ended.evidence != Evidence::Idle);
    if was_open || stamps.sent_after > Duration::ZERO && fin.is_none() && gap <= threshold {
        return AtRisk::Continued;
    }
    let unread = event.unread(true);
    // It has read the peer's end, and writes all the same: not in ignorance of it.
    if event.has_read_fin() {
        return AtRisk::Continued;
    }
    // An answer is unread: more of what was answered early. Words after a silence are none.
    if unread > 0 && !(after_words && unread <= FEW_BYTES) {
        return AtRisk::Continued;
    }
    let certainty = if gap > threshold { Certainty::Certain } else { Certainty::Inferred };
    request(Class::StaleWrite, certainty)
}

/// Bytes written after the FIN that no hook saw: the sequence numbers tell that there are, the stamps
/// when the last were sent.
pub fn unseen_write(event: &Event, fin: &Event, ended: Option<Ended>, known: Known<'_>) -> AtRisk {
    let Settings { ticks, threshold, sees_writes, .. } = known.settings;
    let under_way = distance(fin.raw.lsndtime, fin.raw.lrcvtime) > 0
        && ended.is_none_or(|ended| ended.evidence != Evidence::Idle);
    let since = match ended {
        Some(Ended { evidence: Evidence::UpperBound, .. }) => fin.raw.lsndtime,
        _ => fin.raw.lrcvtime,
    };
    let gap = ticks.between(since, event.raw.lsndtime);
    // With a hook, what left no record was not the first write since the FIN.
    if under_way || (gap <= threshold && !sees_writes) {
        return AtRisk::Continued;
    }
    let certainty = if gap > threshold { Certainty::Certain } else { Certainty::Inferred };
    AtRisk::Request {
        class: if fin.raw.bytes_received <= 1 { Class::UnusedClose } else { Class::StaleWrite },
        certainty,
        gap: Some(gap),
        word: Word::Unknown,
        is_doubtful: true,
    }
}

/// How what was at risk past a FIN came out.
#[derive(Clone, Copy, Debug)]
pub struct End {
    /// Bytes that were at risk.
    pub bytes: u32,
    pub outcome: Outcome,
    /// Whether the application has learnt of the end since, by reading it; `None`: not seen yet.
    pub has_noticed: Option<bool>,
    /// Requests of this length were answered before.
    pub is_habit: bool,
    /// Nothing can be missing.
    pub is_known: bool,
    pub read: Read,
}

/// What it was; `None` while only the application's next step can tell.
pub fn outcome(at_risk: AtRisk, end: End) -> Option<Told> {
    let told = match at_risk {
        AtRisk::Farewell => Told::certain(Class::Farewell, None),
        AtRisk::Probe => Told::certain(Class::StaleProbe, None),
        AtRisk::Request { class, certainty, gap, word, is_doubtful } => {
            let may_part = is_doubtful && end.bytes <= FEW_BYTES && !end.is_habit;
            match end.has_noticed {
                // Followed by our own close with nothing in between: last words.
                Some(false) if may_part => Told::inferred(Class::Farewell, gap),
                None if may_part => return None,
                _ => {
                    let certainty =
                        if word == Word::Request { Certainty::Certain } else { certainty };
                    Told { read: end.read, ..Told::new(class, certainty, gap) }
                }
            }
        }
        AtRisk::Continued if end.outcome == Outcome::Acked && end.is_known => {
            Told::certain(Class::HalfClose, None)
        }
        AtRisk::Continued if end.has_noticed == Some(false) && end.bytes <= FEW_BYTES => {
            Told::inferred(Class::Farewell, None)
        }
        AtRisk::Continued if end.outcome == Outcome::Reset => {
            Told::inferred(Class::EarlyResponse, None)
        }
        AtRisk::Continued | AtRisk::None => Told::inferred(Class::Unknown, None),
    };
    Some(told)
}

/// Whether an application can have read what an RST answers: no, if it is the answer of no socket
/// (without time stamps, though they were agreed on) to one segment, sent once, of which nothing was
/// acknowledged. More segments, or one more time, and an earlier one may have been read.
pub fn read_by(event: &Event, start: u32, segs_out: u32) -> Read {
    let raw = &event.raw;
    let is_stateless = event.has(flag::TSTAMP_OK) && !event.has(flag::SAW_TSTAMP);
    let is_single = raw.data_segs_out.wrapping_sub(segs_out) == 1;
    if is_stateless && is_single && raw.snd_una == start { Read::Never } else { Read::Unknown }
}

/// What our own first FIN left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtOurClose {
    pub ended: Ended,
    pub told: Option<Told>,
    /// A few last bytes before the FIN were a farewell, not a request.
    pub is_farewell: bool,
}

impl AtOurClose {
    const fn quiet(ended: Ended) -> Self {
        Self { ended, told: None, is_farewell: false }
    }
}

/// Our own FIN, ESTABLISHED->FIN_WAIT1; not queued yet, so `write_seq` does not count it.
pub fn our_fin(event: &Event, known: Known<'_>) -> AtOurClose {
    let Known { role, asked, settings: Settings { ticks, threshold, .. }, .. } = known;
    let stamps = Stamps::of(event, ticks);
    let raw = &event.raw;
    let ended = |closer, evidence, idle| Ended { closer, evidence, idle };

    if let Some(told) = gave_up(event, known, &stamps) {
        let idle = told.gap.unwrap_or(stamps.heard_ago);
        let ended = ended(Closer::Local, Evidence::Unanswered, idle);
        return AtOurClose { ended, told: Some(told), is_farewell: false };
    }
    if let Some(ended) = parting_words(event, known, &stamps) {
        return AtOurClose { ended, told: None, is_farewell: true };
    }
    if let Some(lost) = farewelled(event, known, &stamps) {
        return lost;
    }
    // The peer spoke after a silence, in few bytes, and we close on them: its farewell, unless they were
    // the first answer.
    let heard = match event.last_heard() {
        0 => raw.rcv_nxt.wrapping_sub(raw.rcv_wup),
        last => last,
    };
    if (1..=FEW_BYTES).contains(&heard)
        && stamps.heard_ago <= AT_ONCE
        && stamps.sent_ago > threshold
        && stamps.heard_after > threshold
        && !(role == Role::Server && event.unread(false) > 0)
        && !is_first_answer(event, asked)
    {
        return AtOurClose::quiet(ended(Closer::Peer, Evidence::UpperBound, stamps.sent_ago));
    }
    let speaks_last = stamps.sent_after > Duration::ZERO;
    let awaits = match role {
        Role::Client => speaks_last,
        Role::Server => stamps.heard_after > Duration::ZERO,
        Role::Unknown => false,
    };
    let (evidence, idle) = if raw.bytes_received == 0 && raw.data_segs_out == 0 {
        (Evidence::Unused, stamps.idle())
    } else if event.unacked() != 0 && stamps.idle() > threshold {
        (Evidence::AfterData, stamps.idle())
    } else if awaits && stamps.idle() > threshold {
        (Evidence::Unanswered, stamps.idle())
    } else if stamps.idle() > threshold {
        (Evidence::Idle, stamps.idle())
    } else if stamps.sent_ago <= AT_ONCE
        && stamps.heard_ago > threshold
        && had_answered(event, role)
    {
        (Evidence::UpperBound, stamps.heard_ago)
    } else {
        (Evidence::AfterData, stamps.idle())
    };
    AtOurClose::quiet(ended(Closer::Local, evidence, idle))
}

/// Whether our last words, just before our FIN, were a farewell and no answer that took long. A server
/// can tell while they are on their way: the client's latest segment was an acknowledgement alone, and so
/// one of an earlier answer. A client asks, so the words of one that closes at once were none.
fn had_answered(event: &Event, role: Role) -> bool {
    let raw = &event.raw;
    role != Role::Server || (event.unacked() != 0 && raw.snd_wl1 == raw.rcv_nxt)
}

/// Our own close after last words of ours, or right after a few bytes: those were a farewell, or the
/// reply to one.
fn parting_words(event: &Event, known: Known<'_>, stamps: &Stamps) -> Option<Ended> {
    let ticks = known.settings.ticks;
    let ours = known.asked.filter(|asked| {
        let at_once = event.time.since(asked.time) <= AT_ONCE + event.rtt();
        if asked.word == Word::Farewell {
            return true; // however late our own FIN comes: a TLS server waits for its client's
        }
        // A server that answers a request and closes says no farewell; what nobody asked for may be.
        if asked.role == Role::Server {
            return matches!(asked.kind, AskedKind::Gap(_)) && at_once && event.unread(false) == 0;
        }
        if !asked.is_doubtful() || !at_once || asked.unread > 0 {
            return false;
        }
        // What follows a short answer is the farewell, not what came before the answer.
        match asked.answer(event, ticks, false) {
            Answer::None => true,
            Answer::Parting => asked.is_last(event) && stamps.heard_ago <= AT_ONCE,
            Answer::Answered => {
                asked.is_last(event)
                    && matches!(asked.kind, AskedKind::Gap(_))
                    && event.raw.acked_us == 0
                    && asked.heard(event, false) <= FEW_BYTES
                    && stamps.heard_ago <= AT_ONCE
            }
        }
    })?;
    Some(parted(ours))
}

/// Whether a client's request met the peer's farewell, so that we close first.
fn farewelled(event: &Event, known: Known<'_>, stamps: &Stamps) -> Option<AtOurClose> {
    let ticks = known.settings.ticks;
    // Who writes with the peer's words unread, reads them then, and closes, has waited for an answer.
    let has_waited = |asked: &Asked| asked.came_after_words() && event.unread(false) == 0;
    let asked = known.asked.filter(|asked| {
        known.role == Role::Client && (!asked.is_doubtful() || has_waited(asked))
    })?;
    let gap = asked.gap()?;
    let lost = |told, closer, evidence, idle| AtOurClose {
        ended: Ended { closer, evidence, idle },
        told: Some(told),
        is_farewell: false,
    };
    let answer = asked.answer(event, ticks, false);
    let at_once = event.time.since(asked.time) <= event.rtt() + AT_ONCE;
    match (answer, asked.kind) {
        // Written with the farewell unread, and nothing came since.
        (Answer::None | Answer::Parting, _) if asked.came_after_words() => {
            let told = Told::certain(Class::StaleWrite, Some(gap));
            Some(lost(told, Closer::Peer, Evidence::UpperBound, asked.silence))
        }
        (Answer::None, AskedKind::Reply(silence)) if at_once && asked.last_heard <= FEW_BYTES => {
            if event.raw.snd_una == asked.start {
                let told = Told::inferred(Class::FinCrossed, Some(gap));
                return Some(lost(told, Closer::Peer, Evidence::Unanswered, gap));
            }
            let told = Told::inferred(Class::ReadAndClosed, Some(gap));
            let told = Told { doubt: Some(silence), ..told };
            Some(lost(told, Closer::Local, Evidence::AfterData, stamps.idle()))
        }
        (Answer::Parting, AskedKind::Gap(_)) => {
            let told = Told::certain(Class::FinCrossed, Some(gap));
            Some(lost(told, Closer::Peer, Evidence::Unanswered, gap))
        }
        _ => None,
    }
}

/// Whether a client's request after a gap was never acknowledged, although it was sent again. The
/// gap is known only from its record: a retransmission touches `lsndtime`.
fn gave_up(event: &Event, known: Known<'_>, stamps: &Stamps) -> Option<Told> {
    let Known { role, asked, settings, .. } = known;
    let raw = &event.raw;
    if role != Role::Client || event.unacked() == 0 || raw.retransmits == 0 {
        return None;
    }
    let untouched = if let Some(asked) = asked {
        asked.gap().is_some() && raw.snd_una == asked.start && raw.rcv_nxt == asked.rcv_nxt
    } else {
        // Nothing at all, not even an ACK, since long before our last (re)transmission.
        !settings.sees_writes
            && distance(raw.lrcvtime, raw.rcv_tstamp) >= 0
            && stamps.sent_after > settings.threshold
    };
    untouched.then(|| Told::inferred(Class::SilentDrop, asked.and_then(Asked::gap)))
}

/// A request that hangs: sent for the fourth time, and nothing came.
pub fn hangs(event: &Event, known: Known<'_>) -> Option<Told> {
    gave_up(event, known, &Stamps::of(event, known.settings.ticks))
        .filter(|told| told.gap.is_some())
}

/// The kernel gave up: ->CLOSE with `ETIMEDOUT`.
pub fn timed_out(event: &Event, known: Known<'_>) -> Option<AtOurClose> {
    if how(event) != How::Timeout {
        return None;
    }
    let stamps = Stamps::of(event, known.settings.ticks);
    let told = gave_up(event, known, &stamps);
    let idle = told.and_then(|told| told.gap).unwrap_or(stamps.heard_ago);
    let ended = Ended { closer: Closer::Local, evidence: Evidence::Unanswered, idle };
    Some(AtOurClose { ended, told, is_farewell: false })
}

/// What an RST met in ESTABLISHED.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtReset {
    pub ended: Ended,
    pub told: Option<Told>,
    /// Only what the application does next tells whether it asked anything: if it lets go of the socket
    /// without looking, those were last words.
    pub is_doubtful: bool,
}

/// RST in ESTABLISHED. What sent it shows in the timestamp option: a live socket carries it where
/// it was negotiated, a reset without a socket does not (`tcp_v4_send_reset` against
/// `tcp_send_active_reset`, v6.12 net/ipv4).
pub fn reset(event: &Event, known: Known<'_>) -> AtReset {
    let Known { role, asked, settings: Settings { ticks, threshold, .. }, .. } = known;
    let stamps = Stamps::of(event, ticks);
    let raw = &event.raw;
    let ended = |evidence, idle| Ended { closer: Closer::Peer, evidence, idle };
    let at = |told, ended| AtReset { ended, told: Some(told), is_doubtful: false };
    let open = asked.filter(|asked| asked.answer(event, ticks, false) != Answer::Answered);
    if let Some(asked) = open {
        // Our reply to the peer's farewell met a close that would not wait for it.
        let is_reply = matches!(asked.kind, AskedKind::Reply(_)) && asked.gap().is_none();
        if asked.word == Word::Farewell || (is_reply && asked.is_doubtful()) {
            return at(Told::certain(Class::Farewell, None), parted(asked));
        }
        if !asked.word.may_ask() {
            let idle = asked.silence.max(stamps.heard_ago);
            return at(Told::certain(Class::StaleProbe, None), ended(Evidence::Unanswered, idle));
        }
    }
    if role == Role::Client
        && let Some((told, gap)) = reset_of_request(event, known, open, &stamps)
    {
        let is_doubtful = asked.is_none_or(Asked::is_doubtful) && told.class.is_race();
        let is_short = raw.write_seq.wrapping_sub(open.map_or(raw.snd_una, |asked| asked.start));
        let is_doubtful = is_doubtful && is_short <= FEW_BYTES;
        return AtReset { ended: ended(Evidence::Unanswered, gap), told: Some(told), is_doubtful };
    }
    let under_way = stamps.sent_after > Duration::ZERO || stamps.idle() <= threshold;
    let class = if role == Role::Server { Class::ClientGone } else { Class::MidStreamReset };
    if raw.bytes_received == 0 && raw.data_segs_out == 0 {
        AtReset { ended: ended(Evidence::Unused, stamps.idle()), told: None, is_doubtful: false }
    } else if role == Role::Server && stamps.idle() > threshold || !under_way {
        // The other side's word was last, and it left an idle connection.
        AtReset { ended: ended(Evidence::Idle, stamps.idle()), told: None, is_doubtful: false }
    } else {
        at(Told::certain(class, None), ended(Evidence::AfterData, stamps.idle()))
    }
}

/// What an RST did to a client's request, and the gap before that.
fn reset_of_request(
    event: &Event,
    known: Known<'_>,
    open: Option<&Asked>,
    stamps: &Stamps,
) -> Option<(Told, Duration)> {
    let raw = &event.raw;
    let (gap, since) = if let Some(asked) = open.filter(|asked| !asked.continues()) {
        (asked.gap()?, event.time.since(asked.time))
    } else if known.asked.is_some() {
        return None;
    } else {
        // An ACK between the last answer and our last data: several flights, so under way. If all
        // is acknowledged, the last ACK is that of our last data, maybe of the same jiffy.
        let acked_between = event.unacked() != 0
            && distance(raw.rcv_tstamp, raw.lrcvtime) > 0
            && distance(raw.lsndtime, raw.rcv_tstamp) >= 0;
        (known.unseen_gap(stamps).filter(|_| !acked_between)?, stamps.sent_ago)
    };
    if open.is_some_and(|asked| !asked.is_used) {
        return Some((Told::inferred(Class::MidStreamReset, Some(gap)), gap));
    }
    if open.is_some_and(Asked::came_after_words) {
        return Some((Told::certain(Class::StaleWrite, Some(gap)), gap));
    }
    let start = open.map_or(raw.snd_una, |asked| asked.start);
    let never = |told| Told { read: Read::Never, ..told };
    let told = match open.and_then(|_| known.had(start, raw.write_seq)) {
        // Nobody told the client of that close.
        Some(Had::Nothing) => never(Told::certain(Class::SilentDrop, Some(gap))),
        Some(Had::Unread) => never(Told::certain(Class::UnreadClose, Some(gap))),
        Some(Had::Part | Had::All) => Told::certain(Class::MidStreamReset, Some(gap)),
        None if event.has(flag::TSTAMP_OK) && !event.has(flag::SAW_TSTAMP) => Told {
            read: open.map_or(Read::Unknown, |asked| read_by(event, start, asked.segs_out)),
            ..Told::certain(Class::SilentDrop, Some(gap))
        },
        // Long after it was acknowledged: worked on, unless the peer's timeout was due by then.
        None => {
            let is_live = event.has(flag::TSTAMP_OK);
            let class = if is_live { Class::UnreadClose } else { Class::ResetAfterReuse };
            let is_late = since > event.rtt() + AT_ONCE;
            let doubt = is_late.then_some(stamps.heard_ago);
            Told { doubt, ..Told::inferred(class, Some(gap)) }
        }
    };
    Some((told, gap))
}

/// A socket that an RST had ended, as its owner lets go of it. `reset` is the record of the RST.
pub fn write_after_reset(event: &Event, reset: &Event, known: Known<'_>) -> Option<Told> {
    let ticks = known.settings.ticks;
    // Only a write sets it, also one that fails: the RST had left it as it was.
    let has_written = event.raw.app_limited != reset.raw.app_limited;
    // Who learns of the RST and says farewell to a dead socket does so at once.
    let dwell = event.time.since(reset.time);
    let gap = ticks.between(reset.raw.lrcvtime, event.raw.jiffies);
    let certainty = if dwell > AT_ONCE { Certainty::Certain } else { Certainty::Inferred };
    let told =
        Told { read: Read::Never, ..Told::new(Class::WriteAfterReset, certainty, Some(gap)) };
    (has_written && dwell > REACTION).then_some(told)
}

/// Our own abortive close in task context, ESTABLISHED->CLOSE: unread data or `SO_LINGER` 0.
/// `Some(idle)` with it if it threw away a client's request that came after a silence over the
/// threshold.
pub fn our_abort(event: &Event, known: Known<'_>) -> (Option<Duration>, Ended) {
    let Known { role, settings: Settings { ticks, threshold, .. }, .. } = known;
    let stamps = Stamps::of(event, ticks);
    let unread = event.unread(false);
    if let Some(ended) = parting_words(event, known, &stamps) {
        return (None, ended);
    }
    // A few bytes came after a silence, and we did not even read them: the peer's farewell, or on a
    // server maybe a request; the other end tells, or what requests are here.
    let limit = if role == Role::Server { FEW_BYTES } else { IDLE_MESSAGE_BYTES };
    let is_farewell = (1..=limit).contains(&unread)
        && stamps.heard_ago <= AT_ONCE
        && stamps.sent_ago > threshold
        && !(role == Role::Server && known.settings.sees_ends);
    if is_farewell {
        let (closer, idle) = (Closer::Peer, stamps.sent_ago);
        return (None, Ended { closer, evidence: Evidence::UpperBound, idle });
    }
    let thrown_away = (role == Role::Server && unread > 0 && stamps.heard_after > threshold)
        .then_some(stamps.heard_after);
    let evidence = if unread > 0 {
        Evidence::Unanswered
    } else if event.raw.bytes_received == 0 && event.raw.data_segs_out == 0 {
        Evidence::Unused
    } else if stamps.idle() > threshold {
        Evidence::Idle
    } else {
        Evidence::AfterData
    };
    let idle = thrown_away.unwrap_or(stamps.idle());
    (thrown_away, Ended { closer: Closer::Local, evidence, idle })
}

/// An RST for what a server wrote past its client's FIN. Whether it had something to answer: the client
/// had asked last, or what it asked was still unread.
pub fn client_gone(event: &Event, fin: &Event, ticks: Ticks) -> Option<Told> {
    let was_open = Stamps::of(fin, ticks).heard_after > Duration::ZERO || fin.unread(true) > 0;
    let unacked = event.unacked().saturating_sub(event.has(flag::FIN_SENT).into());
    (was_open && unacked > 0).then_some(Told::certain(Class::ClientGone, None))
}

/// RST after a FIN that was not seen: of what was written, only stamps tell.
pub fn reset_of_unfollowed(event: &Event, bytes: u32, settings: &Settings) -> Option<Told> {
    let raw = &event.raw;
    let gap = settings.ticks.between(raw.lrcvtime, raw.lsndtime);
    let is_request = event.role() == Role::Client && bytes > FEW_BYTES && gap > settings.threshold;
    let after_fin = distance(raw.lsndtime, raw.rcv_tstamp) > 0;
    let class = if after_fin { Class::StaleWrite } else { Class::FinCrossed };
    is_request.then(|| Told::inferred(class, Some(gap)))
}

/// Whether a turn was complete when we closed, so that what comes later is a new request: we had answered
/// last, whether just now or long ago.
pub fn was_turn_complete(ended: Ended) -> bool {
    matches!(ended.evidence, Evidence::Idle | Evidence::UpperBound)
}

/// How a close of this state change ended the connection.
pub fn how(event: &Event) -> How {
    let raw = &event.raw;
    let is_timeout = raw.code == ETIMEDOUT || UNREACHABLE.contains(&raw.code);
    if is_timeout { How::Timeout } else { How::Rst }
}

/// What only a known timeout decides. False if nothing happened after all.
pub fn settle(incident: &mut Incident, is_at_timeout: impl Fn(Duration) -> bool) -> bool {
    let is_due = |silence: Option<Duration>| silence.is_some_and(&is_at_timeout);
    match (incident.class, incident.origin.role) {
        (Class::ReadAndClosed, _)
            if incident.certainty == Certainty::Inferred && !is_due(incident.doubt) =>
        {
            // A few bytes and our own close: as well a short answer to a last request.
            if incident.outcome == Outcome::ClosedByUs {
                return false;
            }
            incident.class = Class::PrematureClose;
        }
        (Class::UnreadClose | Class::ResetAfterReuse, Role::Client)
            if incident.doubt.is_some() && !is_due(incident.doubt) =>
        {
            incident.class = Class::MidStreamReset;
        }
        // Our own stamps look the same when we abort a slow upload that we never answered.
        (Class::UnreadClose, Role::Server)
            if incident.certainty == Certainty::Inferred && !is_due(incident.gap) =>
        {
            incident.class = Class::Unknown;
        }
        _ => {}
    }
    true
}

/// Two views of one failure: what the client saw, in the light of what the server did. False if there
/// was none: the client's word is the last on what it wrote.
pub fn reconcile(client: &mut Incident, server: &Incident, is_same_start: bool) -> bool {
    // Of its first byte, and so of none.
    if server.read == Read::Never && is_same_start {
        client.read = Read::Never;
    }
    // The server has closed on something unread, so it was not the client's that it worked on.
    if server.class == Class::UnreadClose && client.class != Class::MidStreamReset {
        client.doubt = None;
    }
    // It has thrown away all of it, if its first unread byte is the client's first: of a request, whose
    // beginning is known, as that of the rest of an upload is not.
    if client.gap.is_some()
        && matches!(
            client.class,
            Class::MidStreamReset | Class::UnreadClose | Class::ResetAfterReuse
        )
        && server.class == Class::UnreadClose
        && is_same_start
    {
        client.class = Class::UnreadClose;
        client.doubt = None;
        client.certainty = Certainty::Certain;
        client.read = Read::Never;
    }
    client.class.is_race()
}
