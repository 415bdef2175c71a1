use std::fmt::Write as _;
use std::io::{ErrorKind, Read as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use bytes::Bytes;
use finrace_logic::model::{
    Cause, Class, Close, Dwell, Endpoint, Evidence, How, Incident, Nanos, Observation, Origin,
    Outcome, Process, Reuse, Role,
};
use finrace_logic::owner::{Owner, Place};
use finrace_logic::table::Keeps;
use flate2::read::GzDecoder;

use super::*;
use crate::lost::Reason;
use crate::who::Who;

fn empty() -> (Table, Status) {
    (Table::new(2000, Duration::from_millis(200), Nanos(0)), Status::default())
}

fn origin(role: Role, ip: impl Into<IpAddr>, process: Option<&str>) -> Origin {
    let (local, remote) = if role == Role::Server { (443, 51_000) } else { (51_000, 8080) };
    Origin {
        netns: 4_026_531_840,
        owner: Owner::UNKNOWN,
        role,
        local: Endpoint { ip: Ipv4Addr::new(10, 0, 0, 9).into(), port: local },
        remote: Endpoint { ip: ip.into(), port: remote },
        process: process.map(|name| Process { name: name.into(), pid: 7, owner: Owner::UNKNOWN }),
        rtt: None,
    }
}

/// A proxy between a server that closes first and some clients, with room for fewer peers than there are.
fn busy() -> (Table, Status) {
    busy_keeping(Keeps::default())
}

pub(super) fn busy_keeping(keeps: Keeps) -> (Table, Status) {
    let mut table = Table::new(4, Duration::from_millis(200), Nanos(0));
    table.keep(keeps);
    let upstream = || origin(Role::Client, [10, 0, 0, 5], Some("nginx: \"a\\b\""));
    let v6 = || origin(Role::Client, Ipv6Addr::LOCALHOST, None);
    let visitor = |n| origin(Role::Server, [192, 0, 2, n], None);
    let time = |seconds| Nanos(seconds * 1_000_000_000);
    let close = |at, origin, closer, how, evidence, ms| {
        let close = Close::of_idle(time(at), origin, closer, Duration::from_millis(ms));
        Observation::Close(Close { how, evidence, ..close })
    };
    let incident = |at, origin, class, cause, other_view| {
        Observation::Incident(Incident {
            cause,
            fin_age: Some(Duration::from_micros(250)),
            other_view,
            ..Incident::new(time(at), origin, class, Outcome::Reset)
        })
    };
    for n in 0..6 {
        let (closer, how) = (Closer::Peer, How::Fin);
        table.add(&close(n, upstream(), closer, how, Evidence::Idle, 5000 + n));
    }
    table.add(&close(6, upstream(), Closer::Local, How::Rst, Evidence::Unused, 0));
    table.add(&close(6, upstream(), Closer::Local, How::Fin, Evidence::Idle, 60_000));
    table.add(&Observation::Reuse(Reuse::new(
        time(7),
        upstream(),
        Duration::from_millis(4990),
        100,
    )));
    table.add(&Observation::Dwell(Dwell {
        time: time(7),
        origin: upstream(),
        dwell: Duration::from_millis(2),
        written: false,
    }));
    let other = incident(8, visitor(1), Class::LateRequest, Cause::Idle, None);
    let Observation::Incident(other) = other else { unreachable!() };
    table.add(&incident(8, upstream(), Class::StaleWrite, Cause::Idle, Some(Box::new(other))));
    table.add(&incident(9, upstream(), Class::StaleWrite, Cause::Rollout, None));
    table.add(&incident(9, upstream(), Class::Farewell, Cause::Idle, None));
    table.add(&incident(9, upstream(), Class::Farewell, Cause::Unknown, None));
    table.add(&incident(9, v6(), Class::SilentDrop, Cause::Idle, None));
    table.add(&close(10, visitor(2), Closer::Peer, How::Fin, Evidence::Unused, 0));
    table.add(&close(11, visitor(3), Closer::Local, How::Fin, Evidence::Idle, 75_000));
    table.add(&close(
        11,
        origin(Role::Unknown, [1; 4], None),
        Closer::Peer,
        How::Fin,
        Evidence::Idle,
        1,
    ));

    table.assess(time(12));

    let fill = |name, used, capacity| Fill { name, used, capacity };
    let status = Status {
        version: "1.2.3",
        revision: "0123abc",
        rustc: "1.95.0",
        hooks: vec![HookStatus {
            job: "close",
            hook: "tp_btf",
            attached_to: "inet_sock_set_state".into(),
            program: "fr_state".into(),
            loses: Some("writes of kTLS"),
        }],
        missing_fields: vec!["tcp_sock.rcv_wup".to_owned()],
        events: vec![("close", 10), ("reset", 2)],
        skipped: vec![("write", 3)],
        lost: [(Reason::RacesRingFull, 0), (Reason::Malformed, 1)].into(),
        stages: vec![Balance {
            taken: 18,
            passed: 12,
            lost: 1,
            pending: 5,
            ..Balance::of(Stage::RacesRing)
        }],
        maps: vec![fill("FR_SOCKS", 3, 8192)],
        rings: vec![fill("FR_RACES", 128, 262_144), fill("FR_STATS", 0, 1_048_576)],
        sources: vec![SourceState {
            name: "apiserver",
            is_up: true,
            last_sync: Some(Duration::from_millis(1_700_000_100_500)),
            errors: vec![("forbidden", 2)],
            objects: vec![("pod", 110)],
        }],
        process: Some(ProcessStatus {
            cpu: Duration::from_millis(1234),
            resident_bytes: 6_668_288,
            open_fds: 17,
            start: Duration::from_millis(1_700_000_000_250),
        }),
        epoch: Duration::from_secs(1_700_000_000),
    };
    (table, status)
}

/// `GOLDEN=write cargo test` rewrites the expected files: read the diff.
fn check(name: &str, expected: &str, (mut table, status): (Table, Status), format: Format) {
    let text = encode(&mut table, status, format);
    if std::env::var_os("GOLDEN").is_some_and(|value| value == "write") {
        let path = format!("{}/src/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(path, text).unwrap();
    } else {
        assert!(text == expected, "golden/{name}.txt differs, is now:\n{text}");
    }
}

#[test]
fn golden() {
    use Format::{OpenMetrics, Text004};
    let file = include_str!("../golden/empty.openmetrics.txt");
    check("empty.openmetrics", file, empty(), OpenMetrics);
    check("empty.text004", include_str!("../golden/empty.text004.txt"), empty(), Text004);
    let file = include_str!("../golden/busy.openmetrics.txt");
    check("busy.openmetrics", file, busy(), OpenMetrics);
    check("busy.text004", include_str!("../golden/busy.text004.txt"), busy(), Text004);
}

#[test]
fn a_scrape_shows_all_that_was_counted() {
    let (mut table, status) = busy();
    let all = balance(&mut table, status);
    assert_eq!((all.unaccounted(), all.taken), (0, table.balance().taken - table.unattributed()));
    assert!(all.taken > 10, "{all:?}");
    // Of 20,000 peers, few have series of their own.
    let (_, status) = empty();
    let mut table = Table::new(20_000, Duration::from_millis(200), Nanos(0));
    for n in 0..20_000_u32 {
        let origin = origin(Role::Client, Ipv4Addr::from(0x0a00_0000 + n), None);
        let (time, idle) = (Nanos(u64::from(n) * 1_000_000), Duration::from_secs(5));
        table.add(&closed(time, origin, Closer::Peer, idle));
    }
    assert_eq!(balance(&mut table, status).unaccounted(), 0);
}

#[test]
fn the_table_is_back_after_a_scrape() {
    let (mut table, status) = busy();
    let first = encode(&mut table, status.clone(), Format::OpenMetrics);
    assert_eq!(encode(&mut table, status, Format::OpenMetrics), first);
}

/// The tables in docs/metrics.md name every family there is, and nothing else.
#[test]
fn the_documentation_names_them_all() {
    let page = include_str!("../../../docs/metrics.md");
    let busy = include_str!("../golden/busy.text004.txt");
    let families = busy.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let ours: Vec<_> = families.filter(|name| name.starts_with("finrace_")).collect();
    for family in &ours {
        assert!(page.contains(&format!("`{family}`")), "{family} is not in docs/metrics.md");
    }
    for name in page.split('`').filter(|text| text.starts_with("finrace_")) {
        assert!(ours.contains(&name), "{name} is only in docs/metrics.md");
    }
}

/// Converts the encoder's output as one text, as was done before it came in pieces.
fn to_text004(openmetrics: &str) -> String {
    let mut out = String::new();
    let mut lines = openmetrics.lines().peekable();
    let mut suffix = "";
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let kind = lines.peek().and_then(|next| next.rsplit_once(' ')).map(|(_, kind)| kind);
            suffix = match kind {
                Some("counter") => "_total",
                Some("info") => "_info",
                _ => "",
            };
            let (name, text) = help.split_once(' ').unwrap();
            writeln!(out, "# HELP {name}{suffix} {text}").unwrap();
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            let kind = if kind == "info" { "gauge" } else { kind };
            writeln!(out, "# TYPE {name}{suffix} {kind}").unwrap();
        } else if !line.starts_with("# ") {
            writeln!(out, "{line}").unwrap();
        }
    }
    out
}

