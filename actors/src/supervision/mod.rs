//! What supervisors share: a bounded restart policy, and the tree that operators see.
//!
//! ractor gives links and supervision events; the policy is ours, in one small file, since a supervisor of ours also
//! has to drain, to quarantine, and to say why.

pub mod policy;
pub mod tree;

use ractor::{ActorId, SupervisionEvent};

/// The reason of a stop that an operator asked for: the supervisor starts the actor again and counts no failure.
pub const RESTART: &str = "restart";
/// The reason of a stop that is meant: the supervisor lets the actor go.
pub const RETIRE: &str = "retire";

/// Which child has ended, and for what reason; nothing if none has.
pub fn ended(event: SupervisionEvent) -> Option<(ActorId, String)> {
    match event {
        SupervisionEvent::ActorFailed(child, error) => Some((child.get_id(), error.to_string())),
        SupervisionEvent::ActorTerminated(child, _, reason) => Some((child.get_id(), reason.unwrap_or_default())),
        _ => None,
    }
}
