//! A pool of keep-alive connections between a client's host and a server address, event by event.

mod closes;
mod noise;

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};

use finrace_logic::model::{Class, Evidence, How, Role};

use crate::random::Random;
use crate::seen::{CLIENT, Host, SERVER, Seen, Truth};
use crate::setting::{Kind, Load, Ping, Process, Setting, Side};

/// A write after a shorter gap is no reuse.
pub(crate) const THRESHOLD: f64 = 0.2;
const NEVER: f64 = f64::INFINITY;
/// A pool opens no more connections than this.
const MOST: usize = 500;

#[derive(Debug)]
enum Event {
    /// The next requests of a pool.
    Arrival(usize),
    /// The next request of a worker.
    Turn {
        pool: usize,
        worker: usize,
    },
    /// The client has its answer.
    Answered(usize, u64),
    ServerCloses(usize, u64),
    FinComes(usize, u64),
    /// The pool has noticed the FIN.
    Noticed(usize, u64),
    ClientCloses(usize, u64),
    Ping(usize, u64),
    Noise,
    Tell(Box<Seen>),
}

#[derive(Debug)]
struct Entry {
    time: f64,
    number: u64,
    event: Event,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        other.time.total_cmp(&self.time).then(other.number.cmp(&self.number))
    }
}

/// Whether the answer under way is the connection's last.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ends {
    No,
    AfterData,
    /// It is, and takes long.
    Slow,
}

#[derive(Clone, Debug)]
struct Connection {
    /// Counts its idle times; events of an earlier one are stale.
    turn: u64,
    pool: usize,
    worker: usize,
    server: usize,
    is_idle: bool,
    /// When the request before was sent, and when the idle began at either end.
    asked: f64,
    idle_client: f64,
    idle_server: f64,
    /// When the server closes, and whether by its timer.
    closes: f64,
    by_timer: bool,
    /// Which of the servers' timers, the one after the change counted last.
    timer: usize,
    how: How,
    /// When it was opened, and how many requests it has had.
    born: f64,
    requests: u32,
    /// Pings that came in this idle time.
    pings: u32,
    /// The latest silence that it outlived, as either end sees it.
    outlived: [f64; 2],
    /// When the request that crosses the close was sent.
    crossed: Option<f64>,
    ends: Ends,
}

impl Connection {
    /// The latest silence that it had outlived when it was closed, as that end knows it: pings that are marked as
    /// such broke it for the timestamps alone.
    fn outlived(&self, end: Side, idle: f64, ping: Option<Ping>) -> f64 {
        let is_named = ping.is_some_and(|ping| ping.is_named);
        self.outlived[end as usize] + if is_named && self.pings > 0 { idle } else { 0.0 }
    }

    /// What is true of a close by the server.
    const fn truth(&self, idle: f64) -> Truth {
        if self.by_timer && self.pings > 0 {
            Truth::Cut { side: Side::Server }
        } else if self.by_timer {
            Truth::Timer { side: Side::Server, server: self.timer, idle }
        } else {
            Truth::Other { side: Side::Server }
        }
    }
}

pub(crate) struct World<'a> {
    setting: &'a Setting,
    random: Random,
    now: f64,
    heap: BinaryHeap<Entry>,
    number: u64,
    connections: Vec<Connection>,
    free: Vec<usize>,
    /// Idle connections by pool, the one used last at the back; for workers, each one's own.
    idle: Vec<VecDeque<usize>>,
    workers: Vec<Vec<Option<usize>>>,
    client: Host,
    server: Host,
    /// Closes that the noise still has to make.
    debt: f64,
    timer_closes: u32,
    /// Whether the timeout has changed.
    is_changed: bool,
    pub(crate) requests: u64,
}

impl<'a> World<'a> {
    pub(crate) fn new(setting: &'a Setting) -> Self {
        let host = |role, hz| Host {
            role,
            hz,
            rtt: setting.rtt,
            server: SERVER,
            client: CLIENT,
            pool: None,
        };
        let mut world = Self {
            setting,
            random: Random(setting.seed),
            now: 0.0,
            heap: BinaryHeap::new(),
            number: 0,
            connections: Vec::new(),
            free: Vec::new(),
            idle: vec![VecDeque::new(); setting.pools.len()],
            workers: vec![Vec::new(); setting.pools.len()],
            client: host(Role::Client, setting.client_hz),
            server: host(Role::Server, setting.server_hz),
            debt: 0.0,
            timer_closes: 0,
            is_changed: false,
            requests: 0,
        };
        for (pool, of) in setting.pools.iter().enumerate() {
            match of.load {
                Load::Pool { .. } => world.at(10.0, Event::Arrival(pool)),
                Load::Workers { count, gap } => {
                    world.workers[pool] = vec![None; count];
                    for worker in 0..count {
                        let first = 10.0 + gap.draw(&mut world.random);
                        world.at(first, Event::Turn { pool, worker });
                    }
                }
            }
        }
        if let Some(noise) = setting.noise {
            let first = world.random.exponential(noise.every);
            world.at(first, Event::Noise);
        }
        world
    }

