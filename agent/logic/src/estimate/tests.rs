use super::*;

/// Milliseconds in, `value low..high xcount` of each population out.
fn check(name: &str, values: impl IntoIterator<Item = u64>, expected: &str) {
    // One a second.
    let closes: Vec<_> = (0..).zip(values.into_iter().map(Duration::from_millis)).collect();
    let found = of_closes(&closes, false).map_or_else(String::new, |estimate| {
        let texts = estimate
            .populations()
            .map(|p| format!("{:.3} {:.3}..{:.3} x{}", p.value, p.low, p.high, p.count));
        texts.collect::<Vec<_>>().join(", ")
    });
    assert_eq!(found, expected, "{name}");
}

/// Evenly spread, in an order that looks like chance.
fn scattered(count: u64, low: u64, high: u64) -> impl Iterator<Item = u64> + Clone {
    (0..count).map(move |i| low + (i * 61 % count) * (high - low) / count.max(1))
}

#[test]
fn sharp_timeouts() {
    check("nothing", [], "");
    check("four are too few", [5000; 4], "");
    check("five that agree", [5004, 5000, 5002, 5001, 5003], "5.002 4.998..5.004 x5");
    check("five that do not", [1000, 2000, 3000, 4000, 5000], "");
    check("zero", [0; 8], "0.000 0.000..0.000 x8");
    check(
        "no overflow",
        [u64::MAX; 5].map(|v| v / 1_000_000),
        "18446744073.709 18446744073.709..18446744073.709 x5",
    );
    check("a far value is none of it", [400, 410, 420, 430, 440, 900], "0.420 0.376..0.440 x5");
    check("what is cut off below seems to crowd", [200, 210, 220, 230, 240, 900], "");
    check("but what agrees", [250, 254, 250, 250, 254, 900], "0.250 0.248..0.254 x5");
}

#[test]
fn mixtures() {
    let noise = scattered(20, 300, 4_900);
    check("noise alone", noise.clone(), "");
    check("noise of request limits", scattered(40, 200, 1_000), "");
    let half = noise.clone().chain((0..20).map(|i| 5000 + i));
    check("as many others", half, "5.010 4.997..5.019 x20");
    let few = noise.clone().chain((0..6).map(|i| 5000 + i));
    check("many more others", few, "5.002 4.998..5.005 x6");
    let two = (0..6).flat_map(|_| [65_000, 5_000, 65_004]);
    check("two servers", two, "65.002 64.999..65.004 x12, 5.000 5.000..5.000 x6");
    let changed = [[5_000; 100].as_slice(), &[10_000; 6]].concat();
    check("changed", changed, "10.000 10.000..10.000 x6");
    let back = [[5_000; 60].as_slice(), &[10_000; 40], &[5_000; 6]].concat();
    check("and changed back", back, "5.000 5.000..5.000 x6");
    let mixed = (0..20).flat_map(|i| [10_000, 300 + i * 217 % 4_000]);
    check(
        "changed amid noise",
        [5_000; 100].into_iter().chain(mixed.take(16)),
        "10.000 10.000..10.000 x8",
    );
    let by_turns = (0..50).flat_map(|_| [5_000, 10_000]);
    check("by turns", by_turns, "5.000 5.000..5.000 x50, 10.000 10.000..10.000 x50");
    let fewer = [[5_000; 40].to_vec(), scattered(19, 100, 4_000).collect()].concat();
    check("a few others in a row change nothing", fewer, "5.000 5.000..5.000 x40");
    let seldom = |n: usize| if n % 5 == 2 { 18_500 } else { 180_000 };
    let absent = (0..38).map(seldom).chain([180_000; 24]);
    check(
        "one that is seldom and stays away by chance",
        absent,
        "180.000 180.000..180.000 x54, 18.500 18.500..18.500 x8",
    );
    let gone = [[5_000; 40].to_vec(), scattered(20, 100, 4_000).collect()].concat();
    check("it is gone", gone, "");
    let unseen = [scattered(30, 300, 4_900).collect(), [9_000; 20].to_vec()].concat();
    check("new after noise", unseen, "9.000 9.000..9.000 x20");
}

