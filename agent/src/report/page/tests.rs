mod safety;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use finrace_logic::model::{
    Cause, Class, Close, Closer, Endpoint, Incident, Observation, Origin, Outcome, Process, Reuse,
    Role,
};
use finrace_logic::owner::{Owner, Place};
use finrace_logic::peer::Peer;
use finrace_logic::verdict::State;

use super::*;
use crate::ask::{LIMIT, encoded};
use crate::lost::Reason;
use crate::metrics::HookStatus;

const ALL: Ask = Ask { form: Form::Page, limit: LIMIT, only: None };

/// When the page is made, counted from the start.
const NOW: Duration = Duration::from_secs(40);

/// What an agent has seen.
struct World {
    table: Table,
    about: About,
}

fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

fn at(millis: u64) -> Nanos {
    Nanos(millis * 1_000_000)
}

fn origin(role: Role, number: u8, process: Option<&str>) -> Origin {
    let end = |ip: [u8; 4], port| Endpoint { ip: Ipv4Addr::from(ip).into(), port };
    let (local, remote) = if role == Role::Server { (443, 51_000) } else { (51_000, 8080) };
    Origin {
        netns: 7,
        owner: Owner::UNKNOWN,
        role,
        local: end([10, 0, 0, 9], local),
        remote: end([10, 0, 1, number], remote),
        process: process.map(|name| Process { name: name.into(), pid: 42, owner: Owner::UNKNOWN }),
        rtt: Some(Duration::from_micros(300)),
    }
}

impl World {
    fn new() -> Self {
        let hook = |job, hook, loses| HookStatus {
            job,
            hook,
            attached_to: "tcp_sendmsg_locked".to_owned(),
            program: "fr_write".to_owned(),
            loses,
        };
        let status = Status {
            version: "1.2.3",
            revision: "0123abc",
            hooks: vec![hook("write", "tp_btf", None)],
            events: vec![("state", 100), ("write", 200)],
            lost: [(Reason::RacesRingFull, 0), (Reason::Malformed, 0)].into(),
            ..Status::default()
        };
        let about = About {
            status,
            host: "node-1".to_owned(),
            kernel: "6.1.0".to_owned(),
            clock: Clock { started: start(), start: Nanos(0) },
            wall: start() + NOW,
            incidents: Incidents::default(),
            who: Who::default(),
        };
        Self { table: Table::new(500, Duration::from_millis(200), Nanos(0)), about }
    }

    /// The first peer's connections, owned by a unit.
    fn owned(&self, unit: &str) -> Origin {
        let place = Place { unit: Some(unit.into()), ..Place::default() };
        let owner = self.about.who.owner(place);
        Origin { owner, ..origin(Role::Client, 1, Some("nginx")) }
    }

    fn add(&mut self, observation: Observation) {
        let time = self.about.wall + Duration::from_nanos(observation.time().0) - NOW;
        self.table.add(&observation);
        self.about.incidents.add(observation, time);
    }

    /// Adds reuses up to a timeout, at which `closer` closes.
    fn traffic(&mut self, origin: Origin, closer: Closer, timeout: u64) {
        for round in 0..30 {
            let time = at(10_000 + round * 1000);
            for part in 1..5 {
                let gap = Duration::from_millis(timeout * part / 5 + round * 5);
                self.add(Observation::Reuse(Reuse::new(time, origin, gap, 100)));
            }
            let idle = Duration::from_millis(timeout + round % 4);
            self.add(Observation::Close(Close::of_idle(time, origin, closer, idle)));
        }
    }

    fn incident(&mut self, time: Nanos, origin: Origin, class: Class) {
        self.add(Observation::Incident(Incident {
            cause: Cause::Idle,
            gap: Some(Duration::from_millis(5010)),
            fin_age: Some(Duration::from_micros(250)),
            ..Incident::new(time, origin, class, Outcome::Reset)
        }));
    }

    /// One peer that races, one that is exposed, one that is safe, one hardly seen.
    fn busy() -> Self {
        let mut world = Self::new();
        let nginx = |number| origin(Role::Client, number, Some("nginx"));
        world.traffic(nginx(1), Closer::Peer, 5000);
        world.incident(at(38_000), nginx(1), Class::StaleWrite);
        world.incident(at(39_500), nginx(1), Class::Farewell);
        world.traffic(nginx(2), Closer::Peer, 2000);
        world.traffic(origin(Role::Server, 3, Some("haproxy")), Closer::Peer, 1000);
        let reuse =
            Reuse::new(at(39_000), origin(Role::Client, 4, None), Duration::from_secs(1), 1);
        world.add(Observation::Reuse(reuse));
        world.about.status.lost = [(Reason::RacesRingFull, 3)].into();
        world.about.status.hooks.push(HookStatus {
            job: "time-wait",
            hook: "none",
            attached_to: String::new(),
            program: String::new(),
            loses: Some("RSTs of sockets in TIME_WAIT"),
        });
        world
    }

