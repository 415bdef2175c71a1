//! What requests to each peer, or to each port, look like: learned from those that were answered.

use finrace_ebpf::decide::distance;
use foldhash::HashMap;

use crate::event::{Event, SockKey, Word};
use crate::model::{Endpoint, Role};
use crate::turn::Asked;

/// The most peers and ports.
const LIMIT: usize = 8_192;

/// Lengths that are remembered for each.
const LENGTHS: usize = 8;

/// What is known of one peer, or one port.
#[derive(Clone, Copy, Debug, Default)]
struct Habit {
    /// Lengths of requests that were answered, the latest different ones; 0 stands for none.
    lengths: [u32; LENGTHS],
    next: usize,
}

#[derive(Debug, Default)]
pub(super) struct Habits(HashMap<(u32, Endpoint), Habit>);

impl Habits {
    /// A client's write that something came back for was a request, if it did not say otherwise.
    pub(super) fn learn(&mut self, key: &SockKey, asked: &Asked, event: &Event) {
        let is_answered =
            distance(event.raw.rcv_nxt, asked.rcv_nxt) > 1 && event.raw.snd_una != asked.start;
        if asked.role == Role::Client && is_answered && asked.word.is_doubtful() && asked.is_short()
        {
            self.add((key.tuple.netns, key.tuple.remote), asked.bytes);
        }
    }

    /// A server has answered a request of this length.
    pub(super) fn learn_served(&mut self, key: &SockKey, bytes: u32, word: Word) {
        if word != Word::Farewell && bytes != 0 {
            self.add(port(key), bytes);
        }
    }

    fn add(&mut self, key: (u32, Endpoint), bytes: u32) {
        if self.0.len() >= LIMIT && !self.0.contains_key(&key) {
            return; // who is known stays known
        }
        let habit = self.0.entry(key).or_default();
        if !habit.lengths.contains(&bytes)
            && let Some(place) = habit.lengths.get_mut(habit.next % LENGTHS)
        {
            *place = bytes;
            habit.next = habit.next.wrapping_add(1);
        }
    }

    /// Whether requests of this length to this peer were answered.
    pub(super) fn asks(&self, key: &SockKey, bytes: u32) -> bool {
        let habit = self.0.get(&(key.tuple.netns, key.tuple.remote));
        habit.is_some_and(|habit| habit.lengths.contains(&bytes))
    }

    /// Whether requests of this length, or shorter ones, came to this port; `None` where none did.
    pub(super) fn serves(&self, key: &SockKey, bytes: u32) -> Option<bool> {
        let habit = self.0.get(&port(key))?;
        let least = habit.lengths.iter().filter(|length| **length != 0).min()?;
        Some(bytes >= *least)
    }
}

fn port(key: &SockKey) -> (u32, Endpoint) {
    (key.tuple.netns, Endpoint { port: key.tuple.local.port, ..Endpoint::default() })
}
