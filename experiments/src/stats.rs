// SPDX-License-Identifier: GPL-2.0-only
//! Statistics of repeated measurements.

use fastrand::Rng;
use serde::Serialize;

/// The median; of an even count the mean of the middle two.
///
/// `None` without values, or where one of them is not a number.
///
/// ```
/// use mvas_exp::stats::median;
/// assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
/// ```
#[must_use]
pub fn median(values: &[f64]) -> Option<f64> {
    if values.is_empty() || values.iter().any(|v| v.is_nan()) {
        return None;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    Some(if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    })
}

/// The least value that this share of all does not exceed; `None` without values.
///
/// ```
/// use mvas_exp::stats::quantile;
/// assert_eq!(quantile(&[4.0, 1.0, 3.0, 2.0], 0.75), Some(3.0));
/// ```
#[must_use]
pub fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let below = |at: usize| at as f64 >= share * values.len() as f64;
    let rank = (1..=sorted.len()).find(|at| below(*at))?;
    sorted.get(rank - 1).copied()
}

/// Where a value is with 95 % confidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// How often the bootstrap draws anew.
const DRAWS: usize = 2000;

/// The interval of the median, by the percentile bootstrap. It depends on nothing but the values.
///
/// `None` of fewer than two values, which tell nothing of how they scatter, or where one of them
/// is not finite.
#[must_use]
pub fn median_interval(values: &[f64]) -> Option<Interval> {
    interval([values], |[median]| median)
}

/// The interval of the ratio of two medians, likewise.
///
/// `None`, too, where one value of `under` is not above zero.
#[must_use]
pub fn ratio_interval(over: &[f64], under: &[f64]) -> Option<Interval> {
    let above_zero = under.iter().all(|value| *value > 0.0);
    let ratio = |[over, under]: [f64; 2]| over / under;
    interval([over, under], ratio).filter(|_| above_zero)
}

/// The interval of what `of` makes of the medians of independent samples.
fn interval<const N: usize>(samples: [&[f64]; N], of: fn([f64; N]) -> f64) -> Option<Interval> {
    let tells = |sample: &[f64]| sample.len() > 1 && sample.iter().all(|v| v.is_finite());
    if !samples.iter().all(|sample| tells(sample)) {
        return None;
    }
    let mut random = Rng::with_seed(2019);
    let mut drawn_median = |sample: &[f64]| {
        let draw = |_| sample[random.usize(..sample.len())];
        median(&(0..sample.len()).map(draw).collect::<Vec<_>>()).unwrap_or(f64::NAN)
    };
    let mut drawn: Vec<f64> = (0..DRAWS)
        .map(|_| of(samples.map(&mut drawn_median)))
        .collect();
    drawn.sort_by(f64::total_cmp);
    // 2.5 % of all on either side.
    let outside = DRAWS / 40;
    Some(Interval {
        low: drawn[outside],
        high: drawn[DRAWS - 1 - outside],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;
    use proptest::prelude::*;

    fn range(values: &[f64]) -> Option<(f64, f64)> {
        let min = values.iter().copied().reduce(f64::min)?;
        Some((min, values.iter().copied().reduce(f64::max)?))
    }

    #[test]
    fn the_median_of_an_even_count_is_between_the_middle_two() {
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
    }

    #[test]
    fn nothing_and_nan_have_no_median() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[1.0, f64::NAN]), None);
    }

    #[test]
    fn one_value_and_nan_have_no_interval() {
        assert_eq!(median_interval(&[1.0]), None);
        assert_eq!(median_interval(&[1.0, f64::NAN]), None);
        assert_eq!(median_interval(&[1.0, f64::INFINITY]), None);
        assert_eq!(ratio_interval(&[1.0, 2.0], &[1.0, 0.0]), None);
        assert_eq!(ratio_interval(&[1.0, 2.0], &[1.0]), None);
    }

    #[test]
    fn most_intervals_hold_the_true_median() {
        let mut random = Rng::with_seed(7);
        let holds = (0..200).filter(|_| {
            let values: Vec<f64> = (0..15).map(|_| random.f64().powi(3)).collect();
            let interval = median_interval(&values).unwrap();
            (interval.low..=interval.high).contains(&0.125)
        });
        // 95 %, were there more values; of few the bootstrap is a little too sure.
        let holds = holds.count();
        assert!((176..=198).contains(&holds), "{holds} of 200");
    }

    proptest! {
        #[test]
        fn an_interval_holds_the_median_and_is_within_the_values(
            values in proptest::collection::vec(-1e6f64..1e6, 2..20)
        ) {
            let interval = median_interval(&values).unwrap();
            let (min, max) = range(&values).unwrap();
            let median = median(&values).unwrap();
            prop_assert!(min <= interval.low && interval.high <= max);
            prop_assert!(interval.low <= median && median <= interval.high);
            prop_assert_eq!(Some(interval), median_interval(&values));
        }

        #[test]
        fn an_interval_of_a_ratio_scales_with_its_values(
            over in proptest::collection::vec(1.0f64..1e3, 2..20),
            under in proptest::collection::vec(1.0f64..1e3, 2..20),
        ) {
            let interval = ratio_interval(&over, &under).unwrap();
            let ratio = median(&over).unwrap() / median(&under).unwrap();
            prop_assert!(interval.low <= ratio && ratio <= interval.high);
            let doubled: Vec<f64> = over.iter().map(|v| v * 2.0).collect();
            let twice = ratio_interval(&doubled, &under).unwrap();
            prop_assert!((twice.low / interval.low - 2.0).abs() < 1e-9);
            prop_assert!((twice.high / interval.high - 2.0).abs() < 1e-9);
        }

        #[test]
        fn equal_values_leave_no_doubt(value in 1.0f64..1e6, n in 2usize..9) {
            let values = vec![value; n];
            prop_assert_eq!(
                median_interval(&values),
                Some(Interval { low: value, high: value })
            );
        }

        #[test]
        fn half_of_the_values_are_on_each_side_of_the_median(
            values in proptest::collection::vec(-1e6f64..1e6, 1..40)
        ) {
            let m = median(&values).unwrap();
            let below = values.iter().filter(|v| **v < m).count();
            let above = values.iter().filter(|v| **v > m).count();
            prop_assert!(below <= values.len() / 2 && above <= values.len() / 2);
            let (min, max) = range(&values).unwrap();
            prop_assert!(min <= m && m <= max);
        }

        #[test]
        fn the_order_of_the_values_does_not_matter(
            mut values in proptest::collection::vec(-1e6f64..1e6, 1..40)
        ) {
            let before = median(&values);
            values.reverse();
            prop_assert_eq!(before, median(&values));
        }
    }
}