#[test]
fn what_happens_once_is_no_timeout() {
    let found = |seconds: [u32; 8]| {
        of_closes(&seconds.map(|second| (second, Duration::from_millis(560))), false).is_some()
    };
    assert!(!found([7; 8]), "a restart");
    assert!(!found([7, 7, 7, 7, 9, 9, 9, 9]), "two");
    assert!(found([7, 7, 7, 9, 9, 9, 12, 12]));
}

/// A pool that grows and shrinks: `times` bursts of closes, each of them in a second of its own, idle for `millis`.
fn bursts(first: u32, times: u32, millis: u64) -> impl Iterator<Item = Closed> {
    let burst =
        move |second| (0..12_u64).map(move |i| (second, Duration::from_millis(millis + i % 4)));
    (first..first + times).flat_map(burst)
}

#[test]
fn a_timeout_that_was_changed_under_bursts() {
    let text = |closes: Vec<Closed>| {
        of_closes(&closes, false).map_or_else(String::new, |estimate| {
            let text = |p: &Population| format!("{:.0} x{}", p.value, p.count);
            estimate.populations().map(text).collect::<Vec<_>>().join(", ")
        })
    };
    let changed: Vec<_> = bursts(0, 4, 60_000).chain(bursts(100, 5, 30_000)).collect();
    assert_eq!(text(changed), "30 x60", "nine moments are enough to see it");
    let early: Vec<_> = bursts(0, 5, 60_000).chain(bursts(100, 2, 30_000)).collect();
    assert_eq!(text(early), "60 x60", "two are not");
    let after = |moments| bursts(0, 5, 60_000).chain(bursts(100, moments, 30_000)).collect();
    assert_eq!(text(after(3)), "60 x60, 30 x36", "nor are three");
    assert_eq!(text(after(4)), "30 x48");
    let by_turns =
        (0..5).flat_map(|turn| bursts(2 * turn, 1, 60_000).chain(bursts(2 * turn + 1, 1, 30_000)));
    assert_eq!(text(by_turns.collect()), "30 x60, 60 x60", "two servers");
}

#[test]
fn timeouts_that_scatter() {
    check("a tick of a second", scattered(20, 2_000, 3_000), "2.475 1.857..2.950 x20");
    check("eight are enough", scattered(8, 2_000, 3_000), "2.438 1.672..2.875 x8");
    check("too few for a range", scattered(7, 2_000, 3_000), "");
    let mixed = scattered(20, 2_000, 3_000).chain([300, 700, 1_100]);
    check("with a few others", mixed, "2.475 1.857..2.950 x20");
    check("steps of 30 s", scattered(20, 120_000, 150_000), "134.250 115.725..148.500 x20");
}

#[test]
fn what_looks_like_a_scatter_and_is_none() {
    // Many closes under 200 ms were left out: the head of what goes on below.
    let head = (0..60_u64).map(|i| 200 + i * i / 3);
    check("cut at the threshold", head, "");
    let two = (0..20).map(|i| if i % 2 == 0 { 65_710 + i } else { 90_020 + i });
    check("two sharp ones", two, "90.030 90.016..90.039 x10, 65.719 65.705..65.728 x10");
    let few = [660, 1_270, 660, 1_280, 660, 1_270, 660, 1_270, 660, 1_280];
    check("two of five closes each", few, "1.270 1.264..1.280 x5, 0.660 0.660..0.660 x5");
    let beside = scattered(20, 2_300, 3_200).flat_map(|idle| [idle, 3_440]);
    check(
        "a sharp one beside one that scatters",
        beside,
        "3.440 3.440..3.440 x20, 2.728 2.172..3.155 x20",
    );
    let reloads = (0..4).flat_map(|second| {
        (0..17).map(move |i| {
            (second, Duration::from_millis(16_000 + i * 7 % 17 * 800 + u64::from(second)))
        })
    });
    assert_eq!(of_closes(&reloads.collect::<Vec<_>>(), false), None);
}

