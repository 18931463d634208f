// SPDX-License-Identifier: GPL-2.0-only
//! Figures, as SVG whose text is text.

use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::analysis::{Results, Row, Summary, at_the_last};
use super::scale::Scale;
use super::text;
use crate::frame::{Axis, Figure, Kind, Metric, Point};
use crate::system::System;

/// A figure, drawn.
#[derive(Debug)]
pub struct Drawing {
    /// As a file of its own.
    pub svg: String,
    /// How many marks it has: one for each median, and one for each system in the legend.
    pub marks: usize,
    /// The values of the axes that it does not show.
    pub at: Point,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Okabe and Ito's colours, which the colour-blind can tell apart, without the yellow, which is
/// not seen in print.
const COLOURS: [RGBColor; 7] = [
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(0, 0, 0),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// Corners of marks, around what they mark: a system is known without its colour, too.
#[rustfmt::skip]
const MARKS: [&[(i32, i32)]; 6] = [
    // Square, triangle, diamond, the other triangle, cross, circle.
    &[(-4, -4), (4, -4), (4, 4), (-4, 4)],
    &[(0, -6), (5, 4), (-5, 4)],
    &[(0, -6), (6, 0), (0, 6), (-6, 0)],
    &[(0, 6), (5, -4), (-5, -4)],
    &[(-5, -2), (-2, -2), (-2, -5), (2, -5), (2, -2), (5, -2),
      (5, 2), (2, 2), (2, 5), (-2, 5), (-2, 2), (-5, 2)],
    &[(-2, -5), (2, -5), (5, -2), (5, 2), (2, 5), (-2, 5), (-5, 2), (-5, -2)],
];

const WIDTH: u32 = 760;
const PANEL_HEIGHT: u32 = 280;
/// The least width of a panel.
const PANEL_WIDTH: u32 = 240;
const LINE: u32 = 18;
/// Free, to the right of a panel: half of the last label may reach into it.
const MARGIN: u32 = 24;
const GREY: RGBColor = RGBColor(110, 110, 110);
const LIGHT: RGBColor = RGBColor(222, 222, 222);

/// The most that a character is wide, on average, in any usual font without serifs.
const CHARACTER: u32 = 8;

fn style(h: HPos, v: VPos) -> TextStyle<'static> {
    // Plotters divides by 1.24: it is 12 pixels.
    let font = ("Helvetica, Arial, sans-serif", 14.88).into_font();
    TextStyle::from(font).pos(Pos::new(h, v))
}

/// What is drawn: the rows that have the metric, and where they stand.
struct Plot<'a> {
    results: &'a Results,
    metric: &'static Metric,
    x: &'static Axis,
    /// Heading of each panel, and what is in it.
    panels: Vec<(String, Vec<&'a Row>)>,
    across: Scale,
    up: Scale,
}

/// Draws a figure, if anything was measured of it.
///
/// # Errors
/// When the definition has no such metric or axis.
pub fn draw(results: &Results, figure: &Figure) -> Result<Option<Drawing>> {
    let Some((plot, at)) = Plot::of(results, figure) else {
        return Ok(None);
    };
    let columns = plot.columns();
    let rows = count(&plot.panels).div_ceil(columns);
    let width = plot.width();
    let logarithmic = if plot.up.log { ", logarithmic" } else { "" };
    let above = text::metric(plot.metric) + logarithmic;
    let above = wrapped(&above, width);
    let below = wrapped(&text::axis(plot.x), width);
    let legend = plot.legend(width);
    let legend_lines = legend.iter().map(|entry| entry.2 + 1).max().unwrap_or(0);
    let head = LINE * (count(&above) + legend_lines) + 10;
    let height = head + rows * PANEL_HEIGHT + LINE * count(&below) + 8;

    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let left = style(HPos::Left, VPos::Top);
        for (number, line) in (0..).zip(&above) {
            root.draw_text(line, &left, (8, 6 + number * LINE.cast_signed()))?;
        }
        let middle = style(HPos::Center, VPos::Top);
        for (number, line) in (0..).zip(&below) {
            let y = head + rows * PANEL_HEIGHT + number * LINE;
            root.draw_text(line, &middle, (width.cast_signed() / 2, y.cast_signed()))?;
        }
        for (system, x, line) in &legend {
            let y = 6 + LINE * (count(&above) + line) + 9;
            plot.draw_legend(&root, *system, (x.cast_signed(), y.cast_signed()))?;
        }
        let (_, rest) = root.split_vertically(head);
        let (all, _) = rest.split_vertically(rows * PANEL_HEIGHT);
        let areas = all.split_evenly((rows as usize, columns as usize));
        for (area, (heading, rows)) in areas.iter().zip(&plot.panels) {
            plot.draw_panel(area, heading, rows, width / columns)?;
        }
        root.present()?;
    }
    let marks = plot.panels.iter().map(|panel| panel.1.len()).sum::<usize>() + legend.len();
    Ok(Some(Drawing { svg, marks, at }))
}

