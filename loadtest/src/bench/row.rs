//! Rows of the benchmark and their table.

use comfy_table::{Cell, Color, Table, presets};
use serde::Serialize;

/// What a figure is to reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// No less than.
    AtLeast(f64),
    /// No more than.
    AtMost(f64),
}

impl Goal {
    fn reached(self, figure: f64) -> bool {
        match self {
            Self::AtLeast(goal) => figure >= goal,
            Self::AtMost(goal) => figure <= goal,
        }
    }
}

impl std::fmt::Display for Goal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(goal) => write!(formatter, "≥ {goal}"),
            Self::AtMost(goal) => write!(formatter, "≤ {goal}"),
        }
    }
}

/// One turn: the baseline, then ours.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Round {
    pub baseline: f64,
    pub ours: f64,
}

/// A row of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was done.
    pub work: String,
    /// The baseline; empty if the figure stands alone.
    pub against: String,
    /// Of `ours`, `baseline` and `rounds`.
    pub unit: &'static str,
    /// What the ratio, or the figure that stands alone, is to reach.
    pub goal: Goal,
    /// Every turn.
    pub rounds: Vec<Round>,
    /// Median of the rounds.
    pub ours: Option<f64>,
    /// Median of the rounds.
    pub baseline: Option<f64>,
    /// Median of the rounds' ratios: both of a ratio ran within seconds of each other, so a machine that slows down
    /// half-way does not distort it.
    pub ratio: Option<f64>,
    /// Median of what ours adds to the baseline, where that is the figure.
    pub added: Option<f64>,
    /// Whether the goal is reached; nothing if it was not measured.
    pub reached: Option<bool>,
    /// What a reader has to know, or why it was not measured.
    pub note: String,
}

impl Row {
    /// A figure without a baseline.
    pub fn alone(work: &str, unit: &'static str, goal: Goal) -> Self {
        Self::against(work, "", unit, goal)
    }

    /// A ratio of ours to a baseline.
    pub fn against(work: &str, against: &str, unit: &'static str, goal: Goal) -> Self {
        Self {
            work: work.to_owned(),
            against: against.to_owned(),
            unit,
            goal,
            rounds: Vec::new(),
            ours: None,
            baseline: None,
            ratio: None,
            added: None,
            reached: None,
            note: String::new(),
        }
    }

    /// With a figure that stands alone.
    #[must_use]
    pub fn figure(mut self, figure: f64) -> Self {
        self.ours = Some(figure);
        self.reached = Some(self.goal.reached(figure));
        self
    }

    /// With the turns.
    #[must_use]
    pub fn rounds(mut self, rounds: Vec<Round>) -> Self {
        self.ours = median(rounds.iter().map(|round| round.ours));
        self.baseline = median(rounds.iter().map(|round| round.baseline));
        self.ratio = median(rounds.iter().map(|round| round.ours / round.baseline)).filter(|ratio| ratio.is_finite());
        self.reached = self.ratio.map(|ratio| self.goal.reached(ratio));
        self.rounds = rounds;
        self
    }

    /// With the turns, of which what ours adds to the baseline is to reach the goal.
    #[must_use]
    pub fn added(mut self, rounds: Vec<Round>) -> Self {
        self.ours = median(rounds.iter().map(|round| round.ours));
        self.baseline = median(rounds.iter().map(|round| round.baseline));
        self.added = median(rounds.iter().map(|round| round.ours - round.baseline)).filter(|added| added.is_finite());
        self.reached = self.added.map(|added| self.goal.reached(added));
        self.rounds = rounds;
        self
    }

    /// Whatever the figure says, the goal is missed: the note says why.
    #[must_use]
    pub fn missed(mut self) -> Self {
        self.reached = Some(false);
        self
    }

    /// With a remark.
    #[must_use]
    pub fn note(mut self, note: String) -> Self {
        self.note = note;
        self
    }

