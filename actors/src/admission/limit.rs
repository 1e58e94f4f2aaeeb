//! How many requests for a model may be in work: as many as it answers without making them wait for long.
//!
//! A gradient after Netflix's `concurrency-limits` (`Gradient2Limit`): what a request takes now, against what it takes
//! where nobody waits. That baseline is measured where it can be, as in BBR (Cardwell et al., 2016): below the floor,
//! which the limit is brought down to if waiting goes on, so that a model that has become slower is not taken for one
//! that is overloaded for ever. Refusals and missed deadlines count by their share of the requests, as marks do in
//! DCTCP (RFC 8257). Each step looks at a window of requests, and is cut by half at most; growth is by the square root.
//!
//! Times are means of logarithms: a long clip among short ones moves them little.

/// A model may take so many times what it takes by itself before that counts as waiting.
pub(super) const TOLERANCE: f64 = 2.0;
/// Marks below this share of the requests are bad luck.
const MARKED: f64 = 0.05;
/// Windows at the floor after which even then long times are taken for the model's own.
const CONVINCED: u32 = 10;

/// What a window of requests has told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// How many were answered.
    pub(super) answered: u32,
    /// Seconds that they took, the geometric mean.
    pub(super) seconds: f64,
    /// Those that the workers refused, or that missed a deadline that could have been met.
    pub(super) marked: u32,
    /// The most that were in work at once.
    pub(super) peak: u32,
}

/// Between what the limit moves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) floor: u32,
    pub(super) ceiling: u32,
    /// Seconds that waiting may add.
    pub(super) patience: f64,
}

/// A limit that adapts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limit {
    /// Requests in work at most; 0 before the first step.
    pub(super) current: f64,
    /// Seconds that a request takes where nobody waits; 0 before the first window.
    pub(super) base: f64,
    /// Windows in a row that have ended at the floor.
    floored: u32,
}

impl Limit {
    /// Seconds from which requests are waiting.
    fn bearable(&self, bounds: &Bounds) -> f64 {
        (self.base * TOLERANCE).max(self.base + bounds.patience)
    }

    /// Learns from a window.
    pub(super) fn step(&mut self, window: &Window, bounds: &Bounds) {
        let (floor, ceiling) = (f64::from(bounds.floor.min(bounds.ceiling)), f64::from(bounds.ceiling));
        if self.current == 0.0 {
            self.current = ceiling;
        }
        let marked = f64::from(window.marked) / f64::from((window.answered + window.marked).max(1));
        let mut gradient = if marked < MARKED { 1.0 } else { 1.0 - marked / 2.0 };
        if window.answered > 0 {
            if self.base > 0.0 && window.seconds > self.bearable(bounds) {
                gradient = gradient.min((self.bearable(bounds) / window.seconds).max(0.5));
            }
            self.learn(window, floor);
        }
        self.current = if gradient < 1.0 {
            (self.current.min(f64::from(window.peak)) * gradient).max(floor)
        } else {
            // also where it is not used up: what was slow once is tried again
            (self.current + self.current.sqrt()).min(ceiling)
        };
        self.floored = if self.current <= floor { self.floored + 1 } else { 0 };
    }

