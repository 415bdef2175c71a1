//! Closes that no idle timer makes.

use finrace::logic::model::{Class, Evidence, How};

use super::{Connection, Event, THRESHOLD, World};
use crate::seen::Truth;
use crate::setting::{Kind, Side};

impl World<'_> {
    pub(super) fn owes(&mut self, kind: Kind) -> bool {
        let owes = self.debt >= 1.0 && self.setting.noise.is_some_and(|noise| noise.kind == kind);
        self.debt -= f64::from(u8::from(owes));
        owes
    }

    pub(super) fn noise(&mut self) {
        let Some(noise) = self.setting.noise else { return };
        if noise.share == 0.0 {
            self.debt += 1.0;
            let next = self.now + self.random.exponential(noise.every);
            self.at(next, Event::Noise);
        }
        let idle: Vec<usize> = (0..self.connections.len())
            .filter(|c| self.connections[*c].is_idle && self.connections[*c].closes > self.now)
            .collect();
        let count = f64::from(u32::try_from(idle.len()).unwrap());
        match noise.kind {
            Kind::Scattered if !idle.is_empty() && self.debt >= 1.0 => {
                self.debt -= 1.0;
                let c = self.random.pick(&idle);
                self.close_other(c, noise.by, How::Fin, 0.0);
            }
            Kind::Reload | Kind::Crash if !idle.is_empty() && self.debt >= count => {
                let is_crash = noise.kind == Kind::Crash;
                self.close_all(noise.by, if is_crash { How::Rst } else { How::Fin });
            }
            Kind::Unused if self.debt >= 1.0 => {
                self.debt -= 1.0;
                self.unused(noise.by);
            }
            _ => {}
        }
    }

    pub(super) fn close_all(&mut self, by: Side, how: How) {
        for c in 0..self.connections.len() {
            if self.connections[c].is_idle && self.connections[c].closes > self.now {
                self.debt -= 1.0;
                let after = self.random.between(0.0, 0.1);
                self.close_other(c, by, how, after);
            } else {
                // Those under way end with their answer; what is free is not looked at.
                self.connections[c].after_data = by == Side::Server;
            }
        }
    }

    fn close_other(&mut self, c: usize, by: Side, how: How, after: f64) {
        if by == Side::Client {
            self.client_closes(c, false);
            return;
        }
        let (closes, half) = (self.now + after, self.half());
        let connection = &mut self.connections[c];
        let turn = connection.turn;
        if closes < connection.closes {
            (connection.closes, connection.by_timer, connection.how) = (closes, false, how);
            self.at(closes, Event::ServerCloses(c, turn));
            self.at(closes + half, Event::FinComes(c, turn));
        }
    }

    fn unused(&mut self, by: Side) {
        let (now, half) = (self.now, self.half());
        let open = self.random.pick(&[0.0, 0.001, 5.0, 10.0]);
        let times = (now - open, now);
        let how = (How::Fin, Evidence::Unused);
        let random = &mut self.random;
        let here = self.client.close(times, by, how, Truth::Nothing, random);
        let there = self.server.close(times, by, how, Truth::Nothing, random);
        self.tell(now, here);
        self.tell(now + half, there);
    }

    /// Right after a response, or instead of one.
    pub(super) fn close_after_data(&mut self, c: usize) {
        let (now, half) = (self.now, self.half());
        let Connection { asked, .. } = self.connections[c];
        let noise = self.setting.noise.map(|noise| noise.kind);
        let random = &mut self.random;
        if noise == Some(Kind::Unanswered) {
            let is_fast = now - asked <= self.setting.rtt + 0.05;
            let class = if is_fast { Class::ReadAndClosed } else { Class::PrematureClose };
            let since = self.connections[c].idle_client;
            let how = (How::Fin, Evidence::Unanswered);
            let close = self.client.close((asked, now), Side::Server, how, Truth::Nothing, random);
            let seen = self.client.incident(class, (since, asked, now), Truth::Nothing, random);
            self.tell(now, close);
            if asked - since > THRESHOLD {
                self.tell(now, seen);
            }
        } else {
            let how = (How::Fin, Evidence::AfterData);
            let here = self.client.close((now, now), Side::Server, how, Truth::Nothing, random);
            let there =
                self.server.close((now - half, now), Side::Server, how, Truth::Nothing, random);
            self.tell(now, here);
            self.tell(now, there);
        }
        self.remove(c);
    }
}
