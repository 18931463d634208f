// SPDX-License-Identifier: GPL-2.0-only
//! How values stand along one side of a figure, and where it is labelled.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::prelude::Ranged;

use super::text;
use crate::frame::{Axis, Kind, Unit};

/// One side of a figure. Its places are even in pixels.
#[derive(Debug, Clone)]
pub(super) struct Scale {
    /// Whether places are the logarithms of values.
    pub log: bool,
    /// Whether a line may join neighbours: there are some, and there is something between them.
    pub joined: bool,
    /// From end to end.
    pub places: Range<f64>,
    /// The places with a label.
    pub ticks: Vec<(f64, String)>,
}

/// The greatest of positive values is this many times the smallest: they are shown by their
/// logarithms.
const WIDE: f64 = 20.0;

impl Scale {
    /// Of an axis, with these values; sizes are logarithmic, and counts that are far apart.
    pub fn across(axis: &Axis, values: &[&str]) -> Self {
        let mut all: Vec<(f64, &str)> = values
            .iter()
            .filter_map(|value| Some((axis.place(value).ok()?, *value)))
            .collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        all.dedup_by(|a, b| a.0.total_cmp(&b.0).is_eq());
        let numbers: Vec<f64> = all.iter().map(|(place, _)| *place).collect();
        let log = match axis.kind {
            Kind::Size => true,
            Kind::Count(_) => are_wide(&numbers),
            Kind::Word(_) => false,
        };
        let mut scale = Self {
            log,
            joined: numbers.len() > 1 && !matches!(axis.kind, Kind::Word(_)),
            places: 0.0..1.0,
            ticks: Vec::new(),
        };
        if !matches!(axis.kind, Kind::Word(_)) {
            scale.ticks = all
                .iter()
                .map(|&(p, v)| (scale.place(p), text::place(axis, v)))
                .collect();
        } else {
            // Those that were measured, side by side.
            scale.ticks = (0u32..)
                .zip(&all)
                .map(|(at, (_, v))| (f64::from(at), (*v).to_owned()))
                .collect();
        }
        let first = scale.ticks.first().map_or(0.0, |tick| tick.0);
        let last = scale.ticks.last().map_or(0.0, |tick| tick.0);
        let margin = if scale.joined {
            (last - first) * 0.06
        } else {
            0.5
        };
        scale.places = first - margin..last + margin;
        scale
    }

    /// Of a metric, with values from the smallest to the greatest; logarithmic where that is
    /// wanted, or they are far apart, and possible.
    pub fn up(unit: Unit, values: &[f64], log: bool) -> Self {
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log = least > 0.0 && (log || are_wide(values));
        let (places, at) = if log {
            log_ticks(unit, least, most)
        } else {
            linear_ticks(unit, least.min(0.0), most.max(0.0))
        };
        let mut scale = Self {
            log,
            joined: true,
            places,
            ticks: Vec::new(),
        };
        let label = |&value: &f64| (scale.place(value), label(unit, value));
        scale.ticks = at.iter().map(label).collect();
        scale
    }

    /// Where a value is.
    pub fn place(&self, value: f64) -> f64 {
        if self.log { value.log2() } else { value }
    }

    /// Leaves out labels that would stand in the way of the one before, or of the last, which
    /// stays; `room` is how many characters fit side by side from end to end.
    pub fn thin_out(&mut self, room: f64) {
        let per_character = (self.places.end - self.places.start) / room;
        let half = |label: &str| (label.chars().count() as f64 + 1.5) / 2.0 * per_character;
        let Some((end, label)) = self.ticks.pop() else {
            return;
        };
        let taken = end - half(&label);
        let mut free = f64::NEG_INFINITY;
        self.ticks.retain(|(place, label)| {
            let fits = place - half(label) >= free && place + half(label) <= taken;
            if fits {
                free = place + half(label);
            }
            fits
        });
        self.ticks.push((end, label));
    }
}

impl Ranged for Scale {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    #[expect(clippy::cast_possible_truncation, reason = "a figure has few pixels")]
    fn map(&self, place: &f64, (from, to): (i32, i32)) -> i32 {
        let share = (place - self.places.start) / (self.places.end - self.places.start);
        from + (share * f64::from(to - from)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.iter().map(|tick| tick.0).collect()
    }

    fn range(&self) -> Range<f64> {
        self.places.clone()
    }
}

impl ValueFormatter<f64> for Scale {
    fn format_ext(&self, place: &f64) -> String {
        let tick = self
            .ticks
            .iter()
            .find(|tick| tick.0.total_cmp(place).is_eq());
        tick.map_or(String::new(), |tick| tick.1.clone())
    }
}

fn are_wide(values: &[f64]) -> bool {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    least > 0.0 && most >= WIDE * least
}

fn label(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Bytes => text::bytes(value),
        _ if value.abs() >= 1e6 => format!("{}M", text::number(value / 1e6)),
        _ => text::number(value),
    }
}

