//! Whose turn it is on a connection, and so what happened to bytes of ours: every class is decided here and in
//! the files of `turn/`.
//!
//! A connection takes turns: one side asks, the other acknowledges and answers. What a record shows of
//! that is in the socket: how far our bytes are acknowledged, what came since and whether it came before
//! that acknowledgement, how far the application has read, what its first bytes were. **Order decides**;
//! a clock only where nothing else is left, and then the event says [`Certainty::Inferred`].
//!
//! What it amounts to, abridged, first match first (`docs/classes.md` has every row, and `turn/tests.rs` tests
//! them). Of a client's bytes:
//!
//! | they were written | and then | class |
//! |---|---|---|
//! | with words that end a conversation | anything | `farewell` |
//! | with words that ask nothing | the peer's FIN or RST | `stale_probe` |
//! | on a connection that was never answered on | the peer's FIN | `unused_close` |
//! | in TLS, after the peer's GOAWAY | anything | `after_goaway` |
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
//! One surprise: in ESTABLISHED an RST's own ACK is not yet applied when it is seen, so `snd_una` may be too
//! low there.

mod after_fin;
mod our_close;
mod peer_fin;
mod reset;
#[cfg(test)]
mod tests;

use std::time::Duration;

use finrace_ebpf::decide::{FEW_BYTES, distance};

use super::event::{Event, Ticks, Word};
use super::model::{
    Certainty, Class, Closer, Evidence, Incident, Nanos, Outcome, Process, Read, Role,
};
use super::owner::Owner;
pub use after_fin::{
    Ending, client_gone, late_write, outcome, read_by, reset_of_unfollowed, unseen_write,
};
pub use our_close::{AtOurClose, hangs, how, our_abort, our_fin, timed_out};
pub use peer_fin::{AtFin, peer_fin};
pub use reset::{AtReset, reset, write_after_reset};

/// In addition to a round trip: what comes this soon after something else may be one with it. Used where only
/// time is left to tell, and for what a close says of a timeout; such a class is inferred.
pub const AT_ONCE: Duration = Duration::from_millis(50);

/// Where no hook sees sockets end: an RST this soon after a small write may have come before the close
/// that makes it a farewell: on loopback it is there before the write returns.
pub const BEFORE_CLOSE: Duration = Duration::from_millis(1);

/// Within this time, an event loop has dealt with the RST that woke it.
const REACTION: Duration = Duration::from_millis(10);

/// How much may come unread with a FIN and still be the words that some servers send to explain an idle
/// close: `PostgreSQL` 15's for `idle_session_timeout` take 116 bytes. Decides no class.
const IDLE_MESSAGE_BYTES: u32 = 192;

/// What holds for a whole run.
#[derive(Clone, Copy, Debug)]
pub struct RunSettings {
    pub ticks: Ticks,
    /// A gap longer than this makes a write a reuse.
    pub threshold: Duration,
    /// A hook sees writes: what it did not record did not happen.
    pub sees_writes: bool,
    /// A hook sees sockets end: it tells what a socket's owner knew by then.
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
    /// How much of the peer's data the application had not read then.
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
    /// See [`Event::is_probed`].
    pub is_probed: bool,
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
    /// Bytes that do not acknowledge it: the peer's parting words, sent before it had arrived.
    Parting,
    /// Bytes that acknowledge a request in TLS, and are no more than an alert: the server had it, and closed
    /// instead of answering.
    Alert,
    Answered,
}

/// Bytes of a sealed alert (two bytes): TLS 1.3, and 1.2 with `ChaCha20` or GCM. No answer is that short.
const ALERTS: [u32; 3] = [24, 23, 31];

/// Bytes of a sealed GOAWAY without debug data (17 bytes, RFC 9113, 6.8), likewise.
const GOAWAYS: [u32; 3] = [39, 38, 46];

/// Whether this many bytes after a silence may be last words, given what our own bytes were.
fn may_be_words(word: Word, bytes: u32) -> bool {
    bytes <= FEW_BYTES || (bytes <= IDLE_MESSAGE_BYTES && word != Word::Unknown)
}

