//! The answer of an append, which is given whatever happens.

use muster_actors::store::{AppendDone, StoreError, StoreResult};

/// The answer of an append: given even when whoever should is gone.
pub struct AppendAnswer(Option<AppendDone>);

impl AppendAnswer {
    /// Will be given by this.
    #[must_use]
    pub fn new(done: AppendDone) -> Self {
        Self(Some(done))
    }

    /// Gives it.
    pub fn give(mut self, result: StoreResult<()>) {
        if let Some(done) = self.0.take() {
            done(result);
        }
    }
}

impl Drop for AppendAnswer {
    fn drop(&mut self) {
        if let Some(done) = self.0.take() {
            done(Err(StoreError::Unavailable("closed".into())));
        }
    }
}
