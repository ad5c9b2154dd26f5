//! Rollback of a failing ADD.

/// Runs its steps in reverse when it is dropped, unless [`Undo::keep`] was called: what an ADD did is undone when a later
/// step fails. The steps swallow their own errors: the first error is the one to report, and DEL comes after it anyway.
#[derive(Default)]
pub(crate) struct Undo<'a> {
    steps: Vec<Box<dyn FnOnce() + 'a>>,
}

impl<'a> Undo<'a> {
    /// Remembers how to undo what was just done.
    pub(crate) fn push(&mut self, step: impl FnOnce() + 'a) {
        self.steps.push(Box::new(step));
    }

    /// The ADD worked: nothing is undone.
    pub(crate) fn keep(mut self) {
        self.steps.clear();
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        while let Some(step) = self.steps.pop() {
            step();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::Undo;

    #[test]
    fn undone_in_reverse_unless_kept() {
        let seen = RefCell::new(Vec::new());
        let mut undo = Undo::default();
        undo.push(|| seen.borrow_mut().push(1));
        undo.push(|| seen.borrow_mut().push(2));
        drop(undo);
        assert_eq!(*seen.borrow(), [2, 1]);
        let mut undo = Undo::default();
        undo.push(|| seen.borrow_mut().push(3));
        undo.keep();
        assert_eq!(*seen.borrow(), [2, 1]);
    }
}
