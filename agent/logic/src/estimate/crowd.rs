//! Where idle times crowd: of all intervals of allowed width, the one least likely to be chance.

use std::ops::{Range, RangeInclusive};

use super::{Bin, MIN_CLOSES, Population};

/// How many times as many closes must agree on a timeout that scatters.
const OF_RANGE: u32 = 2;

/// The share of all closes that a timeout must have, however sharp it is; and that for one that scatters.
const MIN_SHARE: f64 = 0.1;
const MIN_SHARE_OF_RANGE: f64 = 0.15;

/// More timeouts than this behind one address are not told apart.
const MAX_POPULATIONS: usize = 3;

/// Flanks on either side of a crowd are this many times as wide as it is, on a logarithmic scale.
const FLANKS: f64 = 3.0;

/// A crowd may be chance once in e^4 = 55 times, in all places where one could have been.
const MIN_EVIDENCE: f64 = 4.0;

/// The same for one that scatters.
const MIN_EVIDENCE_OF_RANGE: f64 = 6.0;

/// A sharp crowd within one that scatters is a timeout of its own if it is chance once in e^8 times.
const MIN_EVIDENCE_WITHIN: f64 = 8.0;

/// Sharp crowds within one that scatters replace it if they lie apart by this many times their width, and leave at
/// most this share of it.
const APART: f64 = 4.0;
const LEFT_OVER: f64 = 0.1;

/// From the shortest to the longest timeout that is looked for, 50 ms to 2 h, as a logarithm.
const WHOLE_RANGE: f64 = 11.9;

/// Windows are examined this many at a time: most such blocks hold none that could be the best.
const BLOCK: usize = 8;

/// Shorter idle times are no evidence, so nothing can be seen below.
const FLOOR: f64 = 0.2;

/// Where the values of `bins` crowd, the densest first. Bins are in order and do not overlap.
pub fn populations(bins: &[Bin]) -> Vec<Population> {
    of_at_least(MIN_CLOSES, bins)
}

/// The same, where `least` are enough for a sharp one, and twice as many for one that scatters.
pub(super) fn of_at_least(least: u32, bins: &[Bin]) -> Vec<Population> {
    let all = count_of(bins);
    let mut rest = bins.to_vec();
    let mut found = Vec::new();
    while found.len() < MAX_POPULATIONS {
        let Some((score, crowd)) = densest(&rest, all, least, true) else { break };
        let crowd = sharper(&rest, &crowd, score, (all, least)).unwrap_or(crowd);
        let crowd = with_stragglers(&rest, crowd);
        found.push(Population::of(rest.drain(crowd).as_slice(), all));
    }
    found
}

/// Where a crowd that scatters is better explained as several sharp ones, the densest of these.
fn sharper(
    bins: &[Bin],
    crowd: &Range<usize>,
    score: f64,
    (all, least): (u32, u32),
) -> Option<Range<usize>> {
    let within = bins.get(crowd.clone())?;
    if Scatter::of(within.first()?, within.last()?) == Some(Scatter::Sharp) {
        return None;
    }
    let mut rest = within.to_vec();
    let mut as_sharp = 0.0;
    let mut ends: Vec<(f64, f64)> = Vec::new();
    let mut first = None;
    while let Some((own, sharp)) = densest(&rest, all, least, false) {
        first = first.or_else(|| Some(crowd.start + sharp.start..crowd.start + sharp.end));
        as_sharp += own;
        let sharp: Vec<_> = rest.drain(sharp).collect();
        ends.extend(sharp.first().zip(sharp.last()).map(|(first, last)| (first.low, last.high)));
    }
    ends.sort_by(|a, b| a.0.total_cmp(&b.0));
    let are_apart = ends.windows(2).all(|pair| {
        let [(low, high), (next_low, next_high)] = *pair else { return false };
        next_low - high > APART * (high - low).max(next_high - next_low).max(blur(high))
    });
    let are_all = count_of(&rest) <= share_of(count_of(within), LEFT_OVER);
    let is_better = ends.len() > 1 && are_apart && are_all && as_sharp > score;
    first.filter(|_| is_better)
}