/// Round numbers from the one below to the one above: powers of 2 of bytes, else 1, 2, 5 and
/// these times powers of 10. Not too many: each 2nd, 3rd … of them, or powers of 10 only.
fn log_ticks(unit: Unit, least: f64, most: f64) -> (Range<f64>, Vec<f64>) {
    let round: Vec<f64> = match unit {
        Unit::Bytes => (0..50).map(|power| 2f64.powi(power)).collect(),
        _ => (-6..13)
            .flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)))
            .collect(),
    };
    let below = round.iter().rposition(|r| *r <= least).unwrap_or(0);
    let last = round.len() - 1;
    let above = round.iter().position(|r| *r >= most).unwrap_or(last);
    let above = above.max(below + 1).min(last);
    let all = &round[below..=above];
    let few: Vec<f64> = match unit {
        _ if all.len() <= 7 => all.to_vec(),
        Unit::Bytes => all.iter().copied().step_by(all.len().div_ceil(7)).collect(),
        _ => {
            let tens = (below..=above).filter(|at| at % 3 == 0);
            let tens: Vec<f64> = tens.map(|at| round[at]).collect();
            tens.iter()
                .copied()
                .step_by(tens.len().div_ceil(7))
                .collect()
        }
    };
    (round[below].log2()..round[above].log2(), few)
}

/// From a round number to a round number, by steps of 1, 2 or 5 times a power of 10, of bytes of
/// a power of 2.
fn linear_ticks(unit: Unit, least: f64, most: f64) -> (Range<f64>, Vec<f64>) {
    let rough = if most > least {
        (most - least) / 5.0
    } else {
        0.2
    };
    let step = match unit {
        Unit::Bytes => 2f64.powf(rough.log2().ceil().max(0.0)),
        _ => {
            let ten = 10f64.powf(rough.log10().floor());
            let digit = [1.0, 2.0, 5.0]
                .into_iter()
                .find(|digit| digit * ten >= rough);
            digit.unwrap_or(10.0) * ten
        }
    };
    let first = (least / step).floor();
    let count = ((most / step).ceil() - first).max(1.0);
    let at = |number: u32| (first + f64::from(number)) * step;
    let all = (0..)
        .map(at)
        .take_while(|value| *value <= (first + count + 0.5) * step);
    (first * step..(first + count) * step, all.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(scale: &Scale) -> Vec<&str> {
        scale.ticks.iter().map(|tick| tick.1.as_str()).collect()
    }

    fn axis(kind: Kind) -> Axis {
        Axis {
            name: "x",
            about: "",
            kind,
            quick: &[],
            full: &[],
        }
    }

    #[test]
    fn sizes_are_even_by_their_logarithms() {
        let scale = Scale::across(&axis(Kind::Size), &["1G", "16M", "128M", "16M"]);
        assert_eq!(labels(&scale), ["16 MiB", "128 MiB", "1 GiB"]);
        let at: Vec<f64> = scale.ticks.iter().map(|tick| tick.0).collect();
        assert!((at[2] - at[1] - (at[1] - at[0])).abs() < 1e-9);
        assert!(scale.joined && scale.places.start < at[0] && at[2] < scale.places.end);
    }

    #[test]
    fn words_and_a_single_value_are_not_joined() {
        let words = Scale::across(&axis(Kind::Word(&["a", "b", "c"])), &["c", "a"]);
        assert_eq!(labels(&words), ["a", "c"]);
        assert!(!words.joined);
        let one = Scale::across(&axis(Kind::Count("copies")), &["0"]);
        assert_eq!(labels(&one), ["0"]);
        assert!(!one.joined && one.places.start < one.places.end);
    }

    #[test]
    fn ticks_are_round_and_few_and_around_the_values() {
        for (least, most) in [
            (3.0, 3.0),
            (0.004, 90_000.0),
            (99.0, 101.0),
            (0.0, 0.0),
            (-3.0, 9.0),
        ] {
            for unit in [Unit::Ms, Unit::Bytes] {
                for log in [false, true] {
                    let scale = Scale::up(unit, &[least, most], log);
                    let (low, high) = (scale.place(least), scale.place(most));
                    let all = labels(&scale);
                    assert!(
                        (2..=9).contains(&all.len()),
                        "{least} {most} {unit:?}: {all:?}"
                    );
                    if least > 1.0 || unit == Unit::Ms {
                        assert!(scale.places.start <= low + 1e-9, "{scale:?}");
                    }
                    assert!(high <= scale.places.end + 1e-9, "{least} {most} {scale:?}");
                }
            }
        }
        assert_eq!(
            labels(&Scale::up(Unit::Ms, &[3.0, 900.0], true)),
            ["10", "100", "1000"]
        );
        assert_eq!(
            labels(&Scale::up(Unit::Count, &[0.2, 0.9], false)),
            ["0", "0.2", "0.4", "0.6", "0.8", "1"]
        );
    }

    #[test]
    fn labels_do_not_stand_in_each_others_way() {
        let values = ["1", "2", "3", "4", "98", "99", "100"];
        let mut scale = Scale::across(&axis(Kind::Count("copies")), &values);
        scale.thin_out(20.0);
        let places: Vec<f64> = scale.ticks.iter().map(|tick| tick.0).collect();
        let room = (scale.places.end - scale.places.start) / 20.0 * 2.0;
        assert!(
            places.windows(2).all(|two| two[1] - two[0] >= room),
            "{scale:?}"
        );
        let shown = labels(&scale);
        assert_eq!((shown.first(), shown.last()), (Some(&"1"), Some(&"100")));
    }
}