    fn at(&mut self, time: f64, event: Event) {
        self.number += 1;
        self.heap.push(Entry { time, number: self.number, event });
    }

    fn tell(&mut self, time: f64, seen: Seen) {
        self.at(time, Event::Tell(Box::new(seen)));
    }

    /// The next thing that an agent sees, in the order of time.
    pub(crate) fn next(&mut self) -> Seen {
        loop {
            let Entry { time, event, .. } = self.heap.pop().expect("a world never ends");
            self.now = time;
            let is_current = |c: usize, turn: u64| self.connections[c].turn == turn;
            match event {
                Event::Tell(seen) => return *seen,
                Event::Arrival(pool) => self.arrival(pool),
                Event::Turn { pool, worker } => {
                    let idle = self.workers[pool][worker].take();
                    let is_over = idle.is_some_and(|c| self.sees_fin(c));
                    idle.filter(|_| is_over).inspect(|c| self.noticed(*c));
                    self.request(pool, worker, idle.filter(|_| !is_over));
                }
                Event::Noise => self.noise(),
                Event::Answered(c, turn) if is_current(c, turn) => self.answered(c),
                Event::ServerCloses(c, turn) if is_current(c, turn) => self.server_closes(c),
                Event::FinComes(c, turn) if is_current(c, turn) => self.fin_comes(c),
                Event::Ping(c, turn) if is_current(c, turn) => self.ping(c),
                Event::Noticed(c, turn) if is_current(c, turn) => self.noticed(c),
                Event::ClientCloses(c, turn) if is_current(c, turn) => self.client_closes(c, true),
                _ => {}
            }
        }
    }

    fn half(&self) -> f64 {
        self.setting.rtt / 2.0
    }

    fn arrival(&mut self, pool: usize) {
        let Load::Pool { arrivals, burst, is_lifo } = self.setting.pools[pool].load else { return };
        let next = self.now + arrivals.draw(&mut self.random);
        self.at(next, Event::Arrival(pool));
        for _ in 0..burst {
            let taken = self.take(pool, is_lifo);
            self.request(pool, usize::MAX, taken);
        }
    }

    /// An idle connection of the pool. A pool that looks before use discards those that got a FIN.
    fn take(&mut self, pool: usize, is_lifo: bool) -> Option<usize> {
        loop {
            let idle = &mut self.idle[pool];
            let c = if is_lifo { idle.pop_back() } else { idle.pop_front() }?;
            if !self.sees_fin(c) {
                return Some(c);
            }
            self.noticed(c);
        }
    }

    fn sees_fin(&self, c: usize) -> bool {
        self.setting.is_lazy && self.connections[c].closes + self.half() <= self.now
    }

    fn request(&mut self, pool: usize, worker: usize, idle: Option<usize>) {
        self.requests += 1;
        self.client.pool = Some(pool);
        let Some(c) = idle else {
            self.open(pool, worker);
            return;
        };
        let (now, half) = (self.now, self.half());
        let Connection { asked, idle_client, idle_server, closes, by_timer, .. } =
            self.connections[c];
        if self.setting.limit.is_some_and(|limit| now - idle_client > limit) {
            let random = &mut self.random;
            let times = (idle_client, now, now);
            let truth = Truth::Drop;
            let reuse = self.client.reuse(idle_client, now, random);
            let seen = self.client.incident(Class::SilentDrop, times, truth, random);
            let how = (How::Rst, Evidence::Unanswered);
            let close =
                self.client.close((idle_client, now), Side::Client, how, Truth::Nothing, random);
            self.tell(now, reuse);
            self.tell(now, close);
            self.tell(now, seen);
            self.remove(c);
        } else if now + half < closes {
            if now - idle_client > THRESHOLD {
                let seen = self.client.reuse(idle_client, now, &mut self.random);
                self.tell(now, seen);
                self.connections[c].outlived[Side::Client as usize] = now - idle_client;
            }
            if now + half - idle_server > THRESHOLD {
                let seen = self.server.reuse(idle_server, now + half, &mut self.random);
                self.tell(now + half, seen);
                self.connections[c].outlived[Side::Server as usize] = now + half - idle_server;
            }
            self.exchange(c);
            return;
        } else {
            let truth = Truth::Race { by_timer };
            let late = (idle_server, now + half, closes);
            let seen = self.server.incident(Class::LateRequest, late, truth, &mut self.random);
            self.tell(now + half, seen);
            if now < closes + half {
                let reuse = self.client.reuse(idle_client, now, &mut self.random);
                self.tell(now, reuse);
                self.connections[c].crossed = Some(now);
                self.connections[c].is_idle = false;
            } else {
                let random = &mut self.random;
                let fin = closes + half;
                // A farewell ends the idle time, so it counts from our own last data.
                let since = if self.setting.farewell { asked } else { idle_client };
                let times = (since, now, fin);
                let seen = self.client.incident(Class::StaleWrite, times, truth, random);
                let dwell = self.client.dwell(fin, now, true, random);
                self.tell(now, dwell);
                self.tell(now, seen);
                self.remove(c);
            }
        }
        // The retry, on a connection of its own.
        self.open(pool, worker);
    }

