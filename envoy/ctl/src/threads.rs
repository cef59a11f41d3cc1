//! Work on all processors.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// How many bytes are worth a thread: fewer are read sooner than it is there.
const WORTH_A_THREAD: usize = 1 << 16;

/// How many parts a thread takes at a time, at most: few large ones are shared out one by one.
const SHARE: usize = 16;

/// Does something with each of `count` parts of so many bytes together, on all processors.
pub(crate) fn at_once(bytes: usize, count: usize, work: &(dyn Fn(usize) + Sync)) {
    let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = processors.min(bytes / WORTH_A_THREAD).min(count).max(1);
    if threads == 1 {
        return (0..count).for_each(work);
    }
    let share = (count / threads / 4).clamp(1, SHARE);
    let next = AtomicUsize::new(0);
    let take = || {
        loop {
            let begin = next.fetch_add(share, Ordering::Relaxed);
            if begin >= count {
                return;
            }
            (begin..count.min(begin + share)).for_each(work);
        }
    };
    // A panic in one of them comes out of here.
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(take);
        }
        take();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_is_done_once() {
        for (bytes, count) in [(0, 0), (1, 1), (1 << 20, 1), (1 << 20, 1000), (1, 1000)] {
            let done: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            at_once(bytes, count, &|index| {
                done[index].fetch_add(1, Ordering::Relaxed);
            });
            assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == 1));
        }
    }
}
