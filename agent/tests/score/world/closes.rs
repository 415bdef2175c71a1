//! Ends of idle connections, by timers and otherwise, as both hosts see them.

use finrace_logic::model::{Class, Evidence, How};

use super::{Connection, Event, World};
use crate::seen::Truth;
use crate::setting::{Noise, Side};

impl World<'_> {
    /// Takes a connection out of its pool.
    pub(super) fn take_out(&mut self, c: usize) {
        let Connection { pool, worker, .. } = self.connections[c];
        match self.workers[pool].get_mut(worker) {
            Some(slot) if *slot == Some(c) => *slot = None,
            Some(_) => {}
            None => self.idle[pool].retain(|idle| *idle != c),
        }
    }

    pub(super) fn remove(&mut self, c: usize) {
        self.take_out(c);
        let connection = &mut self.connections[c];
        connection.turn += 1;
        connection.is_idle = false;
        self.free.push(c);
    }

    pub(super) fn server_closes(&mut self, c: usize) {
        let connection = self.connections[c].clone();
        if self.now.total_cmp(&connection.closes).is_eq() {
            self.tell_server_close(&connection);
        }
    }

    fn tell_server_close(&mut self, connection: &Connection) {
        let (since, closes) = (connection.idle_server, connection.closes);
        let truth = connection.truth(closes - since);
        let how = (connection.how, Evidence::Idle);
        let outlived = connection.outlived(Side::Server, closes - since, self.setting.ping);
        let random = &mut self.random;
        let seen =
            self.server.close_of((since, closes), outlived, Side::Server, how, truth, random);
        self.tell(closes, seen);
    }

    pub(super) fn fin_comes(&mut self, c: usize) {
        let (now, half) = (self.now, self.half());
        let connection = self.connections[c].clone();
        let since = connection.idle_client;
        self.client.pool = connection.crossed.map(|_| connection.pool);
        let is_dropped = self.setting.limit.is_some_and(|limit| now - since > limit);
        if is_dropped || now.total_cmp(&(connection.closes + half)).is_ne() {
            return; // It never does, or another close was faster.
        }
        let truth = connection.truth(now - since);
        self.note_timer_close(connection.by_timer);
        let random = &mut self.random;
        if let Some(asked) = connection.crossed {
            let times = (since, asked, now);
            let race = Truth::Race { by_timer: connection.by_timer };
            let evidence = (connection.how, Evidence::Unanswered);
            let close =
                self.client.close((since, now), Side::Server, evidence, Truth::Nothing, random);
            let seen = self.client.incident(Class::FinCrossed, times, race, random);
            self.tell(now, close);
            self.tell(now + half, seen);
            self.remove(c);
            return;
        }
        let (since, evidence) = if self.setting.farewell {
            (connection.asked, Evidence::UpperBound)
        } else {
            (since, Evidence::Idle)
        };
        let truth = match truth {
            Truth::Timer { side, server, .. } => Truth::Timer { side, server, idle: now - since },
            other => other,
        };
        let how = (connection.how, evidence);
        let outlived = connection.outlived(Side::Client, now - since, self.setting.ping);
        let seen = self.client.close_of((since, now), outlived, Side::Server, how, truth, random);
        self.tell(now, seen);
        if connection.how == How::Rst {
            self.remove(c);
        } else if let Some(reaction) = self.setting.reaction {
            let noticed = now + reaction * self.random.between(0.5, 1.5);
            self.at(noticed, Event::Noticed(c, connection.turn));
        }
    }

    pub(super) fn noticed(&mut self, c: usize) {
        let fin = self.connections[c].closes + self.half();
        let seen = self.client.dwell(fin, self.now, false, &mut self.random);
        self.tell(self.now, seen);
        self.remove(c);
    }

    /// The client closes, by its timer or for another reason.
    pub(super) fn client_closes(&mut self, c: usize, by_timer: bool) {
        if !self.connections[c].is_idle {
            return; // A request is lost to the server's close just now.
        }
        let (now, half) = (self.now, self.half());
        let connection = self.connections[c].clone();
        let Connection { closes, idle_client, idle_server, pool, .. } = connection;
        self.client.pool = Some(pool);
        let is_cut = self.setting.limit.is_some_and(|limit| now - idle_client > limit);
        if closes + half <= now && !is_cut {
            // Its pool had not noticed until now.
            let seen = self.client.dwell(closes + half, now, false, &mut self.random);
            self.tell(now, seen);
            self.remove(c);
            return;
        }
        let truth = |idle| {
            if by_timer {
                Truth::Timer { side: Side::Client, server: pool, idle }
            } else {
                Truth::Other { side: Side::Client }
            }
        };
        let how = (How::Fin, Evidence::Idle);
        let here = (idle_client, now);
        let random = &mut self.random;
        let outlived = |end, idle| connection.outlived(end, idle, self.setting.ping);
        let of_client = outlived(Side::Client, now - idle_client);
        let of_server = outlived(Side::Server, now + half - idle_server);
        let truth_here = truth(now - idle_client);
        let seen = self.client.close_of(here, of_client, Side::Client, how, truth_here, random);
        self.tell(now, seen);
        let random = &mut self.random;
        if closes > now + half && !is_cut {
            let there = (idle_server, now + half);
            let truth = truth(now + half - idle_server);
            let seen = self.server.close_of(there, of_server, Side::Client, how, truth, random);
            let dwell = self.server.dwell(now + half, now + half + 0.0001, false, random);
            self.tell(now + half, seen);
            self.tell(now + half + 0.0001, dwell);
        } else if closes > now {
            self.tell_server_close(&connection);
        }
        self.note_timer_close(by_timer);
        self.remove(c);
    }

    fn note_timer_close(&mut self, by_timer: bool) {
        if by_timer {
            self.timer_closes += 1;
            if let Some(Noise { share, every, .. }) = self.setting.noise {
                self.debt += share / (1.0 - share);
                if share > 0.0 {
                    let soon = self.now + self.random.exponential(every);
                    self.at(soon, Event::Noise);
                }
            }
        }
        if let Some(change) = self.setting.change
            && !self.is_changed
            && self.timer_closes >= change.after
        {
            self.is_changed = true;
            if change.is_restart {
                self.close_all(Side::Server, How::Fin);
            }
        }
    }
}
