//! An understanding on the terminal, as it happens.

use std::fmt::Write;

use owo_colors::Style;
use sensorium_proto::v1::branch::State;
use sensorium_proto::v1::consistency::Verdict;
use sensorium_proto::v1::understand_event::Event;
use sensorium_proto::v1::{Branch, Consistency, Contribution, Fusion, Guard, Modality, ModelRef, UnderstandResult};

use super::super::draw::{bar, bold, dim, paint, seconds};
use super::super::failure::Failure;
use super::super::output::{Sink, clean, clean_lines};
use super::report::short;

const WIDTH: usize = 24;

/// What has been told so far: a result repeats what its events have said, and is told only where they have not.
#[derive(Default)]
pub(super) struct Screen {
    fused: bool,
    answering: bool,
}

impl Screen {
    /// Prints an event.
    pub(super) fn tell(&mut self, event: Event) -> Result<(), Failure> {
        let text = self.draw(event).map_err(anyhow::Error::from)?;
        let mut stdout = Sink::stdout();
        stdout.text(&text)?;
        stdout.flush()
    }

    fn draw(&mut self, event: Event) -> Result<String, std::fmt::Error> {
        let mut out = String::new();
        match event {
            Event::Branch(told) => branch(&mut out, &told)?,
            Event::Fusion(told) => {
                self.fused = true;
                fusion(&mut out, &told)?;
            }
            Event::AnswerDelta(piece) => {
                if !self.answering {
                    self.answering = true;
                    writeln!(out, "{}", bold("answer"))?;
                    write!(out, "  ")?;
                }
                write!(out, "{}", clean_lines(&piece))?;
            }
            Event::Result(told) => self.result(&mut out, &told)?,
        }
        Ok(out)
    }

    fn result(&self, out: &mut String, result: &UnderstandResult) -> std::fmt::Result {
        if self.answering {
            writeln!(out)?;
        }
        if let (false, Some(told)) = (self.fused, &result.fusion) {
            fusion(out, told)?;
        }
        if let Some(answer) = &result.answer {
            if !self.answering && !answer.text.is_empty() {
                writeln!(out, "{}\n  {}", bold("answer"), clean_lines(&answer.text))?;
            }
            if !answer.reason.is_empty() {
                writeln!(out, "  {}", paint(&answer.reason, Style::new().yellow()))?;
            }
            let evidence: Vec<String> = answer.evidence().map(sense).collect();
            if !evidence.is_empty() {
                writeln!(out, "  {}", dim(format!("written from {}", evidence.join(", "))))?;
            }
            if answer.completion_tokens > 0 {
                let finish = short(answer.finish_reason().as_str_name());
                let tokens = format!("{} tokens from {} ({finish})", answer.completion_tokens, answer.prompt_tokens);
                writeln!(out, "  {}", dim(format!("{} {tokens}", name(answer.model.as_ref()))))?;
            }
            for (what, text) in [("alternative text", &answer.alternative_text), ("transcript", &answer.transcript)] {
                if !text.is_empty() {
                    writeln!(out, "  {} {}", dim(what), clean_lines(text))?;
                }
            }
        }
        let timings = result.timings.iter().map(|timing| format!("{} {}", timing.stage, seconds(timing.seconds)));
        let timings: Vec<String> = timings.collect();
        if !timings.is_empty() {
            writeln!(out, "{}  {}", bold("timings"), dim(timings.join(" · ")))?;
        }
        if result.degraded {
            let missing =
                result.branches.iter().filter(|branch| !branch.reason.is_empty() && branch.state() != State::Muted);
            let reasons: Vec<String> =
                missing.map(|branch| format!("{}: {}", sense(branch.modality()), clean(&branch.reason))).collect();
            let mark = paint(" DEGRADED ", Style::new().black().on_yellow().bold());
            writeln!(out, "{mark} {}", reasons.join("; "))?;
        }
        Ok(())
    }
}