/// Only if they are kept, and only in the formats that have them.
#[test]
fn exemplars_are_the_latest_races() {
    let all = Keeps { native: true, examples: true };
    let with_exemplars = |keeps, format| -> Vec<String> {
        let (mut table, status) = busy_keeping(keeps);
        let text = encode(&mut table, status, format);
        let exemplars = text.lines().filter_map(|line| line.split_once(" # "));
        exemplars.map(|(sample, exemplar)| format!("{sample} # {exemplar}")).collect()
    };
    let none: [&str; 0] = [];
    assert_eq!(with_exemplars(Keeps { examples: false, ..all }, Format::OpenMetrics), none);
    assert_eq!(with_exemplars(all, Format::Text004), none);
    let found = with_exemplars(Keeps { native: false, ..all }, Format::OpenMetrics);
    let process = r#"nginx: \"a\\b\""#;
    let expected = format!(
        "finrace_races_total{{role=\"client\",peer=\"10.0.0.5:8080\",peer_ip=\"10.0.0.5\",\
         server_port=\"8080\",netns=\"4026531840\",process=\"{process}\",class=\"stale_write\",\
         cause=\"rollout\",read=\"unknown\"}} 1 # \
         {{local=\"10.0.0.9:51000\",peer=\"10.0.0.5:8080\",fin_age=\"0.000250\",pid=\"7\",\
         process=\"{process}\"}} 1.0 1700000009.0"
    );
    assert!(found.contains(&expected), "{expected}\n{found:#?}");
    // One for each series with races, of rows and of ports; none for anything else.
    assert!(found.iter().all(|line| line.contains("races_total{")) && found.len() == 6);
}

