//! What waits for somebody who is busy, in order: nothing overtakes it, since it may be about the same thing.

use std::collections::VecDeque;

#[derive(Debug)]
pub(super) struct Backlog<T> {
    waiting: VecDeque<T>,
    max: usize,
}

impl<T> Backlog<T> {
    /// At most so many wait.
    pub(super) const fn new(max: usize) -> Self {
        Self { waiting: VecDeque::new(), max }
    }

    /// Submits one after all that waits, to `take`, which gives back what it does not take. That waits as well, if
    /// it `may`; otherwise, or where too many wait, it is given back here, too.
    pub(super) fn submit(
        &mut self,
        item: T,
        may: bool,
        mut take: impl FnMut(T) -> Option<T>,
    ) -> Option<T> {
        self.retry(&mut take);
        let left = if self.waiting.is_empty() { take(item) } else { Some(item) };
        if may && self.waiting.len() < self.max {
            self.waiting.extend(left);
            return None;
        }
        left
    }

    /// Submits what waits, as far as it is taken.
    pub(super) fn retry(&mut self, mut take: impl FnMut(T) -> Option<T>) {
        while let Some(item) = self.waiting.pop_front() {
            if let Some(item) = take(item) {
                self.waiting.push_front(item);
                return;
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes as many as it has room for.
    fn into<'a>(taken: &'a mut Vec<u32>, room: &'a mut usize) -> impl FnMut(u32) -> Option<u32> {
        move |item| match room.checked_sub(1) {
            Some(left) => {
                *room = left;
                taken.push(item);
                None
            }
            None => Some(item),
        }
    }

    #[test]
    fn nothing_overtakes_what_waits() {
        let (mut backlog, mut taken) = (Backlog::new(10), Vec::new());
        for item in 0..4 {
            assert_eq!(backlog.submit(item, true, into(&mut taken, &mut 0)), None);
        }
        // There is room for three by now: what waits has it, and the next one waits.
        assert_eq!(backlog.submit(4, true, into(&mut taken, &mut 3)), None);
        assert_eq!(taken, [0, 1, 2]);
        assert_eq!(backlog.submit(5, true, into(&mut taken, &mut 9)), None);
        assert_eq!(taken, [0, 1, 2, 3, 4, 5]);
        assert!(backlog.is_empty());
    }

    /// What may not wait does not overtake either.
    #[test]
    fn what_may_not_wait_is_given_back_while_others_do() {
        let (mut backlog, mut taken) = (Backlog::new(10), Vec::new());
        assert_eq!(backlog.submit(0, false, into(&mut taken, &mut 0)), Some(0));
        assert_eq!(backlog.submit(1, true, into(&mut taken, &mut 0)), None);
        assert_eq!(backlog.submit(2, false, into(&mut taken, &mut 0)), Some(2));
        assert_eq!(backlog.submit(3, false, into(&mut taken, &mut 9)), None);
        assert_eq!(taken, [1, 3]);
    }

    #[test]
    fn no_more_wait_than_may() {
        let (mut backlog, mut taken) = (Backlog::new(2), Vec::new());
        let outcomes = [0, 1, 2].map(|item| backlog.submit(item, true, into(&mut taken, &mut 0)));
        assert_eq!(outcomes, [None, None, Some(2)]);
        backlog.retry(into(&mut taken, &mut 9));
        assert_eq!(taken, [0, 1]);
    }
}