impl<'a> Plot<'a> {
    /// What was measured of a figure, and the values of the axes that it does not show.
    fn of(results: &'a Results, figure: &Figure) -> Option<(Self, Point)> {
        let definition = results.definition;
        let metric = definition.metric(figure.metric)?;
        let x = definition.axis(figure.x)?;
        let of_panels = figure.panels.and_then(|panels| definition.axis(panels));
        let shown: Vec<&str> = [Some(figure.x), figure.panels]
            .into_iter()
            .flatten()
            .collect();
        let has = |row: &&Row| row.metrics.contains_key(metric.name);
        let rows = at_the_last(
            definition,
            results.rows.iter().filter(has).collect(),
            &shown,
        );
        let mut at = rows.first()?.point.clone();
        at.0.retain(|axis, _| !shown.contains(&axis.as_str()));

        let mut panels: Vec<(String, Vec<&Row>)> = Vec::new();
        let mut in_order = rows.clone();
        if let Some(axis) = of_panels {
            let place = |row: &&Row| axis.place(row.point.word(axis.name).ok()?).ok();
            in_order.sort_by(|a, b| {
                place(a)
                    .partial_cmp(&place(b))
                    .unwrap_or(std::cmp::Ordering::Equal)
            });
        }
        for row in in_order {
            let heading = text::point(of_panels.into_iter(), &row.point);
            match panels.last_mut() {
                Some((last, rows)) if *last == heading => rows.push(row),
                _ => panels.push((heading, vec![row])),
            }
        }
        let values: Vec<&str> = rows
            .iter()
            .filter_map(|row| row.point.word(x.name).ok())
            .collect();
        let ends = |row: &&Row| {
            let summary = row.metrics.get(metric.name);
            summary.map(|s| [s.median, low(s), high(s)])
        };
        let ends: Vec<f64> = rows.iter().filter_map(ends).flatten().collect();
        let mut plot = Self {
            results,
            metric,
            x,
            panels,
            across: Scale::across(x, &values),
            up: Scale::up(metric.unit, &ends, x.kind == Kind::Size),
        };
        if !plot.has_words() {
            let inside = plot.width() / plot.columns() - plot.label_area() - MARGIN;
            plot.across.thin_out(f64::from(inside / CHARACTER));
        }
        Some((plot, at))
    }

    fn has_words(&self) -> bool {
        matches!(self.x.kind, Kind::Word(_))
    }

    /// Of the whole figure.
    fn width(&self) -> u32 {
        WIDTH.max(self.least_width())
    }

    /// The width of a panel in which no label stands in the way of another.
    fn least_width(&self) -> u32 {
        let of_labels = if self.has_words() {
            count(&self.across.ticks) * widest(&self.across)
        } else {
            0
        };
        PANEL_WIDTH.max(self.label_area() + of_labels + MARGIN)
    }