    fn picture(&mut self, ask: Ask) -> Picture {
        let survey = Survey::begin(&self.table, ask.limit.into(), ask.only, at(40_000));
        survey.finish(&mut self.table)
    }

    fn page(&mut self, ask: Ask) -> String {
        let picture = self.picture(ask);
        html::page(&self.about, ask, &picture).expect("a page")
    }
}

fn only(peer: &str) -> Ask {
    let query = format!("peer={}&netns=7", encoded(peer));
    Ask::parse(Form::Page, &query).expect("a query")
}

/// `GOLDEN=write cargo test` rewrites the expected files: read the diff.
fn check(name: &str, expected: &str, page: &str) {
    let (before, rest) = page.split_once("<style>").expect("a style");
    let (_, rest) = rest.split_once("</style>").expect("the end of it");
    let lines = format!("{before}{rest}").replace('<', "\n<").replace("\n</", "</");
    balanced(page);
    if std::env::var_os("GOLDEN").is_some_and(|value| value == "write") {
        let path = format!("{}/src/golden/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(path, lines).unwrap();
    } else {
        assert!(lines == expected, "golden/{name} differs, is now:\n{lines}");
    }
}

#[test]
fn golden() {
    let mut busy = World::busy();
    check("empty.html", include_str!("../../golden/empty.html"), &World::new().page(ALL));
    check("busy.html", include_str!("../../golden/busy.html"), &busy.page(ALL));
    let peer = busy.page(only("10.0.1.1:8080"));
    check("peer.html", include_str!("../../golden/peer.html"), &peer);
}

/// Checks that every element is closed, in order, and that every id occurs once.
fn balanced(page: &str) {
    let (mut open, mut ids) = (Vec::new(), Vec::new());
    for part in page.split('<').skip(1) {
        let (tag, _) = part.split_once('>').expect("the end of a tag");
        let name = tag.split([' ', '>']).next().unwrap();
        if let Some(name) = name.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{tag}");
        } else if !["!DOCTYPE", "meta"].contains(&name) {
            open.push(name);
        }
        if let Some((_, id)) = tag.split_once(" id=\"") {
            let id = id.split('"').next().unwrap();
            assert!(!ids.contains(&id), "{id}");
            ids.push(id);
        }
    }
    assert!(open.is_empty(), "{open:?}");
    for reference in page.split(" aria-labelledby=\"").skip(1) {
        for id in reference.split('"').next().unwrap().split(' ') {
            assert!(ids.contains(&id), "{id}");
        }
    }
}

#[test]
fn what_is_asked_for() {
    let parse = |query| Ask::parse(Form::Peers, query);
    let of = |limit, only| Ok(Ask { form: Form::Peers, limit, only });
    let key = |netns, peer| Some((netns, Peer::parse(peer).unwrap()));
    assert_eq!(parse(""), of(50, None));
    assert_eq!(parse("limit=500"), of(500, None));
    assert_eq!(parse("peer=10.0.0.5%3A80&netns=9&limit=1"), of(1, key(9, "10.0.0.5:80")));
    assert_eq!(parse("netns=9&peer=%5B%3A%3A1%5D:80&"), of(50, key(9, "[::1]:80")));
    assert_eq!(parse("netns=9&peer=:80+from+::1"), of(50, key(9, ":80 from ::1")));
    for (query, problem) in [
        ("limit=0", "limit `0` is not a number from 1 to 500"),
        ("limit=501", "limit `501`"),
        ("limit=", "limit ``"),
        ("limit=<b>", "limit `<b>`"),
        ("peer=x&netns=1", "peer `x` is neither like 10.0.0.5:8080 nor like `:8080 from 10.0.0.9`"),
        ("peer=10.0.0.5:80", "peer needs netns"),
        ("netns=1", "netns needs peer"),
        ("netns=-1&peer=10.0.0.5:80", "netns `-1` is not the number"),
        ("offset=3", "`offset` is not one of limit, peer, netns"),
    ] {
        let error = parse(query).unwrap_err();
        assert!(error.starts_with(problem), "{query}: {error}");
    }
}