fn branch(out: &mut String, branch: &Branch) -> std::fmt::Result {
    let about = format!("{} {}", name(branch.model.as_ref()), seconds(branch.seconds));
    let state = match branch.state() {
        State::Ok => String::new(),
        State::Muted => format!("  {}", dim("muted")),
        other => format!("  {}", paint(short(other.as_str_name()), Style::new().yellow().bold())),
    };
    let heading = paint(sense(branch.modality()), colour(branch.modality()).bold());
    writeln!(out, "{heading}{state}  {}", dim(about.trim()))?;
    if !branch.reason.is_empty() {
        writeln!(out, "  {}", paint(&branch.reason, Style::new().yellow()))?;
    }
    let labels = || branch.labels.iter().map(|label| (clean(&label.name), label));
    let widest = labels().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, label) in labels() {
        let share = f64::from(label.probability);
        let drawn = paint(bar(share, WIDTH), colour(branch.modality()));
        writeln!(out, "  {name:widest$}  {drawn} {:5.1} %", share * 100.0)?;
    }
    for segment in &branch.segments {
        let times = format!("{} – {}", clock(segment.start_seconds), clock(segment.end_seconds));
        writeln!(out, "  {}  {}", dim(times), clean(segment.text.trim()))?;
    }
    // labels and segments say the same in more detail
    if branch.labels.is_empty() && branch.segments.is_empty() && !branch.words.is_empty() {
        writeln!(out, "  {}", clean_lines(&branch.words))?;
    }
    if branch.truncated {
        writeln!(out, "  {}", paint("longer than the model reads: the end was left out", Style::new().yellow()))?;
    }
    branch.guards.iter().try_for_each(|told| guard(out, told))
}

fn guard(out: &mut String, guard: &Guard) -> std::fmt::Result {
    let score = match guard.score {
        Some(score) => format!("{score:.2} (acts from {:.2})", guard.threshold),
        None => format!("cannot judge: {}", clean(&guard.reason)),
    };
    let name = name(guard.model.as_ref());
    match (guard.triggered, guard.blocked) {
        (_, true) => writeln!(out, "  {} {score}", paint(format!("{name} contained it:"), Style::new().red().bold())),
        (true, false) => writeln!(out, "  {} {score}", paint(format!("{name} notes:"), Style::new().yellow())),
        (false, false) => writeln!(out, "  {}", dim(format!("{name} {score}"))),
    }
}

fn fusion(out: &mut String, fusion: &Fusion) -> std::fmt::Result {
    if !fusion.contributions.is_empty() {
        writeln!(out, "{}", bold("contribution"))?;
    }
    fusion.contributions.iter().try_for_each(|told| contribution(out, told))?;
    if !fusion.consistency.is_empty() {
        writeln!(out, "{}", bold("agreement"))?;
    }
    fusion.consistency.iter().try_for_each(|told| consistency(out, told))
}

fn contribution(out: &mut String, part: &Contribution) -> std::fmt::Result {
    let drawn = paint(bar(part.shapley, WIDTH), colour(part.modality()));
    // the usual weight is not worth a word
    let weight =
        if (part.weight - 1.0).abs() < 1e-9 { String::new() } else { dim(format!("  weight {}", part.weight)) };
    writeln!(out, "  {:5}  {drawn} {:5.1} %{weight}", sense(part.modality()), part.shapley * 100.0)
}

fn consistency(out: &mut String, pair: &Consistency) -> std::fmt::Result {
    let style = match pair.verdict() {
        Verdict::Agree => Style::new().green(),
        Verdict::Conflict => Style::new().red(),
        Verdict::Unrelated | Verdict::Unspecified => Style::new().dimmed(),
    };
    let verdict = paint(short(pair.verdict().as_str_name()), style);
    let both = format!("{} and {}", sense(pair.a()), sense(pair.b()));
    writeln!(out, "  {both:15}  {verdict}  {}", dim(format!("similarity {:.2}", pair.similarity)))
}

fn sense(modality: Modality) -> String {
    short(modality.as_str_name())
}

fn colour(modality: Modality) -> Style {
    match modality {
        Modality::Text => Style::new().cyan(),
        Modality::Image => Style::new().magenta(),
        Modality::Audio => Style::new().blue(),
        Modality::Unspecified => Style::new(),
    }
}

fn name(model: Option<&ModelRef>) -> String {
    match model {
        Some(model) if model.version.is_empty() => model.name.clone(),
        Some(model) => format!("{}/{}", model.name, model.version),
        None => String::new(),
    }
}

/// A moment of a clip: `0:07.3`, `12:00.0`.
fn clock(seconds: f64) -> String {
    let tenths = (seconds.max(0.0) * 10.0).round() as u64;
    format!("{}:{:02}.{}", tenths / 600, tenths / 10 % 60, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_of_a_clip() {
        assert_eq!([7.26, 59.96, 720.0].map(clock), ["0:07.3", "1:00.0", "12:00.0"]);
    }
}
