// SPDX-License-Identifier: GPL-2.0-only
//! The report as one HTML page that needs nothing else.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::analysis::{Judged, Results, Row, Verdict};
use super::{Section, text};
use crate::frame::{Axis, Metric, Unit};

const STYLE: &str = include_str!("style.css");

/// The whole page.
#[must_use]
pub fn page(sections: &[Section]) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width";
                title { (text::TITLE) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (text::TITLE) }
                p { (text::ABOUT) }
                @if sections.iter().any(|s| text::is_simulated(&s.results)) {
                    p.note { (text::SIMULATED) }
                }
                nav { ol {
                    @for section in sections {
                        li {
                            a href={ "#" (section.results.name) } { (section.results.definition.title) }
                            @if section.results.is_empty() { " (not measured)" }
                        }
                    }
                } }
                @if sections.iter().any(|s| !s.results.claims.is_empty()) {
                    h2 { "Claims" }
                    (claims(sections.iter().map(|section| &section.results)))
                }
                @for section in sections { (experiment(section)) }
                h2 { "Provenance" }
                (provenance(sections))
            }
        }
    };
    page.into_string()
}

fn experiment(section: &Section) -> Markup {
    let results = &section.results;
    let definition = results.definition;
    html! {
        section id=(definition.name) {
            h2 { (definition.title) }
            p.question { (definition.question) }
            @if results.is_empty() {
                p.note { "Not measured: there are no samples of it." }
            } @else {
                @for (figure, drawing) in &section.figures {
                    figure data-marks=(drawing.marks) {
                        figcaption { (text::caption(definition, figure, drawing)) }
                        (PreEscaped(inline(&drawing.svg)))
                    }
                }
                (table(results))
                @if !results.claims.is_empty() { (claims([results].into_iter())) }
            }
            dl {
                @for system in definition.systems {
                    dt { (system) } dd { (text::about(*system)) }
                }
            }
            @if !definition.notes.is_empty() {
                ul { @for note in definition.notes { li { (note) } } }
            }
            p { "To run it again:" }
            pre { (text::commands(results)) }
        }
    }
}

/// Without what a file begins with.
fn inline(svg: &str) -> &str {
    svg.find("<svg").map_or(svg, |begin| &svg[begin..])
}

fn table(results: &Results) -> Markup {
    let definition = results.definition;
    let place = |axis: &Axis, row: &Row| {
        let value = row.point.word(axis.name).unwrap_or_default();
        text::place(axis, value)
    };
    html! {
        div.wide { table {
            thead { tr {
                @for axis in definition.axes { th { (axis.name) } }
                th { "system" } th { "n" }
                @for metric in definition.metrics { th { (text::metric(metric)) } }
            } }
            tbody { @for row in &results.rows { tr {
                @for axis in definition.axes { td.name { (place(axis, row)) } }
                td.name { (row.system) } td.number { (text::times_measured(row)) }
                @for metric in definition.metrics { (cell(results, row, metric)) }
            } } }
        } }
    }
}

fn cell(results: &Results, row: &Row, metric: &Metric) -> Markup {
    let times = results.times_better(row, metric.name);
    html! {
        td.number { @match row.metrics.get(metric.name) {
            None => "–",
            Some(summary) => {
                (text::value(metric.unit, summary.median))
                @if let Some(times) = times { " " b { (text::number(times)) "x" } }
                @if let Some(interval) = summary.interval {
                    br; small { (text::interval(metric.unit, interval)) }
                }
            }
        } }
    }
}

fn claims<'a>(all: impl Iterator<Item = &'a Results>) -> Markup {
    let class = |judged: &Judged| match judged.verdict {
        Verdict::Reached => "reached",
        Verdict::Missed => "missed",
        Verdict::NotMeasured => "unknown",
    };
    html! {
        div.wide { table {
            thead { tr { @for heading in text::CLAIMS { th { (heading) } } } }
            tbody { @for results in all { @for judged in &results.claims { tr {
                td { (judged.text) }
                td.name { (judged.claim.system) br; "than " (text::than(results.definition, judged.claim)) }
                td.name { (judged.claim.paper.unwrap_or("–")) }
                td.name { (text::ours(judged)) }
                td { (text::value(Unit::Count, judged.goal)) "x" }
                td { (text::judged_at(results.definition, judged)) }
                td class=(class(judged)) { (text::verdict(judged)) }
            } } } }
        } }
    }
}

fn provenance(sections: &[Section]) -> Markup {
    html! {
        @for results in sections.iter().map(|section| &section.results) {
            @for (runs, run) in text::runs(results) {
                h3 { (results.definition.title) }
                dl { @for (what, value) in text::provenance(&runs, run) {
                    dt { (what) } dd { (value) }
                } }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Kind;
    use crate::report::fixture::{run, sample, samples, section};
    use crate::system::System;

    #[test]
    fn no_text_is_taken_for_html() {
        let section = section(Kind::Count("copies"), Unit::Ms, samples(&["1", "2"]));
        let page = page(&[section]);
        for text in ["<b>Made", "<i>Twice", "<tags>", "<is>", "<CPU>"] {
            assert!(!page.contains(text), "{text}");
            assert!(
                page.contains(&text.replace('<', "&lt;").replace('>', "&gt;")),
                "{text}"
            );
        }
        assert!(page.contains("than criu-tmpfs") && page.contains("than at x = 1<"));
        assert!(page.contains("make image-containers") && page.contains("simulated host"));
        assert!(!page.contains("http-equiv") && !page.contains("src="));
    }

    #[test]
    fn what_was_not_measured_is_named_as_such() {
        let empty = section(Kind::Size, Unit::Ms, Vec::new());
        assert!(page(&[empty]).contains("(not measured)"));
        let nan = sample(System::Vascriu, "1M", "plain", 1, f64::NAN);
        let nan = section(Kind::Size, Unit::Ms, vec![run(), nan]);
        let page = page(&[nan]);
        assert!(page.contains(">–</td>") && !page.contains("NaN"), "{page}");
    }
}