#[test]
fn the_worst_are_shown() {
    let mut world = World::busy();
    let ask = Ask { limit: 2, form: Form::Peers, ..ALL };
    let picture = world.picture(ask);
    let json = json::peers(&world.about, ask, &picture).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["schema"], "finrace.report/3");
    let peers = json["peers"].as_array().unwrap();
    let verdicts: Vec<_> = peers.iter().map(|peer| peer["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["racing", "exposed"]);
    let page = world.page(Ask { limit: 2, ..ALL });
    assert!(page.contains("These are the worst 2 of 4 peers."), "{page}");
    // The numbers are those of all peers.
    assert!(page.contains("1 safe"), "{page}");
    let gone = Ask { form: Form::Peers, ..only("10.0.1.99:8080") };
    let picture = world.picture(gone);
    assert!(picture.rows.is_empty() && json::peers(&world.about, gone, &picture).is_none());
    assert!(html::page(&world.about, gone, &picture).is_none());
}

#[test]
fn the_status_as_json() {
    let mut world = World::busy();
    let picture = world.picture(Ask { limit: 0, ..ALL });
    let json = json::status(&world.about, &picture);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    for (path, expected) in [
        ("/schema", "finrace.status/1".into()),
        ("/started", "2023-11-14T22:13:20.000000Z".into()),
        ("/time", "2023-11-14T22:14:00.000000Z".into()),
        ("/hooks/1/not_seen", "RSTs of sockets in TIME_WAIT".into()),
        ("/verdicts/racing", 1.into()),
        ("/verdicts/dropping", 0.into()),
        ("/peers", 4.into()),
        ("/races", 1.into()),
        ("/lost/races_ring_full", serde_json::Value::from(3)),
    ] {
        assert_eq!(json.pointer(path), Some(&expected), "{path}");
    }
}

#[test]
fn the_page_explains_every_class_of_race_and_every_verdict() {
    let page = World::busy().page(ALL);
    let races = Class::ALL.iter().filter(|class| class.is_race()).map(|class| class.as_str());
    for word in races.chain(State::ALL.iter().map(|state| state.as_str())) {
        assert!(page.contains(&format!("<dt>{word}</dt>")), "{word}");
    }
}

/// Every name in an object, however deep.
fn names(json: &serde_json::Value, found: &mut BTreeSet<String>) {
    if let Some(fields) = json.as_object() {
        found.extend(fields.keys().cloned());
        fields.values().for_each(|value| names(value, found));
    }
    json.as_array().into_iter().flatten().for_each(|value| names(value, found));
}

#[test]
fn every_field_is_documented() {
    let pages = [
        include_str!("../../../../docs/report.md"),
        include_str!("../../../../docs/classes.md"),
        include_str!("../../../../docs/watch.md"),
        include_str!("../../../../docs/status.md"),
    ];
    let mut world = World::busy();
    let picture = world.picture(ALL);
    for json in [
        json::peers(&world.about, ALL, &picture).unwrap(),
        json::events(&world.about, ALL),
        json::status(&world.about, &picture),
    ] {
        let mut found = BTreeSet::new();
        names(&serde_json::from_str(&json).unwrap(), &mut found);
        found.retain(|name| !pages.iter().any(|page| page.contains(&format!("`{name}`"))));
        assert!(found.is_empty(), "in no page: {found:?}");
    }
}

#[test]
fn a_race_is_not_pushed_out_by_farewells() {
    let mut world = World::new();
    let nginx = origin(Role::Client, 1, Some("nginx"));
    world.incident(at(1), nginx, Class::StaleWrite);
    (0..1000).for_each(|n| world.incident(at(n), nginx, Class::Farewell));
    (1000..1010).for_each(|n| {
        world.incident(at(n), origin(Role::Client, 2, None), Class::FinCrossed);
    });
    let events = |ask| -> Vec<String> {
        let json = json::events(&world.about, ask);
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let events = json["events"].as_array().unwrap();
        events.iter().map(|event| event["class"].as_str().unwrap().to_owned()).collect()
    };
    let all = events(Ask { limit: 500, ..ALL });
    assert_eq!(
        (all.len(), &*all[0], &*all[10], &*all[60]),
        (61, "fin_crossed", "farewell", "stale_write")
    );
    assert_eq!(events(Ask { limit: 3, ..ALL }), ["fin_crossed"; 3]);
    assert_eq!(events(Ask { limit: 500, ..only("10.0.1.2:8080") }), ["fin_crossed"; 10]);
    (0..1000).for_each(|n| world.incident(at(n), nginx, Class::LateRequest));
    assert_eq!(world.about.incidents.newest(incidents::Which::Both, None).len(), 150);
}

#[test]
fn what_a_middlebox_closes_is_told_as_such() {
    for (role, end) in [(Role::Client, "peer"), (Role::Server, "local")] {
        let mut world = World::new();
        world.traffic(origin(role, 1, Some("nginx")), Closer::Middlebox, 350_000);
        let picture = world.picture(ALL);
        let json = json::peers(&world.about, ALL, &picture).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let peer = &json["peers"][0];
        assert_eq!(peer["closes"][end]["by_middlebox"], 30, "{role}");
        assert_eq!(peer["closes"][end]["total"], 30, "{role}");
        // Guesses name what has such a limit, and no server with such a default.
        let guesses = peer["idle_timeout"][end]["default_of"].to_string();
        assert!(guesses.contains("AWS Network Load Balancer"), "{role} {guesses}");
        let sentence = peer["sentence"].as_str().unwrap();
        assert!(sentence.starts_with("Something between "), "{role} {sentence}");
    }
}

#[test]
fn a_peer_on_this_host_is_one_problem() {
    let mut world = World::new();
    let other = origin(Role::Client, 1, Some("nginx"));
    let client = Origin { local: Endpoint { ip: other.remote.ip, ..other.local }, ..other };
    let server = Origin {
        role: Role::Server,
        local: client.remote,
        remote: client.local,
        process: Some(Process { name: "gunicorn".into(), pid: 8, owner: Owner::UNKNOWN }),
        ..client
    };
    world.traffic(client, Closer::Peer, 2000);
    world.traffic(server, Closer::Local, 2000);
    let page = world.page(ALL);
    assert!(page.contains("<h1 id=\"answer\">1 peer is at risk</h1>"), "{page}");
    assert!(page.contains("The other end of "), "{page}");
    // A client of the same server on another host is a different peer.
    let stranger = Origin { remote: origin(Role::Server, 9, None).remote, ..server };
    world.traffic(stranger, Closer::Local, 2000);
    assert!(world.page(ALL).contains("2 peers are at risk"));
}

#[test]
fn the_process_at_the_far_end_is_known_if_that_is_here() {
    const HERE: [u8; 4] = [10, 0, 1, 2];
    // The other host has this address, or the same one if it is this host.
    let rows = |other: [u8; 4], port| {
        let mut world = World::new();
        let process = |name: &str| Process { name: name.into(), pid: 8, owner: Owner::UNKNOWN };
        let end = |ip: [u8; 4], port| Endpoint { ip: Ipv4Addr::from(ip).into(), port };
        let client = Origin {
            local: end(HERE, 51_000),
            remote: end(other, port),
            process: Some(process("caddy")),
            ..origin(Role::Client, 1, None)
        };
        let server = Origin {
            role: Role::Server,
            local: end(HERE, port),
            remote: end(other, 51_000),
            process: Some(process("node")),
            ..client
        };
        world.traffic(client, Closer::Peer, 5000);
        world.traffic(server, Closer::Local, 5000);
        let picture = world.picture(ALL);
        let peers = json::peers(&world.about, ALL, &picture).expect("peers");
        let peers: serde_json::Value = serde_json::from_str(&peers).unwrap();
        let of = |role: &str| {
            let mut all = peers["peers"].as_array().unwrap().iter();
            all.find(|peer| peer["role"] == role).unwrap().clone()
        };
        [of("client"), of("server")]
    };
    let guesses = |row: &serde_json::Value| {
        let all = row["idle_timeout"]["peer"]["default_of"].as_array().unwrap();
        all.iter().map(|name| name.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let [client, server] = rows(HERE, 34567);
    assert_eq!(guesses(&client), ["Node.js"]);
    // So are its protocol and what to change there.
    assert_eq!((&client["protocol"], &server["protocol"]), (&"http".into(), &"http".into()));
    for row in [client, server] {
        let text = row["advice"][0]["text"].as_str().unwrap();
        assert!(text.starts_with("Let Caddy close idle connections after 4 s"), "{text}");
        let other = row["alternatives"][0]["text"].as_str().unwrap();
        assert!(other.contains("Caddy keeps them for 120 s by default"), "{other}");
    }
    // Two hosts that are servers for each other on the same port.
    let [client, server] = rows([10, 0, 1, 1], 34567);
    assert!(guesses(&client).contains(&"uvicorn".to_owned()), "{client}");
    assert!(client.get("protocol").is_none(), "{client}");
    let text = server["advice"][0]["text"].as_str().unwrap();
    assert!(text.contains("a guess"), "{text}");
    let [client, _] = rows([10, 0, 1, 1], 6379);
    assert_eq!(client["protocol"], "redis");
}

/// As two units of a host that use one database.
#[test]
fn owners_with_the_same_peer_are_on_its_page() {
    let mut world = World::new();
    let (cart, shop) = (world.owned("cart.service"), world.owned("shop.service"));
    world.traffic(cart, Closer::Peer, 5000);
    world.incident(at(39_000), cart, Class::StaleWrite);
    world.traffic(shop, Closer::Peer, 2000);
    world.traffic(origin(Role::Client, 2, None), Closer::Peer, 2000);
    let page = world.page(only("10.0.1.1:8080"));
    balanced(&page);
    let title = "<title>racing: cart.service (nginx) → 10.0.1.1:8080 and 1 more – finrace";
    assert!(page.contains(title), "{page}");
    let count = |part: &str| page.matches(part).count();
    assert_eq!((count("<article"), count("<h1"), count("Latest lost requests")), (2, 2, 1));
    assert!(count("cart.service") > 0 && count("shop.service") > 0 && count("10.0.1.2") == 0);
}

/// No matter what happens to the row that counted it.
#[test]
fn a_lost_request_stays_lost() {
    let mut world = World::new();
    world.incident(at(39_000), origin(Role::Client, 1, None), Class::StaleWrite);
    world.incident(at(39_000), origin(Role::Client, 1, None), Class::Farewell);
    world.table = Table::new(500, Duration::from_millis(200), Nanos(0));
    (0..200).for_each(|n| world.incident(at(n), origin(Role::Client, 2, None), Class::StaleWrite));
    assert!(world.page(ALL).contains("201 requests lost so far"));
    let picture = world.picture(ALL);
    assert!(json::status(&world.about, &picture).contains(r#""races": 201,"#));
}

/// As after booting a machine whose clock was an hour slow.
#[test]
fn a_clock_that_was_set_is_the_one_that_counts() {
    let mut world = World::new();
    world.about.wall += Duration::from_hours(1);
    world.traffic(origin(Role::Client, 1, None), Closer::Peer, 5000);
    world.incident(at(38_000), origin(Role::Client, 1, None), Class::StaleWrite);
    let page = world.page(ALL);
    for part in [
        "2023-11-14T23:14:00.000000Z\">23:14:00</time> UTC, after 40 s of watching",
        "the last 2 s ago, at <time datetime=\"2023-11-14T23:13:58.000000Z\">23:13:58</time>",
        "stale_write 1 (last 2023-11-14 23:13:58 UTC)",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let picture = world.picture(ALL);
    let status = json::status(&world.about, &picture);
    assert!(status.contains(r#""time": "2023-11-14T23:14:00.000000Z","#), "{status}");
    assert!(status.contains(r#""seconds": 40.0"#), "{status}");
}

/// The rows `other`: peers without a row of their own may lose requests, too.
#[test]
fn losses_of_those_without_a_row_are_told() {
    let mut world = World::new();
    world.table = Table::new(1, Duration::from_millis(200), Nanos(0));
    let nginx = |number| origin(Role::Client, number, Some("nginx"));
    world.incident(at(1000), nginx(1), Class::StaleWrite);
    let others = |world: &mut World| {
        let picture = world.picture(ALL);
        let run = world.about.run(&picture);
        run.of_others(&world.table).map(|other| (other.verdict, other.sentence)).collect::<Vec<_>>()
    };
    world.incident(at(2000), nginx(2), Class::Farewell);
    let [(verdict, _)] = &others(&mut world)[..] else { panic!() };
    assert_eq!(*verdict, State::Unknown, "nothing was lost");
    world.incident(at(3000), nginx(2), Class::StaleWrite);
    let text = "1 request lost by peers that found no row of their own, there being too many";
    assert_eq!(others(&mut world), [(State::Losing, text.to_owned())]);
}

#[test]
fn the_age_of_a_fin_is_told() {
    let mut world = World::busy();
    let picture = world.picture(ALL);
    let peer = world.about.run(&picture).of_row(&picture.rows[0]);
    assert_eq!(peer.fin_ages_text(), "2 up to 300 us");
}

#[test]
fn fifty_peers_are_a_small_page() {
    let mut world = World::new();
    for number in 0..60 {
        let nginx = origin(Role::Client, number, Some("nginx"));
        world.traffic(nginx, Closer::Peer, 5000);
        world.incident(at(38_000 + u64::from(number)), nginx, Class::StaleWrite);
    }
    let page = world.page(ALL);
    assert!(page.matches("<article").count() == 50 && page.len() < 190_000, "{}", page.len());
}