/// The crowd that is least likely to be chance, if one is unlikely enough, and how unlikely.
fn densest(bins: &[Bin], all: u32, least: u32, may_scatter: bool) -> Option<(f64, Range<usize>)> {
    let total = count_of(bins);
    let of_range = (OF_RANGE * least).max(share_of(all, MIN_SHARE_OF_RANGE));
    let mut best: Option<(f64, Range<usize>)> = None;
    let size = |first: &Bin, last: &Bin| (measure(first.low, last.high) / WHOLE_RANGE).min(0.99);
    let scatter_of = |first: &Bin, last: &Bin| {
        Scatter::of(first, last).filter(|scatter| may_scatter || *scatter == Scatter::Sharp)
    };
    for (start, first) in bins.iter().enumerate() {
        let (mut count, mut end) = (0, start);
        for block in bins.get(start..).unwrap_or_default().chunks(BLOCK) {
            // None within the block is narrower than its first, or holds more than its last.
            let most = count + count_of(block);
            let is_hopeless = block.first().zip(best.as_ref()).is_some_and(|(last, (best, _))| {
                unlikelihood(most, total - most, size(first, last)) <= *best
            });
            if is_hopeless {
                (count, end) = (most, end + block.len());
                continue;
            }
            for last in block {
                let Some(scatter) = scatter_of(first, last) else { break };
                count += last.count;
                end += 1;
                let needed = match scatter {
                    Scatter::Sharp => least.max(share_of(all, MIN_SHARE)),
                    Scatter::Late => of_range.max(share_of(total, 0.6)),
                    Scatter::Tick => of_range.max(share_of(total, 0.8)),
                };
                if count < needed {
                    continue;
                }
                let crowd = start..end;
                let score = unlikelihood(count, total - count, size(first, last));
                if best.as_ref().is_none_or(|(best, _)| score > *best)
                    && stands_out(bins, &crowd, count)
                    && (scatter == Scatter::Sharp
                        || (has_edges(bins, &crowd, count)
                            && is_even(bins.get(crowd.clone()), count)))
                {
                    best = Some((score, crowd));
                }
            }
            if block.last().is_none_or(|last| scatter_of(first, last).is_none()) {
                break;
            }
        }
    }
    best
}

/// The latest close of a timer as a multiple of its earliest; or by how much it is later, if that is not too early.
const LATE: f64 = 2.05;
const TICK: f64 = 1.8;
const LEAST_OF_TICKS: f64 = 0.9;

/// How far closes at one timeout may lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scatter {
    /// A timer, and how late an event loop is.
    Sharp,
    /// Up to twice the timeout: a server that looks for what has expired as seldom as the timeout
    /// is long.
    Late,
    /// By a tick of a second, and the time it takes to see that all is quiet.
    Tick,
}

impl Scatter {
    fn of(first: &Bin, last: &Bin) -> Option<Self> {
        // What lies between them; for a timer, a bucket's own width says nothing.
        if last.low - first.high <= widest_sharp(first.low) {
            Some(Self::Sharp)
        } else if last.high <= LATE * first.low && first.low >= 1.5 * FLOOR {
            Some(Self::Late)
        } else if last.high - first.low <= TICK && first.low >= LEAST_OF_TICKS {
            Some(Self::Tick)
        } else {
            None
        }
    }
}

/// How far apart closes at one sharp timeout may be. Shorter idle times are left out, so whatever they belong
/// to seems to crowd just above.
fn widest_sharp(low: f64) -> f64 {
    let blurred = if low < 1.5 * FLOOR { 0.01 } else { 0.06 };
    (0.04 * low).max(blurred)
}

/// Whether closes from `low` to `high` seconds are those of a timer and an event loop.
pub(super) fn is_sharp(low: f64, high: f64) -> bool {
    high - low <= widest_sharp(low)
}

/// The latest close of a timer that scatters, whose earliest comes after `low` seconds.
pub(super) fn latest(low: f64) -> f64 {
    let tick = if low >= LEAST_OF_TICKS { low + TICK } else { low };
    tick.max(LATE * low)
}

/// The bins of a crowd that was found among fewer of them.
pub(super) fn grown(bins: &[Bin], found: RangeInclusive<f64>) -> Range<usize> {
    let (low, high) = (*found.start(), *found.end() + blur(*found.end()));
    let start = bins.partition_point(|bin| bin.low < low);
    let end = bins.partition_point(|bin| bin.high <= high);
    with_stragglers(bins, start..end.max(start))
}

/// A crowd that scatters, with those at its ends: without them it is denser, and less than all.
fn with_stragglers(bins: &[Bin], crowd: Range<usize>) -> Range<usize> {
    let Range { mut start, mut end } = crowd;
    let scatter = |start: usize, end: usize| {
        let (first, last) = (bins.get(start)?, bins.get(end.checked_sub(1)?)?);
        Some((Scatter::of(first, last)?, last.high - first.low))
    };
    let Some((Scatter::Late | Scatter::Tick, width)) = scatter(start, end) else {
        return start..end;
    };
    let is_near = |a: Option<&Bin>, b: Option<&Bin>| {
        a.zip(b).is_some_and(|(a, b)| b.low - a.high <= width / 2.0)
    };
    while start > 0
        && is_near(bins.get(start - 1), bins.get(start))
        && scatter(start - 1, end).is_some()
    {
        start -= 1;
    }
    while is_near(bins.get(end - 1), bins.get(end)) && scatter(start, end + 1).is_some() {
        end += 1;
    }
    start..end
}

