// SPDX-License-Identifier: GPL-2.0-only
//! Tables for people: a header, a rule, right-aligned columns but the first.

/// Lays `rows` out under `header`.
///
/// ```
/// let table = mvas_exp::table::render(&["system", "ms"], &[vec!["criu".into(), "12".into()]]);
/// assert_eq!(table, "| system | ms |\n|:-------|---:|\n| criu   | 12 |\n");
/// ```
#[must_use]
pub fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let cell = |row: &Vec<String>, i: usize| row.get(i).map_or(0, |c| c.chars().count());
    let widths: Vec<usize> = header
        .iter()
        .enumerate()
        .map(|(i, h)| {
            rows.iter()
                .map(|r| cell(r, i))
                .fold(h.chars().count(), usize::max)
        })
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<String> = cells
            .zip(&widths)
            .enumerate()
            .map(|(i, (c, &w))| {
                if i == 0 {
                    format!(" {c:<w$} ")
                } else {
                    format!(" {c:>w$} ")
                }
            })
            .collect();
        format!("|{}|\n", cells.join("|"))
    };
    let rule: Vec<String> = widths
        .iter()
        .enumerate()
        .map(|(i, &w)| {
            let dashes = "-".repeat(w + 1);
            if i == 0 {
                format!(":{dashes}")
            } else {
                format!("{dashes}:")
            }
        })
        .collect();
    let mut table = line(&mut header.iter().copied());
    table.push_str(&format!("|{}|\n", rule.join("|")));
    for row in rows {
        table.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    table
}

/// Milliseconds, with one decimal below 100.
#[must_use]
pub fn ms(value: f64) -> String {
    if value < 100.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    }
}

/// How many times `new` is faster than `old`.
#[must_use]
pub fn times(old: f64, new: f64) -> String {
    if new > 0.0 {
        format!("{:.1}x", old / new)
    } else {
        "-".into()
    }
}

/// Bytes in the unit that leaves few digits.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
pub fn bytes(value: u64) -> String {
    match value {
        0..1024 => format!("{value} B"),
        1024..1_048_576 => format!("{:.1} KiB", value as f64 / 1024.0),
        _ => format!("{:.1} MiB", value as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec!["a".into(), "1000".into()],
            vec!["long name".into(), "2".into()],
        ];
        let table = render(&["x", "n"], &rows);
        let widths: Vec<usize> = table.lines().map(|l| l.chars().count()).collect();
        assert_eq!(widths, [20, 20, 20, 20]);
        assert!(table.contains("| long name |    2 |"));
    }

    #[test]
    fn numbers_keep_few_digits() {
        assert_eq!(ms(1.26), "1.3");
        assert_eq!(ms(9305.4), "9305");
        assert_eq!(times(9305.0, 337.0), "27.6x");
        assert_eq!(times(1.0, 0.0), "-");
        assert_eq!(bytes(1 << 30), "1024.0 MiB");
        assert_eq!(bytes(2048), "2.0 KiB");
    }
}
