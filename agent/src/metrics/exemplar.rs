//! The latest race of a series, as an exemplar: the lead to a proxy's log or to a capture.

use std::time::Duration;

use finrace_logic::table::Example;

use super::family::Exemplar;

/// Maximum number of characters in the names and values of an exemplar's labels, by `OpenMetrics`.
const MOST: usize = 128;

/// Labels that find no room are left out. `epoch` is the wall clock at time 0.
pub(super) fn exemplar(example: &Example, epoch: Duration) -> Exemplar {
    let Example { time, local, peer, process, gap, fin_age } = example;
    let seconds = |duration: &Duration| format!("{:.6}", duration.as_secs_f64());
    let labels = [
        ("local", Some(local.to_string())),
        ("peer", Some(peer.to_string())),
        ("gap", gap.as_ref().map(seconds)),
        ("fin_age", fin_age.as_ref().map(seconds)),
        ("pid", process.map(|process| process.pid.to_string())),
        ("process", process.map(|process| process.name.to_string())),
    ];
    let mut room = MOST;
    let labels = labels.into_iter().filter_map(|(name, value)| {
        let value = value.filter(|value| !value.is_empty())?;
        room = room.checked_sub(name.len() + value.chars().count())?;
        Some((name, value))
    });
    let labels = labels.collect();
    let time = epoch + Duration::from_nanos(time.0);
    // To the precision that Prometheus keeps.
    Exemplar { labels, time: Duration::new(time.as_secs(), time.subsec_millis() * 1_000_000) }
}

#[cfg(test)]
mod tests {
    use finrace_logic::model::{Endpoint, Nanos, Process};
    use finrace_logic::owner::Owner;

    use super::*;

    #[test]
    fn there_is_always_room() {
        let check = |ip: &str, gap, process: Option<&str>, expected: &[&str]| {
            let end = |port| Endpoint { ip: ip.parse().unwrap(), port };
            let fin_age = Some(Duration::from_micros(250));
            let process = process.map(|name| Process {
                name: name.into(),
                pid: 4_194_304,
                owner: Owner::UNKNOWN,
            });
            let example = Example {
                time: Nanos(5_000_999_999),
                local: end(51_000),
                peer: end(8080),
                process,
                gap,
                fin_age,
            };
            let Exemplar { labels, time } = exemplar(&example, Duration::from_millis(1250));
            let chars = labels.iter().map(|(name, value)| name.len() + value.chars().count());
            assert!(chars.sum::<usize>() <= MOST);
            let labels: Vec<_> =
                labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            assert_eq!(
                (labels, time),
                (expected.iter().map(ToString::to_string).collect(), Duration::from_millis(6250))
            );
        };
        let (second, hour) = (Some(Duration::from_secs(1)), Some(Duration::from_hours(1)));
        check(
            "10.0.0.5",
            second,
            Some("größer"),
            &[
                "local=10.0.0.5:51000",
                "peer=10.0.0.5:8080",
                "gap=1.000000",
                "fin_age=0.000250",
                "pid=4194304",
                "process=größer",
            ],
        );
        check(
            "10.0.0.5",
            None,
            None,
            &["local=10.0.0.5:51000", "peer=10.0.0.5:8080", "fin_age=0.000250"],
        );
        let long = "2001:db8:1111:2222:3333:4444:5555:6666";
        let (local, peer) = (format!("local=[{long}]:51000"), format!("peer=[{long}]:8080"));
        check(long, hour, Some("nginx"), &[&local, &peer, "gap=3600.000000", "pid=4194304"]);
    }
}
