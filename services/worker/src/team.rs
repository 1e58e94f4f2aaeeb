//! The OpenMP team of a device thread, dismissed after each call.
//!
//! Every thread that computes with libtorch has a team of its own, and libgomp counts the members of all teams. Where
//! there are more of them than cores, it no longer lets them spin at barriers but puts them to sleep, although only one
//! team works at a time here: a step of a language model then takes half as long again. Hiring a team anew takes some
//! twenty microseconds a member.
#![allow(unsafe_code, reason = "libgomp has no safe binding; one call without pointers")]

use std::ffi::c_int;

/// `omp_pause_soft` of OpenMP 5.0, section 3.2.44.
const SOFT: c_int = 1;

unsafe extern "C" {
    fn omp_pause_resource_all(kind: c_int) -> c_int;
}

/// Dismisses the calling thread's team when dropped.
pub(crate) struct Team;

impl Drop for Team {
    fn drop(&mut self) {
        // SAFETY: takes an integer and touches the calling thread's own idle team alone; inside a parallel region, where
        // we never are, it would refuse.
        let _refused = unsafe { omp_pause_resource_all(SOFT) };
    }
}