/// Many peers of one port.
pub(super) fn crowd(peers: u32) -> Table {
    let mut table = Table::new(peers as usize, Duration::from_millis(200), Nanos(0));
    for peer in 0..peers {
        let origin = origin(Role::Client, Ipv4Addr::from_bits(0x0a00_0000 + peer), None);
        let (time, gap) = (Nanos(1_000_000_000), Duration::from_secs(3));
        table.add(&Observation::Reuse(Reuse::new(time, origin, gap, 1)));
    }
    table
}

/// The chunks of a scrape with room for `series_max` series.
pub(super) fn chunks(
    table: &mut Table,
    series_max: usize,
    format: Format,
    is_gzip: bool,
) -> Vec<Bytes> {
    let (_, status) = busy();
    let export = Collection::begin(table, status.room(series_max), None).finish(table);
    let mut chunks = Vec::new();
    let send = |chunk| {
        chunks.push(chunk);
        Ok(())
    };
    write(export, status, Naming::default(), (format, is_gzip), send).unwrap();
    chunks
}

fn text_of(chunks: &[Bytes]) -> String {
    String::from_utf8(chunks.concat()).unwrap()
}

#[test]
fn a_scrape_comes_in_chunks_the_same_in_every_form() {
    let mut table = crowd(300);
    let whole = chunks(&mut table, SERIES_MAX, Format::OpenMetrics, false);
    assert!(whole.len() > 5 && whole.iter().all(|chunk| chunk.len() <= CHUNK));
    let whole = text_of(&whole);
    let older = text_of(&chunks(&mut table, SERIES_MAX, Format::Text004, false));
    assert!(older == to_text004(&whole), "the older format is another");
    for (format, expected) in [(Format::OpenMetrics, whole), (Format::Text004, older)] {
        let gzip = chunks(&mut table, SERIES_MAX, format, true).concat();
        let mut text = String::new();
        GzDecoder::new(gzip.as_slice()).read_to_string(&mut text).unwrap();
        assert!(gzip.len() * 5 < text.len() && text == expected, "{format:?}");
    }
}

