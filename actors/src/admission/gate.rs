//! Who is let through a gate that has room for so many: first by priority, then by each tenant's share.
//!
//! A tenant's share is its weight among those that are there. It may use more for as long as there is room; when there
//! is none, who is below its share is let in all the same, and who is above is refused until it has come down. So a
//! tenant alone has everything, and nobody's room stands empty for somebody who does not come.

/// A request before a gate.
pub(super) struct Ask {
    /// Requests inside.
    pub(super) total: u32,
    /// Those of its tenant.
    pub(super) own: u32,
    /// How many the gate has room for.
    pub(super) limit: u32,
    /// Of these, kept for tenants below their share, where there are several.
    pub(super) kept: u32,
    /// How many more may come where there is no room, of tenants below their share.
    pub(super) beyond: u32,
    /// 1 is the highest; 0 is the default.
    pub(super) priority: u32,
}

/// Why it is not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// There is no room.
    All,
    /// Its tenant has more than its share.
    Share,
    /// What room there is, is for higher priorities.
    Priority,
}

/// The part of a gate's room that a priority may use: the default as much as the second, three quarters below it, and
/// half for what is done when there is time.
fn part(priority: u32) -> f64 {
    match priority {
        1 => 1.0,
        0 | 2 => 15.0 / 16.0,
        u32::MAX => 0.5,
        _ => 0.75,
    }
}

impl Ask {
    /// Lets it through or not; `share` is what its tenant is due of the whole, up to 1, and asked for only when it
    /// matters. Gives whether it came in where there is no room.
    pub(super) fn judge(&self, share: impl FnOnce() -> f64) -> Result<bool, Full> {
        let part = part(self.priority);
        let total = f64::from(self.total);
        let room = |limit: u32| (f64::from(limit) * part).ceil();
        if total < room(self.limit - self.kept) {
            return Ok(false);
        }
        let share = share();
        let limit = if share < 1.0 { self.limit - self.kept } else { self.limit };
        if total < room(limit) {
            return Ok(false);
        }
        let due = f64::from(self.own) < share * f64::from(limit) * part;
        match () {
            () if due && self.beyond > 0 => Ok(true),
            () if self.total < limit && self.priority > 2 => Err(Full::Priority),
            () if share < 1.0 && !due => Err(Full::Share),
            () => Err(Full::All),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(total: u32, own: u32, priority: u32) -> Ask {
        Ask { total, own, limit: 16, kept: 0, beyond: 16, priority }
    }

    #[test]
    fn who_is_below_its_share_is_let_in_where_there_is_no_room() {
        assert_eq!(ask(16, 15, 1).judge(|| 0.5), Err(Full::Share));
        assert_eq!(ask(16, 1, 1).judge(|| 0.5), Ok(true));
        assert_eq!(ask(16, 8, 1).judge(|| 0.5), Err(Full::Share));
        assert_eq!(ask(20, 4, 1).judge(|| 0.25), Err(Full::Share), "a quarter by its weight");
        assert_eq!(ask(16, 16, 1).judge(|| 1.0), Err(Full::All), "alone");
        let bounded = Ask { beyond: 0, ..ask(32, 0, 1) };
        assert_eq!(bounded.judge(|| 0.5), Err(Full::All), "enough have come so");
        // as long as there is room, shares are not even looked at
        assert_eq!(ask(14, 14, 1).judge(|| unreachable!("there is room")), Ok(false));
    }

    #[test]
    fn a_priority_weighs_less_than_a_share() {
        // a tenant that calls everything urgent takes nothing from another one's share
        assert_eq!(ask(16, 2, 3).judge(|| 0.5), Ok(true));
        assert_eq!(ask(16, 6, 3).judge(|| 0.5), Err(Full::Share));
        assert_eq!(ask(14, 8, 3).judge(|| 0.5), Err(Full::Priority));
        assert_eq!(ask(15, 15, 0).judge(|| 1.0), Err(Full::All), "the default is not called low");
    }
}