    /// Of panels side by side.
    fn columns(&self) -> u32 {
        (WIDTH / self.least_width()).clamp(1, count(&self.panels))
    }

    /// The width of the labels of the side that goes up.
    fn label_area(&self) -> u32 {
        widest(&self.up) + 8
    }

    /// The systems, where each begins, and in which line.
    fn legend(&self, width: u32) -> Vec<(System, u32, u32)> {
        let mut entries = Vec::new();
        let (mut x, mut line) = (8, 0);
        let shown = |s: &System| {
            self.panels
                .iter()
                .any(|p| p.1.iter().any(|row| row.system == *s))
        };
        for system in self.results.systems().into_iter().filter(shown) {
            let wide = text_width(&system.to_string()) + 48;
            if x + wide > width && x > 8 {
                (x, line) = (8, line + 1);
            }
            entries.push((system, x, line));
            x += wide;
        }
        entries
    }

    /// The colour and mark of a system: the same in all figures of an experiment.
    fn look(&self, system: System) -> (RGBColor, &'static [(i32, i32)]) {
        let all = self.results.definition.systems;
        let number = all.iter().position(|s| *s == system).unwrap_or(0);
        (COLOURS[number % COLOURS.len()], MARKS[number % MARKS.len()])
    }

    fn draw_legend(&self, area: &Area, system: System, (x, y): (i32, i32)) -> Result<()> {
        let (colour, mark) = self.look(system);
        if self.across.joined {
            area.draw(&PathElement::new(
                vec![(x, y), (x + 24, y)],
                colour.stroke_width(2),
            ))?;
        }
        area.draw(&(EmptyElement::at((x + 12, y)) + Polygon::new(mark, colour.filled())))?;
        let left = style(HPos::Left, VPos::Center);
        area.draw_text(&system.to_string(), &left, (x + 30, y))?;
        Ok(())
    }

    fn draw_panel(&self, area: &Area, heading: &str, rows: &[&Row], width: u32) -> Result<()> {
        let middle = style(HPos::Center, VPos::Top);
        area.draw_text(heading, &middle, (width.cast_signed() / 2, 4))?;
        let mut chart = ChartBuilder::on(area)
            .margin_top(26)
            .margin_right(MARGIN)
            .x_label_area_size(34)
            .y_label_area_size(self.label_area())
            .build_cartesian_2d(self.across.clone(), self.up.clone())?;
        chart
            .configure_mesh()
            .bold_line_style(LIGHT)
            .axis_style(GREY)
            .label_style(style(HPos::Center, VPos::Top))
            .light_line_style(TRANSPARENT)
            .draw()?;
        let systems = self.results.systems();
        for (number, system) in systems.iter().enumerate() {
            let (colour, mark) = self.look(*system);
            let aside = (number as f64 + 0.5) / systems.len() as f64 - 0.5;
            let points: Vec<_> = rows
                .iter()
                .filter(|row| row.system == *system)
                .filter_map(|row| self.stands(row, aside))
                .collect();
            if self.across.joined {
                let line = points.iter().map(|point| (point.0, point.1));
                let line = PathElement::new(line.collect::<Vec<_>>(), colour.stroke_width(2));
                chart.draw_series([line])?;
            }
            chart.draw_series(points.iter().map(|&(x, _, low, high)| {
                PathElement::new(vec![(x, low), (x, high)], colour.stroke_width(2))
            }))?;
            let ends = points
                .iter()
                .flat_map(|&(x, _, low, high)| [(x, low), (x, high)]);
            chart.draw_series(ends.map(|end| {
                EmptyElement::at(end)
                    + PathElement::new(vec![(-4, 0), (4, 0)], colour.stroke_width(2))
            }))?;
            chart.draw_series(points.iter().map(|&(x, y, ..)| {
                EmptyElement::at((x, y)) + Polygon::new(mark, colour.filled())
            }))?;
        }
        Ok(())
    }

