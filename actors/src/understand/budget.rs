//! The latency budget of a branch: how long it may take, and which model can be expected to keep it.

use std::time::Duration;

use sensorium_cluster::membership::Policy;
use tokio::time::Instant;

use super::Understanding;

/// The model that answers a branch.
#[derive(Clone, Debug, Default)]
pub struct Chosen {
    /// Its name.
    pub model: String,
    /// Why it is not the one that was asked for; empty if it is.
    pub reason: String,
    /// Who answers if nobody takes requests for it.
    pub stand_in: Option<String>,
}

impl Understanding {
    /// When the branch is given up, and what is left until then: the least of its share of the deadline, what the model
    /// is given by its manifest, and what the request says.
    pub(super) fn budget(
        policy: &Policy,
        asked: Option<Duration>,
        deadline: Option<Instant>,
    ) -> (Option<Instant>, Option<Duration>) {
        let now = Instant::now();
        let given = Some(policy.budget_ms).filter(|&given| given > 0).map(Duration::from_millis);
        let share = deadline.map(|deadline| deadline.saturating_duration_since(now));
        let budget = [asked, given, share].into_iter().flatten().min();
        (budget.map(|budget| now + budget), budget)
    }

    /// What a model's manifest says of how it is called: as its holders tell it, or told it last.
    pub(super) fn policy(&self, model: &str) -> Policy {
        let Ok(held) = self.router.held(model, None) else {
            return self.policies.get(model).map(|policy| policy.clone()).unwrap_or_default();
        };
        if self.policies.get(model).is_none_or(|known| *known != held.policy) {
            self.policies.insert(model.to_owned(), held.policy.clone());
        }
        held.policy
    }

    /// The model if it can be expected to answer within the budget, or else a smaller one that can.
    ///
    /// # Errors
    /// Why none of them can. What nobody has measured of late is tried.
    pub(super) fn choose(
        &self,
        model: &str,
        policy: &Policy,
        size: f64,
        budget: Option<Duration>,
    ) -> Result<Chosen, String> {
        let as_asked = || {
            let stand_in = Some(policy.fallback.clone()).filter(|fallback| !fallback.is_empty());
            Chosen { model: model.to_owned(), reason: String::new(), stand_in }
        };
        let Some(budget) = budget else { return Ok(as_asked()) };
        let Some(expected) = self.router.expected(model, size).filter(|&expected| expected > budget) else {
            return Ok(as_asked());
        };
        let ms = |duration: Duration| duration.as_millis();
        let reason = format!("{model} was expected to take {} ms of a budget of {} ms", ms(expected), ms(budget));
        let fallback = &policy.fallback;
        if fallback.is_empty() || self.router.held(fallback, None).is_err() {
            return Err(format!("not begun: {reason}"));
        }
        match self.router.expected(fallback, size).filter(|&expected| expected > budget) {
            None => {
                let reason = format!("answered by {fallback}: {reason}");
                Ok(Chosen { model: fallback.clone(), reason, stand_in: None })
            }
            Some(too) => Err(format!("not begun: {reason}, and {fallback} {} ms", ms(too))),
        }
    }
}