#[test]
fn a_scrape_ends_where_nobody_reads() {
    for format in [Format::Text004, Format::Protobuf] {
        let (mut table, status) = (crowd(1000), Status::default());
        let export = Collection::begin(&mut table, usize::MAX, None).finish(&mut table);
        let mut sent = 0;
        let written = write(export, status, Naming::default(), (format, false), |_| {
            sent += 1;
            if sent < 3 { Ok(()) } else { Err(ErrorKind::BrokenPipe.into()) }
        });
        assert_eq!((written.unwrap_err().kind(), sent), (ErrorKind::BrokenPipe, 3), "{format:?}");
    }
}

#[test]
fn series_have_a_limit() {
    let series = |text: &str| text.lines().filter(|line| !line.starts_with('#')).count();
    let (_, status) = busy();
    let own = series(&encode(&mut empty().0, status.clone(), Format::OpenMetrics));
    assert_eq!(own, status.series());
    let mut crowds = [crowd(1000), crowd(1000)];
    // Each of these has a timeout, a verdict and advice.
    for (second, peer) in (0..6).flat_map(|second| (0..1000).map(move |peer| (second, peer))) {
        let origin = origin(Role::Client, Ipv4Addr::from_bits(0x0a00_0000 + peer), None);
        let time = Nanos(second * 10_000_000_000);
        crowds[1].add(&closed(time, origin, Closer::Peer, Duration::from_secs(5)));
    }
    crowds[1].assess(Nanos(60_000_000_000));
    for (table, limits) in crowds.into_iter().zip([
        [(1000, 981), (5000, 715), (SERIES_MAX, 0)],
        [(1000, 993), (5000, 882), (SERIES_MAX, 0)],
    ]) {
        for (series_max, left_out) in limits {
            let text = text_of(&chunks(&mut table.clone(), series_max, Format::Text004, false));
            let count = series(&text);
            assert!(count <= series_max && count + 700 > series_max.min(15_000), "{count}");
            assert_eq!(
                series_of(&text, "finrace_table_rows_unexported"),
                [format!("finrace_table_rows_unexported {left_out}")]
            );
        }
    }
}

/// An idle connection was closed.
fn closed(time: Nanos, origin: Origin, closer: Closer, idle: Duration) -> Observation {
    Observation::Close(Close::of_idle(time, origin, closer, idle))
}