#[test]
fn stragglers_of_a_moment_have_their_say() {
    // The third close of each second is left out, and those are the latest of all.
    let closes = (0..10_u32).flat_map(|second| {
        let first = 1_000 + u64::from(second) * 90;
        let last = 2_000 + u64::from(second) * 30;
        [first, first + 40, last].map(|idle| (second, Duration::from_millis(idle)))
    });
    let estimate = of_closes(&closes.collect::<Vec<_>>(), false).unwrap();
    assert_eq!((estimate.main.count, estimate.main.high), (30, 2.27));
}

#[test]
fn all_that_came_together_have_their_say() {
    // Three at a time: two of each time count for themselves, all of them for the value.
    let closes =
        (0..10).flat_map(|second| (0..3).map(move |i| (second, Duration::from_millis(5_000 + i))));
    let estimate = of_closes(&closes.collect::<Vec<_>>(), false).unwrap();
    assert_eq!(estimate.main.count, 30);
    assert!((estimate.main.value - 5.001).abs() < 1e-6 && estimate.main.high > 5.0015);
}

/// What can be read from exported histograms.
#[test]
fn buckets() {
    let check = |bins: &[(f64, f64, u32)], expected: &[(f64, f64, f64, u32)]| {
        let bins: Vec<_> =
            bins.iter().map(|&(low, high, count)| Bin { low, high, count }).collect();
        let found: Vec<_> =
            populations(&bins).iter().map(|p| (p.value, p.low, p.high, p.count)).collect();
        assert_eq!(found, expected);
    };
    check(&[(4.5, 6.5, 40)], &[(5.5, 4.5, 6.5, 40)]);
    check(&[(0.1, 0.95, 2), (4.5, 6.5, 40)], &[(5.5, 4.5, 6.5, 40)]);
    // From a native histogram with eight buckets to a doubling.
    check(
        &[(1.0, 1.09, 1), (4.76, 5.19, 30), (5.19, 5.66, 10)],
        &[(5.046_666_666_666_667, 4.76, 5.66, 40)],
    );
    check(&[(0.95, 1.1, 3), (1.1, 1.9, 3), (1.9, 2.2, 3), (2.2, 4.5, 3)], &[]);
}

/// Twenty closes at two seconds, and what their connections had outlived before, in milliseconds.
fn with_outlived(is_upper_bound: bool, outlived: &[u64]) -> Option<Estimate> {
    let idle = Duration::from_secs(2);
    let closes: Vec<_> = (0..20).map(|second| (second, idle)).collect();
    let outlived: Vec<_> =
        outlived.iter().map(|silence| (idle, Duration::from_millis(*silence))).collect();
    of_closes(&closes, is_upper_bound)?.without_contrary(&outlived)
}

#[test]
fn connections_speak_against_what_they_had_outlived() {
    let most_shorter = |longer| [vec![1_500; 20 - longer], vec![3_000; longer]].concat();
    assert!(with_outlived(false, &[0; 20]).is_some(), "never used again");
    assert!(with_outlived(false, &most_shorter(0)).is_some());
    assert!(with_outlived(false, &[2_040; 20]).is_some(), "an event loop may be late");
    assert!(with_outlived(false, &most_shorter(5)).is_some(), "one of several servers");
    assert_eq!(with_outlived(false, &most_shorter(6)), None);
    // A slow answer with a close looks the same.
    assert!(with_outlived(true, &most_shorter(2)).is_some());
    assert_eq!(with_outlived(true, &most_shorter(3)), None);
}

/// Slow answers that end with a close look like an idle timeout that is at most as long.
#[test]
fn upper_bounds_that_scatter_have_to_agree() {
    let count = |others: &[u64]| {
        let mut all: Vec<_> = scattered(100, 2_000, 3_500).collect();
        others.iter().enumerate().for_each(|(n, idle)| all.insert(10 * n, *idle));
        let all = all.into_iter();
        let closes: Vec<_> = (0..).zip(all.map(Duration::from_millis)).collect();
        let of = |is_upper_bound| of_closes(&closes, is_upper_bound).map(|found| found.main.count);
        [of(false), of(true)]
    };
    assert_eq!(count(&[300; 5]), [Some(100), Some(100)]);
    assert_eq!(count(&[300, 310, 330, 360, 400, 450]), [Some(100), None]);
}
