// SPDX-License-Identifier: GPL-2.0-only
//! Tables for people: a header, a rule, right-aligned columns but the first.

use comfy_table::presets::ASCII_MARKDOWN;
use comfy_table::{CellAlignment, Table};

/// Lays `rows` out under `header`.
///
/// ```
/// let table = mvas_exp::table::render(&["system", "ms"], &[vec!["criu".into(), "12".into()]]);
/// assert_eq!(table, "| system | ms |\n|:-------|---:|\n| criu   | 12 |\n");
/// ```
#[must_use]
pub fn render(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table
        .load_style(ASCII_MARKDOWN)
        .set_header(header)
        .add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut lines: Vec<String> = table.lines().collect();
    // Colons say how columns are aligned: to the right, all but the first.
    let rule = lines[1].replace("-|", ":|");
    lines[1] = rule.replacen(":|", "-|", 1).replacen("|-", "|:", 1);
    lines.join("\n") + "\n"
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