    fn learn(&mut self, window: &Window, floor: f64) {
        let difference = window.seconds - self.base;
        if self.base == 0.0 {
            self.base = window.seconds;
        } else if difference < 0.0 {
            self.base += difference / 2.0;
        } else if f64::from(window.peak) <= floor || self.floored >= CONVINCED {
            self.base += difference / 5.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { floor: 4, ceiling: 1000, patience: 0.0 };

    /// A model that works on `lanes` requests side by side, each for `service` seconds, under as many callers as the
    /// limit lets in, or fewer.
    struct Model {
        lanes: f64,
        service: f64,
    }

    impl Model {
        fn serve(&self, limit: &mut Limit, callers: u32, bounds: &Bounds) -> u32 {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let allowed = if limit.current == 0.0 { bounds.ceiling } else { limit.current as u32 };
            let inside = callers.min(allowed);
            let seconds = self.service * (f64::from(inside) / self.lanes).max(1.0);
            limit.step(&Window { answered: 50, seconds, marked: 0, peak: inside }, bounds);
            inside
        }
    }

    #[test]
    fn it_shrinks_to_what_a_model_bears_and_grows_back() {
        let mut limit = Limit::default();
        let quick = Model { lanes: 20.0, service: 0.01 };
        (0..5).for_each(|_| assert_eq!(quick.serve(&mut limit, 3, &BOUNDS), 3));
        // overload: in work is what makes nobody wait longer than a request takes, and all lanes are in use
        let inside: Vec<u32> = (0..60).map(|_| quick.serve(&mut limit, 500, &BOUNDS)).collect();
        assert!(inside[30..].iter().all(|&inside| (20..=60).contains(&inside)), "{inside:?}");
        // over
        for _ in 0..200 {
            quick.serve(&mut limit, 3, &BOUNDS);
        }
        assert!(limit.current > 900.0, "{limit:?}");
    }

    #[test]
    fn a_model_that_becomes_slower_is_not_throttled_for_ever() {
        let mut limit = Limit::default();
        for _ in 0..5 {
            Model { lanes: 50.0, service: 0.01 }.serve(&mut limit, 4, &BOUNDS);
        }
        let slow = Model { lanes: 50.0, service: 1.0 };
        let inside: Vec<u32> = (0..200).map(|_| slow.serve(&mut limit, 40, &BOUNDS)).collect();
        assert!(inside[..20].contains(&4), "looked at closely first: {inside:?}");
        assert!(inside[150..].iter().all(|&inside| inside == 40), "{inside:?}");
        assert!(limit.base * TOLERANCE > 1.0, "{limit:?}");
    }

    #[test]
    fn requests_past_the_floor_do_not_hide_a_change_for_ever() {
        let mut limit = Limit { base: 0.01, current: 4.0, ..Limit::default() };
        // two tenants below their shares keep more inside than the limit says
        let window = Window { answered: 50, seconds: 0.5, marked: 0, peak: 7 };
        (0..60).for_each(|_| limit.step(&window, &BOUNDS));
        assert!(limit.current > 4.0, "{limit:?}");
    }

    #[test]
    fn mixed_sizes_and_patience_are_no_overload() {
        let mut limit = Limit::default();
        let bounds = Bounds { patience: 10.0, ..BOUNDS };
        for seconds in [0.05, 0.05, 0.09, 0.05, 0.08] {
            limit.step(&Window { answered: 50, seconds, marked: 0, peak: 300 }, &BOUNDS);
        }
        assert!((limit.current - 1000.0).abs() < 1.0, "{limit:?}");
        // three hundred callers at once wait for seconds, and none has said that it is in a hurry
        limit.step(&Window { answered: 50, seconds: 6.0, marked: 0, peak: 300 }, &bounds);
        assert!((limit.current - 1000.0).abs() < 1.0, "{limit:?}");
        limit.step(&Window { answered: 50, seconds: 20.0, marked: 0, peak: 300 }, &bounds);
        assert!(limit.current < 160.0, "{limit:?}");
    }

    #[test]
    fn refusals_and_missed_deadlines_count_by_their_share() {
        let before = Limit { base: 1.0, current: 1000.0, ..Limit::default() };
        let step = |answered, marked| {
            let mut limit = before;
            limit.step(&Window { answered, seconds: 1.0, marked, peak: 100 }, &BOUNDS);
            limit.current
        };
        assert!((step(99, 1) - 1000.0).abs() < 1.0, "one of a hundred is bad luck");
        assert!((step(80, 20) - 90.0).abs() < 1e-6);
        assert!((step(0, 7) - 50.0).abs() < 1e-6, "nobody is answered");
        let mut limit = before;
        (0..20).for_each(|_| limit.step(&Window { answered: 0, seconds: 0.0, marked: 9, peak: 9 }, &BOUNDS));
        assert!((limit.current - 4.0).abs() < 1e-6, "never below the floor");
    }
}
