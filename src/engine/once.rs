//! One answer for all who ask the same at the same time.
//!
//! Whoever asks gets an answer that was begun after they asked, so that nobody sees an old one; those who come while one is
//! made share the next. So any number of callers costs at most two runs at a time, one after the other.

use std::time::Instant;

use tokio::sync::Mutex;

use crate::error::Result;

/// The last answer, and when its making began.
pub(super) struct Once<T>(Mutex<Option<(Instant, T)>>);

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Once<T> {
    /// An answer that was begun after this call, made by `make` where nobody has done it meanwhile. Errors are not shared.
    pub(super) async fn get(&self, make: impl Future<Output = Result<T>>) -> Result<T> {
        let asked = Instant::now();
        let mut last = self.0.lock().await;
        if let Some((_, answer)) = last.as_ref().filter(|(begun, _)| *begun > asked) {
            return Ok(answer.clone());
        }
        let begun = Instant::now();
        let answer = make.await?;
        *last = Some((begun, answer.clone()));
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn crowd_shares_an_answer_and_nobody_gets_an_old_one() {
        let (once, made) = (Once::default(), AtomicUsize::new(0));
        let ask = || {
            once.get(async {
                tokio::task::yield_now().await;
                Ok(made.fetch_add(1, Ordering::Relaxed) + 1)
            })
        };
        let crowd = futures::future::join_all((0..100).map(|_| ask())).await;
        let crowd: Vec<usize> = crowd.into_iter().map(|answer| answer.unwrap()).collect();
        assert_eq!(crowd[0], 1);
        assert!(crowd[1..].iter().all(|answer| *answer == 2), "{crowd:?}");
        assert_eq!(ask().await.unwrap(), 3, "asked later, answered anew");
    }
}