    fn cells(&self) -> [String; 7] {
        let number =
            |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{} {}", round(value), self.unit));
        [
            self.work.clone(),
            if self.against.is_empty() { "–".to_owned() } else { self.against.clone() },
            number(self.baseline),
            number(self.ours),
            match (self.ratio, self.added) {
                (Some(ratio), _) => format!("{ratio:.2}"),
                (None, Some(added)) => format!("{added:+.2} {}", self.unit),
                (None, None) => "–".to_owned(),
            },
            self.goal.to_string(),
            match self.reached {
                Some(true) => "yes".to_owned(),
                Some(false) => "no".to_owned(),
                None => "not measured".to_owned(),
            },
        ]
    }
}

const HEADER: [&str; 7] = ["work", "against", "baseline", "ours", "ratio", "goal", "reached"];

/// For the terminal; notes below.
pub fn table(rows: &[Row], colour: bool) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_header(HEADER);
    for row in rows {
        let mut cells: Vec<Cell> = row.cells().into_iter().map(Cell::new).collect();
        let mark = match row.reached {
            Some(true) => Color::Green,
            Some(false) => Color::Red,
            None => Color::Yellow,
        };
        if let Some(last) = cells.pop() {
            cells.push(if colour { last.fg(mark) } else { last });
        }
        table.add_row(cells);
    }
    format!("{table}\n{}", notes(rows))
}

/// For a document.
pub fn markdown(rows: &[Row]) -> String {
    let line = |cells: [String; 7]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(HEADER.map(str::to_owned));
    text.push_str(&line(HEADER.map(|_| "---".to_owned())));
    text.extend(rows.iter().map(|row| line(row.cells())));
    text.push('\n');
    text + &notes(rows)
}

fn notes(rows: &[Row]) -> String {
    let noted = rows.iter().filter(|row| !row.note.is_empty());
    noted.map(|row| format!("- {}: {}\n", row.work, row.note)).collect()
}

/// Three significant digits, as rounds differ by more than what follows.
fn round(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// The middle value, or the mean of the two.
pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        length if length % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_the_median_of_the_rounds() {
        let rounds = [(100.0, 60.0), (50.0, 25.0), (100.0, 40.0)];
        let rounds = rounds.map(|(baseline, ours)| Round { baseline, ours }).to_vec();
        let row = Row::against("identity", "echo", "req/s", Goal::AtLeast(0.5)).rounds(rounds);
        assert_eq!((row.ratio, row.reached), (Some(0.5), Some(true)));
        assert_eq!((row.baseline, row.ours), (Some(100.0), Some(40.0)));
    }

    #[test]
    fn a_row_without_figures_is_not_reached_and_not_missed() {
        let row = Row::against("whisper", "faster-whisper", "s", Goal::AtMost(1.0))
            .note("not measured: no Python".to_owned());
        assert_eq!(row.reached, None);
        let text = markdown(&[row]);
        assert!(text.contains("| ≤ 1 | not measured |") && text.contains("no Python"), "{text}");
    }

    #[test]
    fn what_is_added_is_a_difference() {
        let rounds = [(1.0, 1.4), (1.0, 1.3), (2.0, 2.6)].map(|(baseline, ours)| Round { baseline, ours }).to_vec();
        let row = Row::against("identity", "direct", "ms", Goal::AtMost(0.5)).added(rounds);
        assert!((row.added.unwrap() - 0.4).abs() < 1e-9 && row.reached == Some(true) && row.ratio.is_none());
        assert!(markdown(std::slice::from_ref(&row)).contains("| +0.40 ms | ≤ 0.5 | yes |"));
        assert_eq!(row.missed().reached, Some(false));
    }

    #[test]
    fn figures_have_three_digits() {
        assert_eq!([round(1234.5), round(12.345), round(1.2345), round(0.012_34)], ["1234", "12.3", "1.23", "0.012"]);
    }

    #[test]
    fn medians() {
        assert_eq!(median([].into_iter()), None);
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0].into_iter()), Some(2.5));
    }
}
