// SPDX-License-Identifier: GPL-2.0-only
//! Text that a guest wrote, on its way to a terminal.

use std::fmt::Write as _;
use std::io::{self, Write};

use serde::Serialize;

/// The most characters of such a text in a table.
const MOST: usize = 64;

/// Whether a terminal shows it as itself, and does nothing else.
fn is_plain(c: char) -> bool {
    matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1
}

/// For a table: what could steer a terminal is escaped, what is too long is cut.
pub(in crate::cli) fn shown(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars().take(MOST) {
        match is_plain(c) {
            true => shown.push(c),
            false => shown.extend(c.escape_default()),
        }
    }
    if text.chars().nth(MOST).is_some() {
        shown.push('…');
    }
    shown
}

/// Writes JSON, with everything escaped that could steer a terminal.
pub(in crate::cli) fn json(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut escaped = String::new();
    for c in serde_json::to_string_pretty(value)?.chars() {
        if c == '\n' || is_plain(c) {
            escaped.push(c);
            continue;
        }
        // It is in a string: nowhere else has JSON such characters.
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(escaped, "\\u{unit:04x}"); // a String takes everything
        }
    }
    writeln!(out, "{escaped}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    proptest! {
        #[test]
        fn no_text_steers_a_terminal_and_json_keeps_it(text in ".{0,100}|\\PC{0,100}") {
            prop_assert!(!shown(&text).contains(char::is_control));
            let mut out = Vec::new();
            json(&mut out, &[&text]).unwrap();
            let written = String::from_utf8(out).unwrap();
            prop_assert!(written.chars().all(|c| c == '\n' || !c.is_control()));
            let read: Value = serde_json::from_str(&written).unwrap();
            prop_assert_eq!(&read[0], &Value::from(text));
        }
    }

    #[test]
    fn what_turns_text_around_or_is_too_long_is_seen() {
        assert_eq!(shown("a\u{202e}b \"größe\" 🦀"), "a\\u{202e}b \"größe\" 🦀");
        assert_eq!(shown("\x1b[2J\u{9b}2J"), "\\u{1b}[2J\\u{9b}2J");
        let long = "x".repeat(65);
        assert_eq!(shown(&long), format!("{}…", &long[1..]));
        assert_eq!(shown(&long[1..]), long[1..]);
        let mut out = Vec::new();
        json(&mut out, &"\u{9b}\u{e0001}").unwrap();
        assert_eq!(out, b"\"\\u009b\\udb40\\udc01\"\n");
    }
}
