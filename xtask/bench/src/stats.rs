//! Medians, how far they can be trusted, and what follows from them.

use finrace_lab::client::Random;
use serde::{Deserialize, Serialize};

/// An interval that reaches further than this to either side, in percent, says too little.
const MAX_HALF_WIDTH: f64 = 1.5;

/// The middle value, or the mean of the two in the middle.
pub(super) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let upper = values.len() / 2;
    let lower = values.len().checked_sub(1)? / 2;
    Some(f64::midpoint(*values.get(lower)?, *values.get(upper)?))
}

/// A median with its 95 % confidence interval, by bootstrap.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Estimate {
    pub(super) median: f64,
    pub(super) low: f64,
    pub(super) high: f64,
}

impl Estimate {
    /// None without any values.
    pub(super) fn new(values: &[f64]) -> Option<Self> {
        const RESAMPLES: usize = 2000;
        let mut random = Random(RESAMPLES as u64);
        let mut medians = (0..RESAMPLES)
            .map(|_| {
                let sample = values.iter().filter_map(|_| values.get(random.below(values.len())));
                median(sample.copied().collect())
            })
            .collect::<Option<Vec<f64>>>()?;
        medians.sort_unstable_by(f64::total_cmp);
        Some(Self {
            median: median(values.to_vec())?,
            low: *medians.get(RESAMPLES / 40)?,
            high: *medians.get(RESAMPLES - 1 - RESAMPLES / 40)?,
        })
    }

    /// Whether it lies within the width from which conclusions may be drawn.
    pub(super) fn is_sharp(&self) -> bool {
        self.high - self.low <= 2.0 * MAX_HALF_WIDTH
    }
}

impl std::fmt::Display for Estimate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:+.2} [{:+.2}, {:+.2}]", self.median, self.low, self.high)
    }
}

/// What an estimate of a loss says about its budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub(super) enum Judgement {
    #[serde(rename = "within")]
    Within,
    #[serde(rename = "over")]
    Over,
    #[serde(rename = "too noisy to judge")]
    TooNoisy,
}

impl Judgement {
    /// The whole interval has to lie within the budget.
    pub(super) fn of(loss: &Estimate, budget: f64) -> Self {
        match loss {
            loss if !loss.is_sharp() => Self::TooNoisy,
            loss if loss.high <= budget => Self::Within,
            _ => Self::Over,
        }
    }

    /// A difference that may be zero, or in our favour.
    pub(super) fn of_none(loss: &Estimate) -> Self {
        match loss {
            loss if !loss.is_sharp() => Self::TooNoisy,
            loss if loss.low <= 0.0 => Self::Within,
            _ => Self::Over,
        }
    }
}

impl std::fmt::Display for Judgement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Within => "within",
            Self::Over => "OVER",
            Self::TooNoisy => "too noisy to judge",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Judgement::{Over, TooNoisy, Within};
    use super::*;

    #[test]
    fn medians() {
        let check = |values: &[f64], expected| assert_eq!(median(values.to_vec()), expected);
        check(&[], None);
        check(&[3.0], Some(3.0));
        check(&[9.0, 1.0, 2.0], Some(2.0));
        check(&[4.0, 1.0, 2.0, 9.0], Some(3.0));
    }

    /// Nearly all of many estimates contain the true value, and they are as wide as in theory.
    #[test]
    fn intervals() {
        assert_eq!(Estimate::new(&[]), None);
        assert_eq!(Estimate::new(&[2.0; 5]), Some(Estimate { median: 2.0, low: 2.0, high: 2.0 }));

        let mut random = Random(7);
        let (mut held, mut width) = (0, 0.0);
        for _ in 0..40 {
            // A deviation of 2 % around 1 %.
            let losses: Vec<f64> = (0..100).map(|_| 1.0 + 2.0 * random.normal()).collect();
            let estimate = Estimate::new(&losses).unwrap();
            assert!(estimate.low <= estimate.median && estimate.median <= estimate.high);
            held += usize::from(estimate.low <= 1.0 && 1.0 <= estimate.high);
            width += (estimate.high - estimate.low) / 40.0;
        }
        assert!(held >= 35, "{held} of 40 hold the true value");
        // 2 x 1.96 x 1.2533 x deviation / sqrt(100)
        assert!((width - 0.983).abs() < 0.1, "{width}");
    }

    /// One disturbed slice in ten does not move it.
    #[test]
    fn outliers() {
        let losses: Vec<f64> =
            (0..200).map(|i| if i % 10 == 0 { 60.0 } else { f64::from(i % 7) / 7.0 }).collect();
        let estimate = Estimate::new(&losses).unwrap();
        assert!(estimate.high < 1.0 && estimate.is_sharp(), "{estimate:?}");
    }

    #[test]
    fn judgements() {
        let check = |low, high, expected: [Judgement; 2]| {
            let loss = Estimate { median: f64::midpoint(low, high), low, high };
            assert_eq!([Judgement::of(&loss, 2.0), Judgement::of_none(&loss)], expected);
        };
        check(-0.5, 1.9, [Within, Within]);
        check(0.1, 1.9, [Within, Over]);
        check(-0.5, 2.1, [Over, Within]);
        check(1.0, 2.1, [Over, Over]);
        check(-1.6, 1.5, [TooNoisy, TooNoisy]);
        check(-5.0, -3.0, [Within, Within]);
        // Even where the result would be clear.
        check(5.0, 9.0, [TooNoisy, TooNoisy]);
        assert_eq!(serde_json::to_string(&TooNoisy).unwrap(), "\"too noisy to judge\"");
    }
}