fn count_of(bins: &[Bin]) -> u32 {
    bins.iter().map(|bin| bin.count).sum()
}

/// The smallest count that is at least this share.
fn share_of(count: u32, share: f64) -> u32 {
    #[expect(clippy::cast_sign_loss, reason = "counts and shares are positive")]
    let least = (f64::from(count) * share).ceil() as u32;
    least
}

/// How wide an interval is on a logarithmic scale, with the blur of clocks and event loops.
fn measure(low: f64, high: f64) -> f64 {
    let blur = blur(high);
    ((high + blur) / (low - blur).max(0.001)).ln()
}

fn blur(value: f64) -> f64 {
    (value / 400.0).max(0.01)
}

/// Whether a crowd is more than the densest part of its surroundings.
fn stands_out(bins: &[Bin], crowd: &Range<usize>, count: u32) -> bool {
    let Some((first, last)) = bins.get(crowd.start).zip(bins.get(crowd.end - 1)) else {
        return false;
    };
    let (low, high) = (first.low, last.high);
    let reach = (FLANKS * measure(low, high)).exp();
    let near = ((low - blur(high)) / reach).max(FLOOR)..(high + blur(high)) * reach;
    let others = bins.iter().enumerate().filter(|(place, _)| !crowd.contains(place));
    let beside = others.filter(|(_, bin)| bin.high >= near.start && bin.low <= near.end);
    let beside = beside.map(|(_, bin)| bin.count).sum();
    let places = count_of(bins);
    // Where it could have been, except for what lies under the floor.
    let below = if low > near.start { (low / near.start).ln() } else { 0.0 };
    let (own, above) = (measure(low, high), FLANKS * measure(low, high));
    let expected = own / (own + above + below.min(above));
    let needed = if is_sharp(low, high) { MIN_EVIDENCE } else { MIN_EVIDENCE_OF_RANGE };
    unlikelihood(count, beside, expected) - f64::from(places).ln() >= needed
}

/// Whether a crowd that scatters ends where it ends: next to it, up to half of its width away, there is at
/// most a third of its density.
fn has_edges(bins: &[Bin], crowd: &Range<usize>, count: u32) -> bool {
    let Some((first, last)) = bins.get(crowd.start).zip(bins.get(crowd.end - 1)) else {
        return false;
    };
    let width = (last.high - first.low) / 2.0;
    let count_in = |bins: Option<&[Bin]>, range: Range<f64>| -> u32 {
        let bins = bins.into_iter().flatten();
        bins.filter(|bin| range.contains(&bin.low)).map(|bin| bin.count).sum()
    };
    let below = count_in(bins.get(..crowd.start), first.low - width..first.low);
    let above = count_in(bins.get(crowd.end..), last.high..last.high + width);
    // In half of the width, a third of the density is a sixth of the count.
    below.max(above) * 6 <= count
}

/// Whether a crowd that scatters has no sharp one within it.
fn is_even(crowd: Option<&[Bin]>, count: u32) -> bool {
    let Some((crowd, (first, last))) = crowd.and_then(|c| Some((c, c.first().zip(c.last())?)))
    else {
        return true;
    };
    let whole = measure(first.low, last.high);
    crowd.iter().enumerate().all(|(start, first)| {
        let mut inside = 0;
        let sharp = crowd
            .iter()
            .skip(start)
            .take_while(|last| Scatter::of(first, last) == Some(Scatter::Sharp));
        sharp.fold(true, |is_even, last| {
            inside += last.count;
            let expected = (measure(first.low, last.high) / whole).min(0.99);
            let evidence = unlikelihood(inside, count - inside, expected) - f64::from(count).ln();
            is_even && (inside < MIN_CLOSES || evidence < MIN_EVIDENCE_WITHIN)
        })
    })
}

/// How unlikely it is that this many of all fall `inside` where only the share `expected` should: the
/// negative logarithm of (Chernoff's bound on) the chance; zero if there are no more than expected.
fn unlikelihood(inside: u32, outside: u32, expected: f64) -> f64 {
    let (inside, outside) = (f64::from(inside), f64::from(outside));
    let all = inside + outside;
    let term = |count: f64, expected: f64| {
        if count > 0.0 { count * (count / (all * expected)).ln() } else { 0.0 }
    };
    if inside <= all * expected {
        return 0.0;
    }
    term(inside, expected) + term(outside, 1.0 - expected)
}
