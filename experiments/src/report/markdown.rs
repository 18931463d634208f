// SPDX-License-Identifier: GPL-2.0-only
//! The report as Markdown; its figures are files beside it.

use super::analysis::{Judged, Results, Row};
use super::{Section, text};
use crate::frame::{Axis, Metric, Unit};
use crate::table;

/// The whole page.
#[must_use]
pub fn page(sections: &[Section]) -> String {
    let mut page = format!("# {}\n\n{}\n\n", escape(text::TITLE), escape(text::ABOUT));
    if sections.iter().any(|s| text::is_simulated(&s.results)) {
        page += &format!("> {}\n\n", escape(text::SIMULATED));
    }
    let all: Vec<&Results> = sections.iter().map(|section| &section.results).collect();
    if all.iter().any(|results| !results.claims.is_empty()) {
        page += &format!("## Claims\n\n{}\n", claims(&all));
    }
    for section in sections {
        page += &experiment(section);
    }
    page += "## Provenance\n\n";
    for results in all {
        for (runs, run) in text::runs(results) {
            page += &format!("### {}\n\n", escape(results.definition.title));
            for (what, value) in text::provenance(&runs, run) {
                page += &format!("- {}: {}\n", escape(what), escape(&value));
            }
            page.push('\n');
        }
    }
    page
}

fn experiment(section: &Section) -> String {
    let results = &section.results;
    let definition = results.definition;
    let (title, question) = (escape(definition.title), escape(definition.question));
    let mut part = format!("## {title}\n\n*{question}*\n\n");
    if results.is_empty() {
        part += "Not measured: there are no samples of it.\n\n";
    } else {
        for (figure, drawing) in &section.figures {
            let caption = escape(&text::caption(definition, figure, drawing));
            part += &format!(
                "**{caption}**\n\n![{caption}]({})\n\n",
                section.file(figure)
            );
        }
        part += &(medians(results) + "\n");
        if !results.claims.is_empty() {
            part += &(claims(&[results]) + "\n");
        }
    }
    for system in definition.systems {
        part += &format!("- `{system}`: {}\n", escape(&text::about(*system)));
    }
    part.push('\n');
    for note in definition.notes {
        part += &format!("- {}\n", escape(note));
    }
    part + &format!(
        "\nTo run it again:\n\n```sh\n{}\n```\n\n",
        text::commands(results)
    )
}

fn medians(results: &Results) -> String {
    let definition = results.definition;
    let of_axes = definition.axes.iter().map(|axis| escape(axis.name));
    let of_metrics = definition.metrics.iter().map(|m| escape(&text::metric(m)));
    let fixed = ["system".to_owned(), "n".to_owned()];
    let header: Vec<String> = of_axes.chain(fixed).chain(of_metrics).collect();
    let row = |row: &Row| -> Vec<String> {
        let value = |axis: &Axis| text::place(axis, row.point.word(axis.name).unwrap_or_default());
        let of_axes = definition.axes.iter().map(|axis| escape(&value(axis)));
        let fixed = [row.system.to_string(), text::times_measured(row)];
        let of_metrics = definition.metrics.iter().map(|m| cell(results, row, m));
        of_axes.chain(fixed).chain(of_metrics).collect()
    };
    render(&header, &results.rows.iter().map(row).collect::<Vec<_>>())
}

fn cell(results: &Results, row: &Row, metric: &Metric) -> String {
    let Some(summary) = row.metrics.get(metric.name) else {
        return "–".into();
    };
    let times = results.times_better(row, metric.name);
    let times = times.map_or(String::new(), |times| {
        format!(" **{}x**", text::number(times))
    });
    text::summary(metric.unit, summary) + &times
}

fn claims(all: &[&Results]) -> String {
    let than = |results: &Results, judged: &Judged| text::than(results.definition, judged.claim);
    let row = |results: &Results, judged: &Judged| {
        vec![
            escape(judged.text),
            format!(
                "{} than {}",
                judged.claim.system,
                escape(&than(results, judged))
            ),
            escape(judged.claim.paper.unwrap_or("–")),
            text::ours(judged),
            format!("{}x", text::value(Unit::Count, judged.goal)),
            escape(&text::judged_at(results.definition, judged)),
            text::verdict(judged).to_owned(),
        ]
    };
    let of = |results: &&Results| {
        results
            .claims
            .iter()
            .map(|j| row(results, j))
            .collect::<Vec<_>>()
    };
    let rows: Vec<Vec<String>> = all.iter().flat_map(of).collect();
    render(&text::CLAIMS.map(str::to_owned), &rows)
}

fn render(header: &[String], rows: &[Vec<String>]) -> String {
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    table::render(&header, rows)
}

/// A text that Markdown takes for nothing but a text of one line.
fn escape(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '\n' | '\r' => escaped.push(' '),
            '\\' | '`' | '*' | '_' | '[' | ']' | '<' | '>' | '|' | '#' | '&' | '~' | '!' => {
                escaped.extend(['\\', c]);
            }
            _ => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Kind;
    use crate::report::fixture::{samples, section};

    #[test]
    fn no_text_is_taken_for_markdown() {
        let section = section(Kind::Count("copies"), Unit::Ms, samples(&["1", "2"]));
        let page = page(&[section]);
        for text in [
            "vascriu than criu-tmpfs",
            "vascriu than at x = 1 ",
            "## \\<b\\>Made up\\</b\\> \\& \\*done\\*",
            "Is a \\< b \\| c?",
            "\\`ticks\\`",
        ] {
            assert!(page.contains(text), "{text}\n{page}");
        }
        assert!(
            page.contains("](figures/made-up-the-last-mode.svg)"),
            "{page}"
        );
    }

    #[test]
    fn what_was_not_measured_is_named_as_such() {
        let empty = section(Kind::Size, Unit::Ms, Vec::new());
        let page = page(&[empty]);
        assert!(
            page.contains("Not measured") && page.contains("mvas-exp run made-up"),
            "{page}"
        );
    }
}
