//! What a call costs and does beside its result: memory at its peak, and panics that were caught.

// An allocator is unsafe by its contract; this one hands everything to the system's and counts.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::sync::Once;

#[global_allocator]
static COUNTING: Counting = Counting;

struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    static PANICKED: RefCell<Option<String>> = const { RefCell::new(None) };
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}

/// Tests run side by side, each on a thread of its own, and decoders start none.
fn count(bytes: isize) {
    // a thread that ends has none of its locals any more
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller's promise
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller's promise
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // for a moment there may be both
        count(size.cast_signed());
        count(-layout.size().cast_signed());
        // SAFETY: the caller's promise
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the caller's promise
        unsafe { System.dealloc(at, layout) }
    }
}

/// What was seen of a call.
pub(crate) struct Seen<T> {
    pub(crate) result: T,
    /// Bytes that it held at its peak.
    pub(crate) peak: usize,
    /// Where it panicked last and was caught: file and line, and the words.
    pub(crate) panicked: Option<String>,
}

/// Watches a call on this thread.
pub(crate) fn watch<T>(call: impl FnOnce() -> T) -> Seen<T> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if WATCHED.get() {
                PANICKED.with_borrow_mut(|panicked| *panicked = Some(info.to_string()));
            } else {
                before(info);
            }
        }));
    });
    PANICKED.take();
    WATCHED.set(true);
    let before = HELD.get();
    PEAK.set(before);
    let result = call();
    let peak = PEAK.get() - before;
    WATCHED.set(false);
    Seen { result, peak: usize::try_from(peak).unwrap_or(0), panicked: PANICKED.take() }
}

#[test]
fn memory_and_panics_are_seen() {
    let seen = watch(|| {
        drop(std::hint::black_box(vec![1_u8; 3 << 20]));
        std::panic::catch_unwind(|| panic!("as it was meant")).is_err()
    });
    assert!(seen.result && (3 << 20..4 << 20).contains(&seen.peak), "{}", seen.peak);
    assert!(seen.panicked.unwrap().contains("as it was meant"));
    assert!(watch(|| ()).panicked.is_none());
}
