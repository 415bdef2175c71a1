use super::*;

const CLIENT: [u8; 4] = [10, 0, 0, 9];

fn ends(netns: u32, client: [u8; 4]) -> [Origin; 2] {
    let client = Endpoint { ip: client.into(), port: 40_000 };
    let server = Endpoint { ip: UPSTREAM.into(), port: 8080 };
    let of = |role, local, remote| Origin { netns, role, local, remote, ..origin(role, UPSTREAM) };
    [of(Client, client, server), of(Server, server, client)]
}

fn key_of(origin: &Origin) -> RowKey {
    RowKey::of(origin).unwrap()
}

/// Forty closes by the server after two seconds, and reuses.
fn exposed(table: &mut Table, origin: Origin) {
    for second in 0..40 {
        let time = 10.0 + f64::from(second);
        table.add(&reuse(time, origin));
        table.add(&close(time, origin, Evidence::Idle, 2.0));
    }
}

/// Forty closes by the client after a second.
fn safe(table: &mut Table, origin: Origin) {
    for second in 0..40 {
        let time = 10.0 + f64::from(second);
        let closer = if origin.role == Client { Closer::Local } else { Closer::Peer };
        let Observation::Close(close) = close(time, origin, Evidence::Idle, 1.0) else { panic!() };
        table.add(&Observation::Close(Close { closer, ..close }));
    }
}

fn losing(table: &mut Table, origin: Origin, fin_age: Option<Duration>) {
    for second in 0..10 {
        let race = incident(f64::from(10 + second), origin, Class::StaleWrite);
        let gap = Some(Duration::from_secs(3));
        table.add(&Observation::Incident(Incident { cause: Cause::Idle, gap, fin_age, ..race }));
    }
}

/// What two rows say, the value for the server's timeout, and whose story it is.
#[track_caller]
fn says(table: &mut Table, origins: [Origin; 2], state: State, tellers: [Role; 2]) {
    table.assess(at(60.0));
    for (origin, teller) in origins.into_iter().zip(tellers) {
        let told = table.told(table.row(&key_of(&origin)).unwrap());
        assert_eq!(told.row.stats.verdict(), Some(state), "{}", origin.role);
        assert_eq!(told.teller().key.role(), teller, "{}", origin.role);
        let other_end = (origin.role == Server).then(|| key_of(&origins[0]));
        assert_eq!(told.other_end, other_end);
    }
}

#[test]
fn both_ends_tell_one_story() {
    let [client, server] = ends(1, CLIENT);
    // A pool that does not look: the client's end knows, the server's sees requests lost to a timeout.
    let mut table = Table::new(10, THRESHOLD, Nanos(0));
    exposed(&mut table, client);
    exposed(&mut table, server);
    losing(&mut table, client, Some(Duration::from_secs(2)));
    says(&mut table, [client, server], State::Leaking, [Client, Client]);
    // The server's end alone has seen losses.
    let mut table = Table::new(10, THRESHOLD, Nanos(0));
    safe(&mut table, client);
    exposed(&mut table, server);
    says(&mut table, [client, server], State::Exposed, [Server, Server]);
    losing(&mut table, server, None);
    says(&mut table, [client, server], State::Racing, [Server, Server]);
    // One of them has seen too little.
    let mut table = Table::new(10, THRESHOLD, Nanos(0));
    table.add(&reuse(10.0, server));
    safe(&mut table, client);
    says(&mut table, [client, server], State::Safe, [Client, Client]);
    let mut table = Table::new(10, THRESHOLD, Nanos(0));
    table.add(&reuse(10.0, client));
    safe(&mut table, server);
    says(&mut table, [client, server], State::Safe, [Server, Server]);
}

#[test]
fn nat_is_seen_through_once_both_lost_a_request() {
    let service = Endpoint { ip: [10, 96, 0, 1].into(), port: 80 };
    let [client, server] = ends(1, CLIENT);
    let client = Origin { remote: service, ..client };
    let server = Origin { netns: 2, ..server };
    let mut table = Table::new(10, THRESHOLD, Nanos(0));
    exposed(&mut table, client);
    exposed(&mut table, server);
    table.assess(at(60.0));
    assert_eq!(table.told(table.row(&key_of(&server)).unwrap()).other_end, None);
    let view = incident(61.0, server, Class::LateRequest);
    let race = incident(61.0, client, Class::StaleWrite);
    let race = Incident { other_view: Some(Box::new(view)), cause: Cause::Idle, ..race };
    for _ in 0..3 {
        table.add(&Observation::Incident(race.clone()));
    }
    // What else it sees does not undo it.
    exposed(&mut table, server);
    table.assess(at(62.0));
    assert_eq!(table.told(table.row(&key_of(&server)).unwrap()).other_end, Some(key_of(&client)));
    assert_eq!(table.told(table.row(&key_of(&client)).unwrap()).other_end, None);
    let survey = Survey::begin(&table, 10, None, at(62.0)).finish(&mut table);
    assert_eq!(survey.states.values().sum::<usize>(), 1, "{:?}", survey.states);
    // Gone with its row.
    table.forget_after(Duration::from_mins(1));
    Collection::begin(&mut table, 10_000, Some(at(9_000.0))).finish(&mut table);
    assert!(table.rows().is_empty() && table.pairs.is_empty());
}