/// Two containers of a pod and a unit of the host, all clients of one server; the unit's server too.
fn owned() -> (Table, Who) {
    let (mut table, who) = (Table::new(100, Duration::from_millis(200), Nanos(0)), Who::default());
    let pod = "/kubepods/poddde1244b-5bb5-4297-b544-85f3bc0d80bf";
    let paths = [format!("{pod}/{}", "a1".repeat(32)), format!("{pod}/{}", "b2".repeat(32))];
    let unit = who.owner(Place::of("/system.slice/\"nginx\".service").unwrap());
    let containers = paths.map(|path| who.owner(Place::of(&path).unwrap()));
    for (owner, role) in [
        (containers[0], Role::Client),
        (containers[1], Role::Client),
        (unit, Role::Client),
        (unit, Role::Server),
    ] {
        let origin = Origin { owner, ..origin(role, [10, 0, 0, 5], Some("nginx")) };
        let (time, gap) = (Nanos(1_000_000_000), Duration::from_secs(3));
        table.add(&Observation::Reuse(Reuse::new(time, origin, gap, 1)));
        for second in 0..6 {
            let time = Nanos(second * 10_000_000_000);
            table.add(&closed(time, origin, Closer::Peer, Duration::from_secs(5)));
        }
    }
    table.assess(Nanos(60_000_000_000));
    (table, who)
}

fn series_of<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    text.lines().filter(|line| line.starts_with(name)).collect()
}

#[test]
fn ends_are_named_and_labels_chosen() {
    let text = |labels: &[Label]| {
        let (mut table, who) = owned();
        let export = Collection::begin(&mut table, 10_000, None).finish(&mut table);
        let naming = Naming::new(labels.to_vec(), who);
        stream::to_text(export, Status::default(), naming, Format::OpenMetrics)
    };
    let all = text(&Naming::default().labels);
    let counts = "finrace_reuse_gap_seconds_count";
    let start = "{role=\"client\",peer=\"10.0.0.5:8080\",peer_ip=\"10.0.0.5\",server_port=\"8080\",\
                 netns=\"4026531840\",process=\"nginx\"";
    assert_eq!(
        series_of(&all, counts),
        [
            format!("{counts}{start},client_container=\"a1a1a1a1a1a1\"}} 1"),
            format!("{counts}{start},client_container=\"b2b2b2b2b2b2\"}} 1"),
            format!("{counts}{start},client_workload=\"\\\"nginx\\\".service\"}} 1"),
            format!(
                "{counts}{{role=\"server\",peer=\":443 from 10.0.0.5\",peer_ip=\"10.0.0.5\",\
                 server_port=\"443\",netns=\"4026531840\",process=\"nginx\",server_workload=\"\\\"nginx\\\".service\"}} 1"
            ),
        ]
    );
    // Lines with the same labels are one: counts are summed, and the timeout with the most closes is taken.
    let few = text(&[Label::Workload]);
    assert_eq!(
        series_of(&few, counts),
        [
            format!("{counts}{{role=\"client\"}} 2"),
            format!("{counts}{{role=\"client\",client_workload=\"\\\"nginx\\\".service\"}} 1"),
            format!("{counts}{{role=\"server\",server_workload=\"\\\"nginx\\\".service\"}} 1"),
        ]
    );
    assert_eq!(series_of(&few, "finrace_idle_timeout_seconds{").len(), 3);
    assert_eq!(
        series_of(&text(&[]), "finrace_closes_total{role=\"client\""),
        ["finrace_closes_total{role=\"client\",closer=\"peer\",how=\"fin\",evidence=\"idle\"} 18"]
    );
    // The sum of the others has no labels left to identify it.
    assert!(!few.contains("\"other\""), "{few}");
    for text in [all, few, text(&[]), text(&[Label::Peer])] {
        let mut names: Vec<_> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit_once(' '))
            .map(|(name, _)| name)
            .collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "a series is there twice: {text}");
    }
}

/// What a scrape says about a table with these labels.
fn labelled(table: &mut Table, labels: &[Label]) -> String {
    let export = Collection::begin(table, 10_000, None).finish(table);
    let naming = Naming::new(labels.to_vec(), Who::default());
    stream::to_text(export, Status::default(), naming, Format::OpenMetrics)
}

