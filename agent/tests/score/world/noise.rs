//! Closes that no idle timer makes.

use finrace_logic::model::{Class, Evidence, How};

use super::{Connection, Ends, Event, NEVER, THRESHOLD, World};
use crate::seen::Truth;
use crate::setting::{Kind, Ping, Side};

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
            Kind::Restart => self.restart(),
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
                // Those under way end with their answer; the state of free ones does not matter.
                self.connections[c].ends =
                    if by == Side::Server { Ends::AfterData } else { Ends::No };
            }
        }
    }

    /// What is idle is closed, what is under way is cut.
    fn restart(&mut self) {
        self.debt = 0.0;
        let is_under_way = |c: &usize| {
            let connection = &self.connections[*c];
            !connection.is_idle && connection.crossed.is_none() && !self.free.contains(c)
        };
        let under_way: Vec<usize> = (0..self.connections.len()).filter(is_under_way).collect();
        self.close_all(Side::Server, How::Fin);
        for c in under_way {
            self.cut(c);
        }
    }

    fn cut(&mut self, c: usize) {
        let seen_at = self.now + self.half();
        let Connection { asked, idle_client, pool, worker, .. } = self.connections[c];
        let random = &mut self.random;
        let how = (How::Rst, Evidence::Unanswered);
        let times = (asked, seen_at);
        let close = self.client.close(times, Side::Server, how, Truth::Nothing, random);
        let times = (idle_client.min(asked), asked, seen_at);
        let class = Class::MidStreamReset;
        let seen = self.client.incident(class, times, Truth::Nothing, random);
        self.tell(seen_at, close);
        self.tell(seen_at, seen);
        self.remove(c);
        self.open(pool, worker);
    }

    /// When the server closes because of the connection's age or its number of requests.
    pub(super) fn limit(&mut self, c: usize) -> f64 {
        let Connection { born, requests, .. } = self.connections[c];
        let answered = self.now - self.half();
        match self.setting.noise.map(|noise| noise.kind) {
            Some(Kind::Age(age)) => born + age,
            Some(Kind::Requests(most, lag)) if requests >= most => {
                answered + self.random.between(0.01, 1.0) * lag
            }
            _ => NEVER,
        }
    }

    /// One end sends a little, and the other acknowledges it.
    pub(super) fn ping(&mut self, c: usize) {
        let (now, half) = (self.now, self.half());
        let Connection { is_idle, closes, turn, idle_client, idle_server, .. } =
            self.connections[c];
        let Some(Ping { by, every, is_named }) = self.setting.ping else { return };
        if !is_idle || closes <= now + self.setting.rtt {
            return;
        }
        let silence = [now + half - idle_server, now - idle_client];
        if by == Side::Client && silence[by as usize] > THRESHOLD {
            let here = self.client.reuse(idle_client, now, &mut self.random);
            let there = self.server.reuse(idle_server, now + half, &mut self.random);
            if !is_named {
                self.tell(now, here);
            }
            self.tell(now + half, there);
        }
        let connection = &mut self.connections[c];
        connection.outlived = silence;
        connection.pings += 1;
        (connection.idle_client, connection.idle_server) = match by {
            Side::Client => (now + self.setting.rtt, now + half),
            Side::Server => (now, now + half),
        };
        self.at(now + every, Event::Ping(c, turn));
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

    /// Closes right after a response, or instead of one.
    pub(super) fn close_after_data(&mut self, c: usize) {
        let (now, half) = (self.now, self.half());
        let Connection { asked, ends, requests, outlived, .. } = self.connections[c];
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
            // On a connection that was used before, a late answer that ends it looks like a farewell.
            let is_long = ends == Ends::Slow && requests > 1 && now - asked > THRESHOLD;
            let (since, there) =
                if is_long { (asked, (How::Fin, Evidence::UpperBound)) } else { (now, how) };
            let truth = if is_long { Truth::Slow { side: Side::Server } } else { Truth::Nothing };
            let outlived = outlived[Side::Client as usize];
            let here =
                self.client.close_of((since, now), outlived, Side::Server, there, truth, random);
            let there =
                self.server.close((now - half, now), Side::Server, how, Truth::Nothing, random);
            self.tell(now, here);
            self.tell(now, there);
        }
        self.remove(c);
    }
}