/// Whether last words of this many bytes, on a connection that speaks TLS, were a GOAWAY, alone or with the
/// alert that follows it.
pub fn is_goaway(word: Word, bytes: u32) -> bool {
    let is_pair = |(goaway, alert): (&u32, &u32)| bytes == *goaway || bytes == goaway + alert;
    word == Word::Sealed && GOAWAYS.iter().zip(&ALERTS).any(is_pair)
}

/// A request that was written past the peer's farewell, which had this many bytes.
fn past_farewell(word: Word, farewell: u32, gap: Duration, certainty: Certainty) -> Ruling {
    if is_goaway(word, farewell) {
        Ruling::inferred(Class::AfterGoaway, Some(gap))
    } else {
        Ruling::new(Class::StaleWrite, certainty, Some(gap))
    }
}

impl Asked {
    /// From the record of a write.
    pub fn of(event: &Event, role: Role, kind: AskedKind, silence: Duration, ticks: Ticks) -> Self {
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
            is_probed: event.is_probed(ticks),
            owner: event.owner,
            process: event.process(),
        }
    }

    /// The gap before it, if it may have been a request. After the peer's farewell, the silence counts as one.
    pub fn gap(&self) -> Option<Duration> {
        match self.kind {
            _ if !self.word.may_ask() => None,
            AskedKind::Gap(_) if self.came_after_words() => Some(self.silence),
            AskedKind::Gap(gap) => Some(gap),
            AskedKind::Reply(silence) if !self.is_short() || self.unread > 0 => Some(silence),
            AskedKind::Reply(_) => None,
        }
    }

    /// The gap before it, if it was an exchange and not a farewell: what a reuse reports.
    pub fn reuse_gap(&self) -> Option<Duration> {
        match (self.role, self.kind) {
            _ if self.word == Word::Farewell => None,
            (Role::Client, AskedKind::Gap(gap)) | (Role::Server, AskedKind::Reply(gap)) => {
                Some(gap)
            }
            _ => None,
        }
    }

    /// Whether only the close that follows can tell if it asked anything.
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
            && self.segs_in != 1
            && self.silence > Duration::ZERO
            && may_be_words(self.word, self.unread)
    }

    /// Whether it was written while an answer that had been asked for was unread: more of the same, as when
    /// an upload goes on after an early answer.
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

    /// What came back. Bytes that acknowledge it and come after it are its answer, however few, except for a
    /// TLS alert.
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
        if !self.is_last(event) {
            Answer::Answered
        } else if later {
            Answer::Parting
        } else if self.word == Word::Sealed && ALERTS.contains(&heard) {
            Answer::Alert
        } else {
            Answer::Answered
        }
    }
}

/// What is known of a connection besides the record at hand.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    pub role: Role,
    /// Its last write after a gap.
    pub asked: Option<&'a Asked>,
    /// The server's end as it closed, where that is on this host.
    pub server: Option<ServerEnd>,
    pub settings: RunSettings,
}

/// How far a server had got when it closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerEnd {
    /// Its kernel, and its application.
    pub received: u32,
    pub read: u32,
    /// It had sent a FIN, and it was this end that answered the request: whatever is in between lets through
    /// what it is given, and only the FIN was lost.
    pub is_fin_lost: bool,
}

/// What a server had of a request when it closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Had {
    /// It came later.
    Nothing,
    /// Only its kernel, or its application some of it, or all.
    Unread,
    Part,
    All,
}

