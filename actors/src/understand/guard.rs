//! Guards: models that judge what is sensed. By configuration they annotate or contain.

use std::time::Duration;

use tokio::time::Instant;

use super::Understanding;
use super::report::{Branch, Guard, ModelRef, State};
use crate::error::{Error, Result};
use crate::request::{Context, Request};

/// A guard that stays away is worth a word this often.
const SAY_AGAIN: Duration = Duration::from_secs(60);

impl Understanding {
    /// What the image guard thinks; `None` if there is none.
    pub(super) async fn judge_image(&self, image: &bytes::Bytes, context: &Context) -> Result<Option<Guard>> {
        let options = self.options();
        let request = Request::of_bytes(&options.image_guard, "image", image);
        self.judge(request, "nsfw_probability", options.image_guard_threshold, options.image_guard_blocks, context)
            .await
    }

    /// What the text guard thinks; `None` if there is none.
    pub(super) async fn judge_text(&self, text: &str, context: &Context) -> Result<Option<Guard>> {
        let options = self.options();
        let request = Request::of_bytes(&options.text_guard, "text", text);
        let (threshold, blocks) = (options.text_guard_threshold, options.text_guard_blocks);
        self.judge(request, "injection_probability", threshold, blocks, context).await
    }

    /// A guard that cannot judge lets pass if it only annotates, and contains if it blocks; either way it says so.
    async fn judge(
        &self,
        request: Request,
        output: &str,
        threshold: f32,
        blocks: bool,
        context: &Context,
    ) -> Result<Option<Guard>> {
        if request.model.is_empty() {
            return Ok(None);
        }
        let judged = self.router.infer_within(&request, context).await;
        let judged = judged.and_then(|reply| {
            // a score that is no number is below every threshold, and says nothing
            let score = reply.numbers(output)?.first().copied();
            let score = score.ok_or_else(|| Error::Internal(format!("{} gave no score", reply.model)))?;
            Ok((reply, score))
        });
        let (reply, score) = match judged {
            Ok(judged) => judged,
            Err(error) if blocks && context.patient && !matches!(error, Error::InvalidArgument { .. }) => {
                return Err(error);
            }
            Err(error) => {
                metrics::counter!("sensorium_guard_failures_total", "model" => request.model.to_string()).increment(1);
                if self.is_news(&request.model) {
                    tracing::warn!(guard = &*request.model, %error, blocks, "guard cannot judge");
                }
                let model = ModelRef { name: request.model.to_string(), version: String::new() };
                let reason = error.to_string();
                return Ok(Some(Guard { model, score: None, reason, threshold, triggered: false, blocked: blocks }));
            }
        };
        self.is_back(&request.model);
        let triggered = score >= threshold;
        if triggered {
            metrics::counter!("sensorium_guard_triggered_total", "model" => request.model.to_string()).increment(1);
        }
        let model = ModelRef { name: reply.model.to_string(), version: reply.version.to_string() };
        Ok(Some(Guard {
            model,
            score: Some(score),
            reason: String::new(),
            threshold,
            triggered,
            blocked: triggered && blocks,
        }))
    }
}

impl Understanding {
    /// Whether nobody has said yet that a guard is away: once is enough until it is back, or for a minute.
    fn is_news(&self, guard: &str) -> bool {
        let now = Instant::now();
        let mut away = self.away.entry(guard.to_owned()).or_insert(None);
        let news = away.is_none_or(|said| now.duration_since(said) > SAY_AGAIN);
        if news {
            *away = Some(now);
        }
        news
    }

    fn is_back(&self, guard: &str) {
        if !self.away.is_empty() && self.away.remove(guard).is_some() {
            tracing::info!(guard, "guard judges again");
        }
    }
}

impl Guard {
    /// Why it blocks, in words.
    pub(super) fn verdict(&self) -> String {
        match self.score {
            None => format!("{} cannot judge it, and is set to block: {}", self.model.name, self.reason),
            Some(score) => format!("{} scored {score:.2}, from {:.2} on it blocks", self.model.name, self.threshold),
        }
    }
}

impl Branch {
    /// Adds a guard's judgement, and contains the branch if the guard says so: what it said is not passed on.
    pub(super) fn guarded(mut self, guard: Option<Guard>) -> Self {
        let Some(guard) = guard else { return self };
        if guard.blocked {
            self.state = State::Blocked;
            self.reason = guard.verdict();
            self.embedding.clear();
            self.labels.clear();
            self.segments.clear();
            self.words.clear();
        }
        self.guards.push(guard);
        self
    }
}
