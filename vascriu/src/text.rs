// SPDX-License-Identifier: GPL-2.0-only
//! Text for people.

/// An error and its causes on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// 4 KiB pages in words.
#[must_use]
pub fn memory(pages: u64) -> String {
    let kib = pages.saturating_mul(4);
    if kib < 10 << 10 {
        format!("{kib} KiB")
    } else {
        format!("{} MiB", kib >> 10)
    }
}

/// Seconds in words: the greatest unit alone.
#[must_use]
pub fn duration(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

/// Seconds, by `90`, `90s`, `15m`, `2h`, `7d`.
///
/// # Errors
/// What would do.
pub fn parse_duration(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.as_bytes().last() {
        Some(b's') => (&text[..text.len() - 1], 1),
        Some(b'm') => (&text[..text.len() - 1], 60),
        Some(b'h') => (&text[..text.len() - 1], 3600),
        Some(b'd') => (&text[..text.len() - 1], 86400),
        _ => (text, 1),
    };
    let number = number
        .parse::<u32>()
        .ok()
        .filter(|_| number.as_bytes()[0].is_ascii_digit());
    number
        .map(|n| u64::from(n) * unit)
        .ok_or_else(|| "give a time such as 90s, 15m, 2h or 7d".into())
}

/// Seconds since the epoch as a date and time, UTC.
#[must_use]
pub fn time(seconds: u64) -> String {
    // Days are counted from 1 March of year 0, so that leap days end their year; an era is
    // 400 years of 146097 days.
    let days = seconds / 86400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (day, month) = (
        day - (153 * month + 2) / 5 + 1,
        if month < 10 { month + 3 } else { month - 9 },
    );
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (951_868_800, "2000-03-01 00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ] {
            assert_eq!(time(seconds), text);
        }
    }

    #[test]
    fn durations_have_units() {
        for (text, seconds) in [
            ("90", 90),
            ("90s", 90),
            ("15m", 900),
            ("2h", 7200),
            ("7d", 604_800),
        ] {
            assert_eq!(parse_duration(text), Ok(seconds));
        }
        for bad in ["", "s", "-1s", "+1", "1w", "1.5h", "99999999999d", "ä"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn memory_and_durations_are_told_in_fitting_units() {
        assert_eq!(
            (memory(3), memory(25600)),
            ("12 KiB".into(), "100 MiB".into())
        );
        assert_eq!(
            (duration(90), duration(900)),
            ("90 s".into(), "15 min".into())
        );
        assert_eq!(
            (duration(7200), duration(604_800)),
            ("2 h".into(), "7 d".into())
        );
    }
}