    /// Where the median of a row stands, and the ends of its interval; what is not joined by
    /// lines stands side by side.
    fn stands(&self, row: &Row, aside: f64) -> Option<(f64, f64, f64, f64)> {
        let value = row.point.word(self.x.name).ok()?;
        let x = match self.x.kind {
            Kind::Word(_) => self.across.ticks.iter().find(|tick| tick.1 == value)?.0,
            Kind::Size | Kind::Count(_) => self.across.place(self.x.place(value).ok()?),
        };
        let x = if self.across.joined {
            x
        } else {
            x + 0.5 * aside
        };
        let summary = row.metrics.get(self.metric.name)?;
        let up = |value| self.up.place(value);
        Some((x, up(summary.median), up(low(summary)), up(high(summary))))
    }
}

fn low(summary: &Summary) -> f64 {
    summary
        .interval
        .map_or(summary.median, |interval| interval.low)
}

fn high(summary: &Summary) -> f64 {
    summary
        .interval
        .map_or(summary.median, |interval| interval.high)
}

/// How many there are; a figure has few of anything.
fn count<T>(all: &[T]) -> u32 {
    u32::try_from(all.len()).unwrap_or(u32::MAX)
}

fn text_width(text: &str) -> u32 {
    u32::try_from(text.chars().count()).map_or(u32::MAX, |count| count * CHARACTER)
}

/// The width of the widest label, and of what keeps it from the next.
fn widest(scale: &Scale) -> u32 {
    let widths = scale.ticks.iter().map(|tick| text_width(&tick.1));
    widths.max().unwrap_or(0) + CHARACTER
}

/// A text in lines that fit.
fn wrapped(text: &str, width: u32) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if text_width(line) + text_width(word) + 3 * CHARACTER < width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Unit;
    use crate::report::fixture::{definition, sample, samples, section};

    const COPIES: Kind = Kind::Count("copies");
    const WORDS: Kind = Kind::Word(&["a", "b", "c"]);

    #[test]
    fn a_figure_has_a_mark_for_each_median_and_each_system() {
        for (kind, values) in [
            (COPIES, ["1", "2"]),
            (WORDS, ["a", "c"]),
            (Kind::Size, ["1M", "1G"]),
        ] {
            let section = section(kind, Unit::Ms, samples(&values));
            let marks = section.figures.iter().map(|(_, drawing)| drawing.marks);
            assert_eq!(marks.collect::<Vec<_>>(), [4 + 2 * 2 * 4, 4 + 2 * 4]);
            for (_, drawing) in &section.figures {
                assert_eq!(drawing.svg.matches("<polygon").count(), drawing.marks);
                assert!(drawing.svg.contains("&lt;is&gt;"), "{}", drawing.svg);
            }
        }
    }

    #[test]
    fn of_an_axis_that_is_not_shown_the_last_value_is() {
        let section = section(COPIES, Unit::Ms, samples(&["1"]));
        let at: Vec<_> = section
            .figures
            .iter()
            .map(|(_, d)| d.at.to_string())
            .collect();
        assert_eq!(at, ["", "mode=fancy"]);
    }

    #[test]
    fn nothing_has_no_figure_and_one_sample_has_one() {
        let none = Results::of(definition(COPIES, Unit::Ms), Vec::new()).unwrap();
        assert!(draw(&none, &none.definition.figures[0]).unwrap().is_none());
        for (value, figures) in [(5.0, 2), (0.0, 2), (-1.0, 2), (f64::NAN, 0)] {
            let line = sample(System::Vascriu, "1", "plain", 1, value);
            let section = section(COPIES, Unit::Bytes, vec![line]);
            assert_eq!(section.figures.len(), figures, "{value}");
        }
    }

    #[test]
    fn a_text_is_broken_into_lines_that_fit() {
        let lines = wrapped("some words that are more than one line", 20 * CHARACTER);
        assert_eq!(lines, ["some words that", "are more than one", "line"]);
    }
}
