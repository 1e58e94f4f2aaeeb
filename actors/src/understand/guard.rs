//! Guards: models that judge what is sensed. By configuration they annotate or contain.

use super::Understanding;
use super::report::{Branch, Guard, ModelRef, State};
use crate::error::{Error, Result};
use crate::request::{Context, Request};

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

    /// A guard that cannot judge lets pass if it only annotates, and contains if it blocks.
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
            Err(error @ Error::InvalidArgument { .. }) => return Err(error),
            Err(error) => {
                tracing::warn!(guard = &*request.model, %error, blocks, "guard cannot judge");
                metrics::counter!("sensorium_guard_failures_total", "model" => request.model.to_string()).increment(1);
                let model = ModelRef { name: request.model.to_string(), version: String::new() };
                let unjudged = Guard { model, score: None, threshold, triggered: false, blocked: true };
                return Ok(blocks.then_some(unjudged));
            }
        };
        let triggered = score >= threshold;
        if triggered {
            metrics::counter!("sensorium_guard_triggered_total", "model" => request.model.to_string()).increment(1);
        }
        let model = ModelRef { name: reply.model.to_string(), version: reply.version.to_string() };
        Ok(Some(Guard { model, score: Some(score), threshold, triggered, blocked: triggered && blocks }))
    }
}

impl Guard {
    /// Why it blocks, in words.
    pub(super) fn verdict(&self) -> String {
        match self.score {
            None => format!("{} cannot judge it, and is set to block", self.model.name),
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
