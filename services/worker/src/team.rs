//! The OpenMP team of a device thread: as large as the cores that others leave, and dismissed after each call.
//!
//! Every thread that computes with libtorch has a team of its own, and libgomp counts the members of all teams. Where
//! there are more of them than cores, it no longer lets them spin at barriers but puts them to sleep, although only one
//! team works at a time here: a step of a language model then takes half as long again. Hiring a team anew takes some
//! twenty microseconds a member.
//!
//! All members wait for the slowest. A neighbour that takes one core of sixteen holds up all sixteen members, so a team
//! that does not get the time of its members' cores is made smaller.
#![allow(unsafe_code, reason = "libgomp has no safe binding; one call without pointers")]

use std::cell::RefCell;
use std::ffi::c_int;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// `omp_pause_soft` of OpenMP 5.0, section 3.2.44.
const SOFT: c_int = 1;
/// Time in calls over which shares of cores are measured.
const WINDOW: Duration = Duration::from_millis(50);
/// Busy neighbours that a team makes room for: less than so much of one, or so small a part of its cores, is noise.
const WORTH_YIELDING: f64 = 0.75;
const PART_WORTH_YIELDING: f64 = 1.0 / 16.0;
/// A team that was made smaller tries its full size again after so long, and each time in vain twice as long.
const FIRST_TRIAL: Duration = Duration::from_millis(500);
const LAST_TRIAL: Duration = Duration::from_secs(30);

unsafe extern "C" {
    fn omp_pause_resource_all(kind: c_int) -> c_int;
}

thread_local! {
    static SIZE: RefCell<Option<Size>> = const { RefCell::new(None) };
}

/// The calling thread's team, while it works. Dismissed when dropped.
pub(crate) struct Team {
    since: Instant,
    cpu: Duration,
}

impl Team {
    /// Hires up to `most` members for the calls of this thread.
    pub(crate) fn hire(most: usize) -> Self {
        SIZE.with_borrow_mut(|size| *size = Some(Size::new(most, Instant::now())));
        set(most);
        Self::gather()
    }

    /// Gathers the team for a call.
    pub(crate) fn gather() -> Self {
        Self { since: Instant::now(), cpu: process_time() }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        let (wall, cpu) = (self.since.elapsed(), process_time().saturating_sub(self.cpu));
        SIZE.with_borrow_mut(|size| {
            if let Some(changed) = size.as_mut().and_then(|size| size.observe(wall, cpu, Instant::now())) {
                set(changed);
            }
        });
        // SAFETY: takes an integer and touches the calling thread's own idle team alone; inside a parallel region, where
        // we never are, it would refuse.
        let _refused = unsafe { omp_pause_resource_all(SOFT) };
    }
}

/// The setting belongs to the calling thread.
fn set(threads: usize) {
    tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
}

/// Time that all threads of the process have had on cores.
fn process_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// How many members a team has.
struct Size {
    most: usize,
    now: usize,
    wall: Duration,
    cpu: Duration,
    /// When the full size is tried again, and how long was waited for that.
    trial: Instant,
    pause: Duration,
}

impl Size {
    fn new(most: usize, now: Instant) -> Self {
        Self { most, now: most, wall: Duration::ZERO, cpu: Duration::ZERO, trial: now, pause: Duration::ZERO }
    }

    /// Notes a call of so much time, and of so much time on cores. Gives the size of the next team if that is another one.
    ///
    /// Of `c` cores, which `n` members and `m` neighbours share alike, a member has `c / (n + m)`. That it has all of one
    /// says nothing of neighbours on the cores that it does not use: the full size is tried now and then.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn observe(&mut self, wall: Duration, cpu: Duration, now: Instant) -> Option<usize> {
        if self.most < 2 {
            return None;
        }
        (self.wall, self.cpu) = (self.wall + wall, self.cpu + cpu);
        if self.wall < WINDOW {
            return None;
        }
        let (most, members) = (self.most as f64, self.now as f64);
        let share = (self.cpu.as_secs_f64() / self.wall.as_secs_f64() / members).clamp(0.01, 1.0);
        (self.wall, self.cpu) = (Duration::ZERO, Duration::ZERO);
        let neighbours = most / share - members;
        let before = self.now;
        if self.now == self.most {
            if neighbours >= WORTH_YIELDING.max(PART_WORTH_YIELDING * most) {
                self.now = (most - neighbours).round().max(1.0) as usize;
                self.now = self.now.min(self.most - 1);
                // the trial before was not in vain if the full size has lasted since
                let lasted = now.saturating_duration_since(self.trial) > 2 * self.pause.max(FIRST_TRIAL);
                self.pause = if lasted { FIRST_TRIAL } else { (2 * self.pause).clamp(FIRST_TRIAL, LAST_TRIAL) };
                self.trial = now + self.pause;
            }
        } else if now >= self.trial {
            self.now = self.most;
        }
        (self.now != before).then_some(self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls of 25 ms for so long, in which each member has its share of the cores beside `neighbours`; the sizes that
    /// the team takes.
    fn sizes(size: &mut Size, clock: &mut Instant, seconds: f64, neighbours: f64) -> Vec<usize> {
        let mut taken = Vec::new();
        let call = Duration::from_millis(25);
        for _ in 0..(seconds / 0.025) as usize {
            let share = (size.most as f64 / (size.now as f64 + neighbours)).min(1.0);
            *clock += call;
            taken.extend(size.observe(call, call.mul_f64(share * size.now as f64), *clock));
        }
        taken
    }

    #[test]
    fn a_team_yields_to_neighbours_and_comes_back() {
        let mut clock = Instant::now();
        let mut size = Size::new(16, clock);
        assert!(sizes(&mut size, &mut clock, 5.0, 0.0).is_empty());
        assert!(sizes(&mut size, &mut clock, 5.0, 0.5).is_empty(), "what others do now and then is noise");
        let taken = sizes(&mut size, &mut clock, 60.0, 2.0);
        assert!(taken.iter().all(|size| [14, 16].contains(size)), "{taken:?}");
        assert!(taken.len() < 20, "it is tried less and less often: {taken:?}");
        sizes(&mut size, &mut clock, 40.0, 0.0);
        assert_eq!(size.now, 16);
        assert!(sizes(&mut size, &mut clock, 10.0, 0.0).is_empty());
    }

    #[test]
    fn one_member_is_left_whatever_the_neighbours_do() {
        let mut clock = Instant::now();
        let mut size = Size::new(2, clock);
        let taken = sizes(&mut size, &mut clock, 1.0, 7.0);
        assert_eq!(taken.first(), Some(&1), "{taken:?}");
        let mut alone = Size::new(1, clock);
        assert!(sizes(&mut alone, &mut clock, 1.0, 7.0).is_empty());
    }
}