    fn open(&mut self, pool: usize, worker: usize) {
        if self.connections.len() - self.free.len() >= MOST {
            return;
        }
        let weights: f64 = self.setting.backends.iter().map(|backend| backend.weight).sum();
        let mut draw = self.random.between(0.0, weights);
        let found = self.setting.backends.iter().position(|backend| {
            draw -= backend.weight;
            draw < 0.0
        });
        let server = found.unwrap_or(0);
        let c = self.free.pop().unwrap_or(self.connections.len());
        let turn = self.connections.get(c).map_or(0, |before| before.turn + 1);
        let new = Connection {
            turn,
            pool,
            worker,
            server,
            is_idle: false,
            born: self.now,
            requests: 0,
            pings: 0,
            outlived: [0.0; 2],
            asked: self.now,
            idle_client: self.now,
            idle_server: self.now,
            closes: NEVER,
            by_timer: false,
            timer: 0,
            how: How::Fin,
            crossed: None,
            ends: Ends::No,
        };
        if c == self.connections.len() {
            self.connections.push(new);
        } else {
            self.connections[c] = new;
        }
        self.exchange(c);
    }

    fn exchange(&mut self, c: usize) {
        let slow = match self.setting.noise.map(|noise| noise.kind) {
            Some(kind @ Kind::Slow(work)) if self.owes(kind) => Some(work),
            _ => None,
        };
        let work = slow.unwrap_or(Process::Exponential(self.setting.response));
        let took = self.setting.rtt + work.draw(&mut self.random);
        let connection = &mut self.connections[c];
        connection.turn += 1;
        connection.is_idle = false;
        connection.asked = self.now;
        connection.requests += 1;
        if slow.is_some() {
            connection.ends = Ends::Slow;
        }
        let turn = connection.turn;
        self.at(self.now + took, Event::Answered(c, turn));
    }

    fn answered(&mut self, c: usize) {
        let (now, half) = (self.now, self.half());
        let Connection { pool, worker, server, turn, ends, .. } = self.connections[c];
        if let Load::Workers { gap, .. } = self.setting.pools[pool].load {
            let next = now + gap.draw(&mut self.random).max(0.001);
            self.at(next, Event::Turn { pool, worker });
        }
        let due = self.limit(c);
        let is_due = due <= now - half || ends != Ends::No;
        if is_due || self.owes(Kind::AfterData) || self.owes(Kind::Unanswered) {
            self.close_after_data(c);
            return;
        }
        match self.workers[pool].get_mut(worker) {
            Some(slot) => *slot = Some(c),
            None => self.idle[pool].push_back(c),
        }
        let start = now - half;
        let mut timer = self.setting.backends[server].timer;
        if let (Some(change), true) = (self.setting.change, self.is_changed) {
            timer = timer.map(|timer| timer.with(change.timeout));
        }
        let closes = timer.map_or(NEVER, |timer| timer.fires(start, &mut self.random));
        let (closes, by_timer) = if due < closes { (due, false) } else { (closes, true) };
        if let Some(ping) = self.setting.ping {
            self.at(now + ping.every, Event::Ping(c, turn));
        }
        let client = self.setting.pools[pool].timer;
        let client_closes = client.map_or(NEVER, |timer| timer.fires(now, &mut self.random));
        let connection = &mut self.connections[c];
        connection.is_idle = true;
        (connection.idle_client, connection.idle_server) = (now, start);
        (connection.closes, connection.by_timer) = (closes, by_timer);
        connection.pings = 0;
        connection.timer = server + usize::from(self.is_changed);
        if closes < NEVER {
            self.at(closes, Event::ServerCloses(c, turn));
            self.at(closes + half, Event::FinComes(c, turn));
        }
        if client_closes < NEVER {
            self.at(client_closes, Event::ClientCloses(c, turn));
        }
    }
}
