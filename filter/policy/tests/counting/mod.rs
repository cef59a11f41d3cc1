//! An allocator that counts what its thread asks for, so that tests that run beside each other are not mixed.

#![expect(
    unsafe_code,
    reason = "a global allocator is unsafe to implement; this one counts what the system's is asked for"
)]
#![allow(
    dead_code,
    reason = "each test program is compiled with this file and uses a part of it"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// What a thread has asked for.
#[derive(Clone, Copy)]
struct Counts {
    allocations: u64,
    bytes: usize,
    most: usize,
}

thread_local! {
    static COUNTS: Cell<Counts> = const {
        Cell::new(Counts {
            allocations: 0,
            bytes: 0,
            most: 0,
        })
    };
}

/// Returns how often this thread has asked for memory.
pub(crate) fn allocations() -> u64 {
    COUNTS.get().allocations
}

/// Returns how many bytes this thread has, and the most it had since [`forget_most`].
pub(crate) fn bytes() -> (usize, usize) {
    let counts = COUNTS.get();
    (counts.bytes, counts.most)
}

/// Lets the most that this thread has had be what it has now.
pub(crate) fn forget_most() {
    let counts = COUNTS.get();
    COUNTS.set(Counts {
        most: counts.bytes,
        ..counts
    });
}

struct Counting;

/// A thread that is ending has no counts any more, and nobody asks for them.
fn count(change: impl FnOnce(&mut Counts)) {
    let _ = COUNTS.try_with(|cell| {
        let mut counts = cell.get();
        change(&mut counts);
        cell.set(counts);
    });
}

// SAFETY: every call goes to the system's allocator as it came; counting allocates nothing. What is not here is made of
// these two.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(|counts| {
            counts.allocations += 1;
            counts.bytes += layout.size();
            counts.most = counts.most.max(counts.bytes);
        });
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // What another thread has asked for may be given back here.
        count(|counts| counts.bytes = counts.bytes.saturating_sub(layout.size()));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
