//! Statistics of repeated measurements.

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

/// The mean of ratios: of a half and a double it is 1.
///
/// `None` without values, or where one of them is not above zero.
#[must_use]
pub fn geometric_mean(ratios: &[f64]) -> Option<f64> {
    if ratios.is_empty() || ratios.iter().any(|r| r.is_nan() || *r <= 0.0) {
        return None;
    }
    let logs: f64 = ratios.iter().map(|r| r.ln()).sum();
    Some((logs / ratios.len() as f64).exp())
}

/// The smallest and the largest value.
#[must_use]
pub fn range(values: &[f64]) -> Option<(f64, f64)> {
    let min = values.iter().copied().reduce(f64::min)?;
    let max = values.iter().copied().reduce(f64::max)?;
    Some((min, max))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_median_of_an_even_count_is_between_the_middle_two() {
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
    }

    #[test]
    fn a_half_and_a_double_have_the_mean_of_one() {
        let mean = geometric_mean(&[0.5, 2.0, 1.0]).unwrap();
        assert!((mean - 1.0).abs() < 1e-9, "{mean}");
        assert_eq!(geometric_mean(&[]), None);
        assert_eq!(geometric_mean(&[1.0, 0.0]), None);
    }

    #[test]
    fn nothing_and_nan_have_no_median() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[1.0, f64::NAN]), None);
        assert_eq!(range(&[]), None);
    }

    proptest! {
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