#[test]
fn the_peers_address_and_the_servers_port_are_labels_of_their_own() {
    let mut table = Table::new(5, Duration::from_millis(200), Nanos(0));
    let mut reuse = |role, ip: IpAddr, port| {
        let mut origin = origin(role, ip, None);
        let of_server = if role == Role::Server { &mut origin.local } else { &mut origin.remote };
        of_server.port = port;
        let (time, gap) = (Nanos(1_000_000_000), Duration::from_secs(3));
        (0..5).for_each(|_| {
            table.add(&Observation::Reuse(Reuse::new(time, origin, gap, 1)));
        });
    };
    let (v4, v6) = ([10, 0, 0, 5].into(), "fd00::5".parse().unwrap());
    // This one gives way to the others.
    reuse(Role::Server, [10, 0, 0, 6].into(), 8080);
    reuse(Role::Client, v4, 8080);
    reuse(Role::Client, v4, 9090);
    reuse(Role::Client, v6, 8080);
    // The same except for which end is the server.
    reuse(Role::Server, v4, 8080);
    reuse(Role::Server, v6, 8080);
    let mut check = |labels: &[Label], expected: &[&str]| {
        let text = labelled(&mut table, labels);
        let counts = series_of(&text, "finrace_reuse_gap_seconds_count");
        let expected: Vec<_> = expected
            .iter()
            .map(|of| format!("finrace_reuse_gap_seconds_count{{{}}}", of.replace('\'', "\"")))
            .collect();
        let found: Vec<_> = counts.iter().filter_map(|line| line.rsplit_once(' ')).collect();
        assert_eq!(found.iter().map(|(name, _)| *name).collect::<Vec<_>>(), expected);
        // Whatever the labels, each is counted once.
        assert_eq!(sum_of(&text, "finrace_reuse_gap_seconds_count"), 30);
        assert_eq!(
            series_of(&text, "finrace_port_reuse_gap_seconds_count"),
            [
                "finrace_port_reuse_gap_seconds_count{role=\"client\",server_port=\"8080\"} 10",
                "finrace_port_reuse_gap_seconds_count{role=\"client\",server_port=\"9090\"} 5",
                "finrace_port_reuse_gap_seconds_count{role=\"server\",server_port=\"8080\"} 15",
            ]
        );
    };
    check(
        &[Label::Peer, Label::PeerIp, Label::ServerPort],
        &[
            "role='client',peer='10.0.0.5:8080',peer_ip='10.0.0.5',server_port='8080'",
            "role='client',peer='10.0.0.5:9090',peer_ip='10.0.0.5',server_port='9090'",
            "role='client',peer='[fd00::5]:8080',peer_ip='fd00::5',server_port='8080'",
            "role='server',peer=':8080 from 10.0.0.5',peer_ip='10.0.0.5',server_port='8080'",
            "role='server',peer=':8080 from fd00::5',peer_ip='fd00::5',server_port='8080'",
            "role='server',peer='other',peer_ip='other',server_port='other'",
        ],
    );
    check(
        &[Label::PeerIp, Label::ServerPort],
        &[
            "role='client',peer_ip='10.0.0.5',server_port='8080'",
            "role='client',peer_ip='10.0.0.5',server_port='9090'",
            "role='client',peer_ip='fd00::5',server_port='8080'",
            "role='server',peer_ip='10.0.0.5',server_port='8080'",
            "role='server',peer_ip='fd00::5',server_port='8080'",
            "role='server',peer_ip='other',server_port='other'",
        ],
    );
    // Lines with the same labels are one.
    check(
        &[Label::ServerPort],
        &[
            "role='client',server_port='8080'",
            "role='client',server_port='9090'",
            "role='server',server_port='8080'",
            "role='server',server_port='other'",
        ],
    );
    check(
        &[Label::PeerIp],
        &[
            "role='client',peer_ip='10.0.0.5'",
            "role='client',peer_ip='fd00::5'",
            "role='server',peer_ip='10.0.0.5'",
            "role='server',peer_ip='fd00::5'",
            "role='server',peer_ip='other'",
        ],
    );
    check(&[], &["role='client'", "role='server'"]);
}

