//! Plots latency over time, and its distribution, as one SVG.

use std::fmt::{self, Write};

use hdrhistogram::Histogram;

use crate::load::report::{Latencies, Report};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 760.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 24.0;
const PANEL_HEIGHT: f64 = 250.0;
const FIRST_TOP: f64 = 104.0;
const SECOND_TOP: f64 = 460.0;

/// Colours that differ on white and on black, for readers with a red-green deficiency as well.
const STYLE: &str = "\
.back{fill:#fff}
text{font:13px system-ui,-apple-system,'Segoe UI',Helvetica,sans-serif;fill:#656d76}
.title{font-size:17px;font-weight:600;fill:#1f2328}.head{font-size:14px;font-weight:600;fill:#1f2328}
.end{text-anchor:end}.middle{text-anchor:middle}
.grid{stroke:#d8dee4;stroke-width:1}.line{fill:none;stroke-width:1.6;stroke-linejoin:round}.bold{stroke-width:2.6}.dashed{stroke-dasharray:5 4}
.c0{stroke:#0969da}.c1{stroke:#bc4c00}.c2{stroke:#8250df}.c3{stroke:#1a7f37}.c4{stroke:#bf3989}.c5{stroke:#57606a}
@media(prefers-color-scheme:dark){
.back{fill:#0d1117}text{fill:#8b949e}.title,.head{fill:#e6edf3}.grid{stroke:#30363d}
.c0{stroke:#58a6ff}.c1{stroke:#f0883e}.c2{stroke:#bc8cff}.c3{stroke:#3fb950}.c4{stroke:#f778ba}.c5{stroke:#b1bac4}}";
const COLOURS: usize = 6;

/// Maps values to coordinates.
#[derive(Debug, Clone, Copy)]
struct Scale {
    from: f64,
    to: f64,
    start: f64,
    end: f64,
}

impl Scale {
    fn coordinate(&self, value: f64) -> f64 {
        self.start + (value - self.from) / (self.to - self.from) * (self.end - self.start)
    }
}

struct Line {
    name: String,
    class: String,
    /// x in seconds or nines, y in milliseconds.
    points: Vec<(f64, f64)>,
}

struct Panel<'a> {
    top: f64,
    head: &'a str,
    x_name: &'a str,
    x: Scale,
    x_ticks: Vec<(f64, String)>,
    lines: Vec<Line>,
}

impl Report {
    /// Latency over time, and its distribution.
    pub fn to_svg(&self) -> String {
        let mut svg = String::new();
        self.draw(&mut svg).expect("writing to memory cannot fail");
        svg
    }

    fn draw(&self, svg: &mut String) -> fmt::Result {
        writeln!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"Latency over time and its distribution\">\n<style>{STYLE}</style>\n<rect width=\"100%\" height=\"100%\" class=\"back\"/>"
        )?;
        let rate = self.requests.acknowledged_per_s;
        let mode = self.rate_per_s.map_or("closed loop".to_owned(), |rate| format!("open loop at {rate}/s"));
        text(svg, LEFT, 34.0, "title", &format!("rowlock load: {rate:.0} acknowledged requests a second"))?;
        let below = format!(
            "run {}, {mode}, {} connections, {} replicas, {:.1} s; latency of acknowledged requests",
            self.run,
            self.concurrency,
            self.replicas.len(),
            self.elapsed_s
        );
        text(svg, LEFT, 56.0, "", &below)?;
        let (over_time, distribution) = (over_time(&self.latencies), distribution(&self.latencies));
        over_time.draw(svg)?;
        distribution.draw(svg)?;
        svg.write_str("</svg>\n")
    }
}

fn over_time(latencies: &Latencies) -> Panel<'static> {
    let (columns, column_s) = match &latencies.timeline {
        Some(timeline) => (&*timeline.columns, timeline.column.as_secs_f64()),
        None => (&[][..], 1.0),
    };
    let seconds = (columns.len() as f64 * column_s).max(column_s);
    let line = |name: &str, class: &str, of: fn(&Histogram<u32>) -> u64| Line {
        name: name.to_owned(),
        class: class.to_owned(),
        points: columns
            .iter()
            .enumerate()
            .filter(|(_, histogram)| !histogram.is_empty())
            .map(|(at, histogram)| ((at as f64 + 0.5) * column_s, of(histogram) as f64 / 1000.0))
            .collect(),
    };
    Panel {
        top: FIRST_TOP,
        head: "Over time",
        x_name: "seconds since the start",
        x: Scale { from: 0.0, to: seconds, start: LEFT, end: WIDTH - RIGHT },
        x_ticks: round_ticks(seconds).into_iter().map(|tick| (tick, format!("{tick}"))).collect(),
        lines: vec![
            line("p50", "c0 bold", |histogram| histogram.value_at_quantile(0.5)),
            line("p90", "c2", |histogram| histogram.value_at_quantile(0.9)),
            line("p99", "c1", |histogram| histogram.value_at_quantile(0.99)),
            line("max", "c5 dashed", |histogram| histogram.max()),
        ],
    }
}

/// Each nine of the percentile takes the same space. It ends at the percentile that the number of requests supports.
fn distribution(latencies: &Latencies) -> Panel<'static> {
    let nines = (latencies.all.len().max(10) as f64).log10().min(7.0);
    let line = |name: &str, class: String, histogram: &Histogram<u64>| Line {
        name: name.to_owned(),
        class,
        points: (0..=200)
            .map(|step| nines * f64::from(step) / 200.0)
            .filter(|at| *at <= (histogram.len().max(10) as f64).log10())
            .map(|at| (at, histogram.value_at_quantile(1.0 - 10_f64.powf(-at)) as f64 / 1000.0))
            .collect(),
    };
    let mut lines = Vec::new();
    if latencies.replicas.len() > 1 {
        for (at, (name, histogram)) in latencies.replicas.iter().enumerate().take(COLOURS - 1) {
            lines.push(line(name, format!("c{}", 1 + at % (COLOURS - 1)), histogram));
        }
    }
    let due = if latencies.from_send.is_some() { "all, from when due" } else { "all" };
    lines.push(line(due, "c0 bold".to_owned(), &latencies.all));
    if let Some(from_send) = &latencies.from_send {
        lines.push(line("all, from when sent", "c0 dashed".to_owned(), from_send));
    }
    let names = ["0 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %", "99.9999 %", "99.99999 %"];
    let ticks = std::iter::once((2_f64.log10(), "50 %".to_owned()));
    let ticks = ticks.chain(names.iter().enumerate().map(|(nines, name)| (nines as f64, (*name).to_owned())));
    Panel {
        top: SECOND_TOP,
        head: "Distribution",
        x_name: "percentile of the requests",
        x: Scale { from: 0.0, to: nines, start: LEFT, end: WIDTH - RIGHT },
        x_ticks: ticks.filter(|tick| tick.0 <= nines).collect(),
        lines,
    }
}

impl Panel<'_> {
    fn draw(&self, svg: &mut String) -> fmt::Result {
        let bottom = self.top + PANEL_HEIGHT;
        let values = || self.lines.iter().flat_map(|line| &line.points).map(|point| point.1.max(0.001).log10());
        let from = values().fold(f64::INFINITY, f64::min).min(3.0).floor();
        let to = values().fold(f64::NEG_INFINITY, f64::max).max(from + 0.1).ceil();
        let y = Scale { from, to, start: bottom, end: self.top };
        text(svg, LEFT, self.top - 14.0, "head", self.head)?;
        for decade in (from as i32)..=(to as i32) {
            let at = y.coordinate(f64::from(decade));
            rule(svg, (LEFT, at), (WIDTH - RIGHT, at))?;
            text(svg, LEFT - 8.0, at + 4.0, "end", &format!("{} ms", 10_f64.powi(decade)))?;
        }
        for (at, name) in &self.x_ticks {
            let at = self.x.coordinate(*at);
            rule(svg, (at, self.top), (at, bottom))?;
            text(svg, at, bottom + 19.0, "middle", name)?;
        }
        text(svg, f64::midpoint(LEFT, WIDTH - RIGHT), bottom + 42.0, "middle", self.x_name)?;
        for line in &self.lines {
            let mut points = String::new();
            for (x, ms) in &line.points {
                write!(points, "{:.1},{:.1} ", self.x.coordinate(*x), y.coordinate(ms.max(0.001).log10()))?;
            }
            writeln!(svg, "<polyline class=\"line {}\" points=\"{}\"/>", line.class, points.trim_end())?;
        }
        self.draw_legend(svg)
    }

    /// Draws the legend right-aligned, next to the head.
    fn draw_legend(&self, svg: &mut String) -> fmt::Result {
        let (mut at, y) = (WIDTH - RIGHT, self.top - 14.0);
        for line in self.lines.iter().rev() {
            text(svg, at, y, "end", &line.name)?;
            at -= 7.2 * line.name.chars().count() as f64 + 12.0;
            let class = &line.class;
            writeln!(svg, "<path class=\"line {class}\" d=\"M{:.1} {:.1}h-22\"/>", at, y - 4.0)?;
            at -= 40.0;
        }
        Ok(())
    }
}

fn rule(svg: &mut String, from: (f64, f64), to: (f64, f64)) -> fmt::Result {
    writeln!(svg, "<path class=\"grid\" d=\"M{:.1} {:.1}L{:.1} {:.1}\"/>", from.0, from.1, to.0, to.1)
}

fn text(svg: &mut String, x: f64, y: f64, class: &str, content: &str) -> fmt::Result {
    let content = content.replace('&', "&amp;").replace('<', "&lt;");
    writeln!(svg, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{content}</text>")
}

/// Up to ten ticks at round values.
fn round_ticks(to: f64) -> Vec<f64> {
    let rough = to / 8.0;
    let decade = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|step| step * decade).into_iter().find(|step| *step >= rough).unwrap_or(rough);
    // Rounded, because steps such as 0.1 are not exact.
    (0..=10).map(|n| (f64::from(n) * step * 1e6).round() / 1e6).filter(|tick| *tick <= to).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_few_and_round() {
        assert_eq!(round_ticks(10.0), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
        assert_eq!(round_ticks(0.7), [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]);
        for to in [0.1, 1.0, 3.3, 59.0, 3600.0] {
            assert!((2..=11).contains(&round_ticks(to).len()), "{to}");
        }
    }
}