#[test]
fn a_problem_counts_once() {
    let [client, server] = ends(1, CLIENT);
    let mut table = Table::new(10, THRESHOLD, Nanos(0));
    for origin in [client, server] {
        exposed(&mut table, origin);
    }
    let survey = Survey::begin(&table, 10, None, at(60.0)).finish(&mut table);
    assert_eq!(survey.states.into_iter().collect::<Vec<_>>(), [(State::Exposed, 1)]);
    assert_eq!((survey.rows.len(), survey.rows_now), (2, 2));
    let export = Collection::begin(&mut table, 10_000, Some(at(60.0))).finish(&mut table);
    let others: Vec<_> =
        export.rows.shown.iter().map(|row| (row.key.role(), row.is_other_end)).collect();
    assert_eq!(others.iter().filter(|(_, is_other_end)| *is_other_end).count(), 1);
    assert!(others.contains(&(Server, true)), "{others:?}");
}

#[test]
fn the_values_are_those_of_the_teller() {
    let [client, server] = ends(1, CLIENT);
    let mut table = Table::new(10, THRESHOLD, Nanos(0));
    exposed(&mut table, client);
    losing(&mut table, client, None);
    for second in 0..40 {
        table.add(&close(10.0 + f64::from(second), server, Evidence::Idle, 65.0));
    }
    let export = Collection::begin(&mut table, 10_000, Some(at(60.0))).finish(&mut table);
    let timeouts = |role| {
        let row = export.rows.shown.iter().find(|row| row.key.role() == role).unwrap();
        row.timeouts.map(|timeout| timeout.map(|timeout| timeout.value.round()))
    };
    // The peer's at the client is our own at the server.
    assert_eq!((timeouts(Client), timeouts(Server)), ([Some(2.0), None], [None, Some(2.0)]));
}

#[test]
fn what_is_no_pair() {
    let [client, server] = ends(1, CLIENT);
    let alone = |table: &mut Table, origin: &Origin| {
        table.assess(at(60.0));
        let told = table.told(table.row(&key_of(origin)).unwrap());
        assert!(told.other_end.is_none() && told.teller().key == told.row.key);
    };
    let fresh = || {
        let mut table = Table::new(10, THRESHOLD, Nanos(0));
        safe(&mut table, client);
        table
    };
    // A server for another client.
    let mut table = fresh();
    let [_, other] = ends(1, [10, 0, 0, 77]);
    exposed(&mut table, other);
    alone(&mut table, &client);
    alone(&mut table, &other);
    // Loopback of another network namespace.
    let mut table = Table::new(10, THRESHOLD, Nanos(0));
    let local = |origin: Origin, netns| {
        let at = |end: Endpoint| Endpoint { ip: Ipv4Addr::LOCALHOST.into(), ..end };
        Origin { netns, local: at(origin.local), remote: at(origin.remote), ..origin }
    };
    safe(&mut table, local(client, 1));
    exposed(&mut table, local(server, 2));
    alone(&mut table, &local(client, 1));
    alone(&mut table, &local(server, 2));
    // A row whose connections have two local addresses.
    let mut table = fresh();
    let second = Endpoint { ip: [10, 0, 0, 6].into(), ..server.local };
    exposed(&mut table, server);
    exposed(&mut table, Origin { local: second, ..server });
    alone(&mut table, &client);
    alone(&mut table, &server);
}

/// One row of a server for two of clients: it tells of neither's problem, and has that of the worst.
#[test]
fn a_server_of_two_clients_says_what_the_worst_does() {
    let [client, server] = ends(1, CLIENT);
    let other = Origin { owner: Owner(7), ..client };
    let mut table = Table::new(10, THRESHOLD, Nanos(0));
    safe(&mut table, client);
    exposed(&mut table, other);
    losing(&mut table, other, None);
    exposed(&mut table, server);
    table.assess(at(60.0));
    let state = |origin: &Origin| table.row(&key_of(origin)).unwrap().stats.verdict();
    assert_eq!(state(&client), Some(State::Safe));
    assert_eq!(state(&other), Some(State::Racing));
    assert_eq!(state(&server), Some(State::Racing));
    let told = table.told(table.row(&key_of(&server)).unwrap());
    assert_eq!(told.other_end, Some(key_of(&other)));
}

#[test]
fn who_leaves_is_no_other_end() {
    let mut table = Table::new(4, THRESHOLD, Nanos(0));
    for n in 0..1000_u32 {
        let [_, _, high, low] = (10_u32 << 24 | n).to_be_bytes();
        for origin in ends(1, [10, 9, high, low]) {
            table.add(&reuse(f64::from(n), origin));
        }
        assert!(table.pairs.len() <= 4, "{}", table.pairs.len());
        let rows: usize = table.pairs.values().flatten().map(Vec::len).sum();
        assert!(rows <= table.rows().len());
    }
    table.forget_after(Duration::from_secs(1));
    Collection::begin(&mut table, 10_000, Some(at(5000.0))).finish(&mut table);
    assert!(table.rows().is_empty() && table.pairs.is_empty());
}