#[test]
fn the_value_to_set_is_a_metric() {
    let mut table = Table::new(100, Duration::from_millis(200), Nanos(0));
    let mut peer = |role, last: u8, closer, secs| {
        let origin = origin(role, [10, 0, 0, last], None);
        let (time, gap) = (Nanos(1_000_000_000), Duration::from_secs(1));
        table.add(&Observation::Reuse(Reuse::new(time, origin, gap, 1)));
        for second in 0..6 {
            let time = Nanos(second * 10_000_000_000);
            table.add(&closed(time, origin, closer, Duration::from_secs(secs)));
        }
    };
    // The server closes first.
    peer(Role::Client, 1, Closer::Peer, 5);
    peer(Role::Client, 2, Closer::Peer, 10);
    peer(Role::Server, 3, Closer::Local, 5);
    peer(Role::Server, 4, Closer::Local, 75);
    // The client does.
    peer(Role::Client, 5, Closer::Local, 5);
    peer(Role::Server, 6, Closer::Peer, 5);
    let name = "finrace_advised_idle_timeout_seconds";
    let none: [&str; 0] = [];
    assert_eq!(series_of(&labelled(&mut table, &[Label::PeerIp]), &format!("{name}{{")), none);
    table.assess(Nanos(60_000_000_000));
    assert_eq!(
        series_of(&labelled(&mut table, &[Label::PeerIp]), &format!("{name}{{")),
        [
            "finrace_advised_idle_timeout_seconds{role=\"client\",peer_ip=\"10.0.0.1\",side=\"client\"} 4.0",
            "finrace_advised_idle_timeout_seconds{role=\"client\",peer_ip=\"10.0.0.2\",side=\"client\"} 9.0",
            "finrace_advised_idle_timeout_seconds{role=\"server\",peer_ip=\"10.0.0.3\",side=\"server\"} 65.0",
            "finrace_advised_idle_timeout_seconds{role=\"server\",peer_ip=\"10.0.0.4\",side=\"server\"} 165.0",
        ]
    );
    // For several that are one, the value that is good for all.
    assert_eq!(
        series_of(&labelled(&mut table, &[]), &format!("{name}{{")),
        [
            "finrace_advised_idle_timeout_seconds{role=\"client\",side=\"client\"} 4.0",
            "finrace_advised_idle_timeout_seconds{role=\"server\",side=\"server\"} 165.0",
        ]
    );
}

#[test]
fn buckets_that_cannot_be_filled_are_left_out() {
    let check = |threshold: u64, gap: u64, least: &str, count: usize| {
        let mut table = Table::new(100, Duration::from_millis(threshold), Nanos(0));
        let (time, origin) = (Nanos(1_000_000_000), origin(Role::Client, [10, 0, 0, 5], None));
        let gap = Duration::from_millis(gap);
        table.add(&Observation::Reuse(Reuse::new(time, origin, gap, 1)));
        table.add(&closed(time, origin, Closer::Peer, gap));
        let dwell = Duration::from_micros(50);
        table.add(&Observation::Dwell(Dwell { time, origin, dwell, written: false }));
        let text = labelled(&mut table, &[]);
        for (name, least, count) in [
            ("finrace_reuse_gap", least, count),
            ("finrace_idle_before_close", least, count),
            ("finrace_port_reuse_gap", least, count),
            // What takes a round trip is not affected.
            ("finrace_close_wait", "0.0001", 13),
        ] {
            let buckets = series_of(&text, &format!("{name}_seconds_bucket"));
            assert_eq!(buckets.len(), count, "{threshold} {name}");
            assert!(buckets[0].contains(&format!("le=\"{least}\",")), "{threshold} {buckets:?}");
            assert!(buckets[count - 1].ends_with(" 1"), "{threshold} {buckets:?}");
        }
    };
    check(200, 250, "0.95", 12);
    check(99, 100, "0.1", 13);
    check(100, 101, "0.95", 12);
    check(10, 11, "0.1", 13);
    check(2000, 2001, "2.2", 9);
    check(3_600_000, 3_600_001, "+Inf", 1);
}

#[test]
fn owners_that_have_the_same_name_are_one() {
    let (mut table, _) = owned();
    let export = Collection::begin(&mut table, 10_000, None).finish(&mut table);
    // The names of their owners are not known.
    let text = stream::to_text(export, Status::default(), Naming::default(), Format::OpenMetrics);
    let counts = series_of(&text, "finrace_reuse_gap_seconds_count");
    assert_eq!(counts.len(), 2, "{counts:?}");
    assert!(counts[0].ends_with(" 3"), "{counts:?}");
}