impl Known<'_> {
    /// What the server, if it is on this host, had of the bytes that began at `start`.
    fn had(&self, start: u32, end: u32) -> Option<Had> {
        let ServerEnd { received, read, .. } = self.server?;
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

    /// The gap before a request of ours that was not told: a write without a record had none, unless no hook
    /// was there to see it. Then stamps are all there is, and they cannot tell a long upload from a gap.
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
pub struct Ruling {
    pub class: Class,
    pub certainty: Certainty,
    pub read: Read,
    pub gap: Option<Duration>,
    /// The silence at the end, where only the peer's timeout can tell whether it acted on the request.
    pub doubt: Option<Duration>,
}

impl Ruling {
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
        /// What was written, and whether that leaves it doubtful that it asked anything.
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

/// Which side ended the idle time, if these were our last words.
fn parted(ours: &Asked) -> Ended {
    let peer_first = |idle| Ended { closer: Closer::Peer, evidence: Evidence::UpperBound, idle };
    match ours.kind {
        // We have replied to the peer's.
        AskedKind::Reply(silence) => peer_first(silence),
        // The alerts of a TLS connection have the same length in either direction.
        AskedKind::Gap(_) if ours.silence > Duration::ZERO && ours.last_heard == ours.bytes => {
            peer_first(ours.silence)
        }
        AskedKind::Gap(idle) => Ended { closer: Closer::Local, evidence: Evidence::Idle, idle },
    }
}

/// Whether the peer's last segment is the first since our request, or since the connection began: then
/// it is the answer.
fn is_first_answer(event: &Event, asked: Option<&Asked>) -> bool {
    let segs_in = event.raw.data_segs_in;
    segs_in != 0
        && (segs_in == 1 || asked.is_some_and(|asked| segs_in.wrapping_sub(asked.segs_in) == 1))
}

/// Whether a turn was complete when we closed, so that what comes later is a new request: we had answered
/// last, whether just now or long ago.
pub fn was_turn_complete(ended: Ended) -> bool {
    matches!(ended.evidence, Evidence::Idle | Evidence::UpperBound)
}

/// The silence before our last write after a silence, which the connection outlived, as of this close. A
/// ping, or a short reply to one from the peer, breaks a silence only for the stamps: an idle timer that
/// counted it would never fire on connections that are kept awake that way. So what followed it counts as
/// well.
pub fn outlived(event: &Event, ended: Ended, asked: Option<&Asked>) -> Duration {
    // What was written past the peer's last words has outlived nothing.
    let is_before_end = |asked: &&Asked| asked.role == Role::Client && !asked.came_after_words();
    let Some(asked) = asked.filter(is_before_end) else { return Duration::ZERO };
    let (AskedKind::Gap(silence) | AskedKind::Reply(silence)) = asked.kind;
    let is_short_reply = matches!(asked.kind, AskedKind::Reply(_)) && asked.is_short();
    if asked.word.may_ask() && !is_short_reply {
        return silence;
    }
    // Otherwise it was part of the end.
    let since = event.time.since(asked.time);
    let is_since = ended.evidence == Evidence::Idle && ended.idle.abs_diff(since) <= AT_ONCE;
    if is_since && asked.is_last(event) { silence.saturating_add(since) } else { Duration::ZERO }
}

/// Decides what only a known timeout can. False if nothing happened after all.
pub fn settle(incident: &mut Incident, is_at_timeout: impl Fn(Duration) -> bool) -> bool {
    let is_due = |silence: Option<Duration>| silence.is_some_and(&is_at_timeout);
    match (incident.class, incident.origin.role) {
        (Class::ReadAndClosed, _)
            if incident.certainty == Certainty::Inferred && !is_due(incident.doubt) =>
        {
            // A few bytes and our own close: it may as well be a short answer to a last request.
            if incident.outcome == Outcome::ClosedByUs {
                return false;
            }
            incident.class = Class::PrematureClose;
        }
        // The server closed as it usually does, and its FIN was lost in transit.
        (Class::SilentDrop, Role::Client) if is_due(incident.gap) => {
            incident.class = Class::FinCrossed;
            incident.certainty = Certainty::Inferred;
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
    // Its first byte was never read, and so none of it was.
    if server.read == Read::Never && is_same_start {
        client.read = Read::Never;
    }
    // The server closed with something unread, so it was not working on the client's request.
    if server.class == Class::UnreadClose && client.class != Class::MidStreamReset {
        client.doubt = None;
    }
    // It threw away all of it if its first unread byte is the client's first. This holds for a request, whose
    // beginning is known; that of the rest of an upload is not.
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