/// The sum of a series' values over the lines that begin like this.
fn sum_of(text: &str, start: &str) -> u64 {
    let values = series_of(text, start).into_iter().map(|line| line.rsplit_once(' ').unwrap().1);
    values.map(|value| value.parse::<u64>().unwrap()).sum()
}

#[test]
fn no_series_goes_back_when_one_of_its_rows_leaves() {
    // Two pods of a workload, one of which is no longer seen.
    let mut table = Table::new(10, Duration::from_millis(200), Nanos(0));
    table.forget_after(Duration::from_secs(100));
    let at = |secs: u64| Nanos(secs * 1_000_000_000);
    let reuse = |table: &mut Table, secs, ip: u8| {
        let origin = origin(Role::Client, [10, 0, 0, ip], None);
        let (time, gap) = (at(secs), Duration::from_secs(3));
        table.add(&Observation::Reuse(Reuse::new(time, origin, gap, 1)));
    };
    (0..5).for_each(|secs| reuse(&mut table, secs, 1));
    (0..7).for_each(|secs| reuse(&mut table, secs, 2));
    let naming = Naming::new(vec![Label::Netns], Who::default());
    let scrape = |table: &mut Table, secs| {
        let export = Collection::begin(table, 10_000, Some(at(secs))).finish(table);
        stream::to_text(export, Status::default(), naming.clone(), Format::OpenMetrics)
    };
    let (peers, ports) =
        ("finrace_reuse_gap_seconds_count", "finrace_port_reuse_gap_seconds_count");
    let of_netns = format!("{peers}{{role=\"client\",netns=\"4026531840\"}} ");
    for _ in 0..2 {
        assert_eq!(sum_of(&scrape(&mut table, 10), &of_netns), 12);
    }
    reuse(&mut table, 200, 2);
    for _ in 0..3 {
        let text = scrape(&mut table, 201);
        assert_eq!(table.rows().len(), 1);
        assert_eq!((sum_of(&text, &of_netns), sum_of(&text, peers)), (13, 13), "{text}");
    }
    // Once the last of them is gone, its series ends and the others take it over.
    for _ in 0..2 {
        let text = scrape(&mut table, 900);
        assert_eq!((series_of(&text, &of_netns).len(), sum_of(&text, peers)), (0, 13), "{text}");
        assert_eq!(sum_of(&text, ports), 13);
    }
    // Another one starts again from zero.
    reuse(&mut table, 901, 3);
    let text = scrape(&mut table, 902);
    assert_eq!((sum_of(&text, &of_netns), sum_of(&text, peers)), (1, 14), "{text}");
}

#[test]
fn a_row_that_gives_way_while_others_are_taken_is_counted_once() {
    let mut table = Table::new(2, Duration::from_millis(200), Nanos(0));
    let reuse = |table: &mut Table, secs: u64, ip: u8| {
        let origin = origin(Role::Client, [10, 0, 0, ip], None);
        let (time, gap) = (Nanos(secs * 1_000_000_000), Duration::from_secs(3));
        table.add(&Observation::Reuse(Reuse::new(time, origin, gap, 1)));
    };
    let naming = Naming::new(vec![Label::Netns], Who::default());
    let mut added = 0;
    for step in 0..40 {
        let mut collection = Collection::begin(&mut table, 10_000, None);
        // Each time at a different point of the collection, one peer comes and another leaves.
        for _ in 0..step % 13 {
            collection.step(&mut table);
        }
        reuse(&mut table, step, step as u8);
        added += 1;
        let export = collection.finish(&mut table);
        let text = stream::to_text(export, Status::default(), naming.clone(), Format::OpenMetrics);
        let counted = sum_of(&text, "finrace_reuse_gap_seconds_count{");
        // The newcomer may have come too late for this one.
        assert!([added, added - 1].contains(&counted), "{step}: {counted}");
    }
}
