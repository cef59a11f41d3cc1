//! Clusters and listeners, which Envoy asks for by REST and gets as JSON.
//!
//! A question waits until there is something that Envoy has not got. So Envoy has what is new at once, and no file has
//! to be written and watched: a full disk does not matter, and no inotify instance of Envoy's is needed.
//!
//! Source: envoyproxy/envoy `source/extensions/config_subscription/rest/http_subscription_impl.cc`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prost::bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::sleep;

/// How long what Envoy was sent already is held back when it asks again: it was refused, or got lost on the way.
const AGAIN: Duration = Duration::from_secs(5);

/// One list, written out, and its version. Zero is none yet.
#[derive(Clone, Default)]
pub(crate) struct List {
    pub(crate) version: u64,
    pub(crate) text: Bytes,
}

/// A list that Envoy is given whenever there is another.
#[derive(Clone)]
pub(crate) struct Offered {
    list: watch::Receiver<List>,
    sent: Arc<AtomicU64>,
}

impl Offered {
    /// Offers nothing yet; returns the way to offer something.
    pub(crate) fn channel() -> (watch::Sender<List>, Self) {
        let (sender, list) = watch::channel(List::default());
        let sent = Arc::default();
        (sender, Offered { list, sent })
    }

    /// Waits for a list that whoever sends this question has not got. When nothing is offered any more, it waits for
    /// ever: an empty answer would be asked for again at once.
    pub(super) async fn answer(mut self, question: &[u8]) -> Bytes {
        let question: Value = serde_json::from_slice(question).unwrap_or_default();
        let has = question.get("version_info").and_then(Value::as_str);
        loop {
            let now = self.list.borrow_and_update().clone();
            if now.version == 0 || has == Some(now.version.to_string().as_str()) {
                if self.list.changed().await.is_err() {
                    std::future::pending().await
                }
                continue;
            }
            if self.sent.swap(now.version, Ordering::Relaxed) != now.version {
                return now.text;
            }
            tokio::select! {
                Ok(()) = self.list.changed() => {}
                () = sleep(AGAIN) => return now.text,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(version: u64) -> List {
        let text = version.to_string().into();
        List { version, text }
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_waits_for_what_is_new_and_what_was_refused_comes_again_later() {
        let (sender, offered) = Offered::channel();
        let first = tokio::spawn(offered.clone().answer_to("{}"));
        sender.send_replace(list(1));
        assert_eq!(first.await.unwrap(), "1");

        let next = tokio::spawn(offered.clone().answer_to(r#"{"version_info":"1"}"#));
        tokio::task::yield_now().await;
        assert!(!next.is_finished());
        sender.send_replace(list(2));
        assert_eq!(next.await.unwrap(), "2");

        // Envoy still has the first: it refused the second.
        let began = tokio::time::Instant::now();
        let again = offered.clone().answer_to(r#"{"version_info":"1"}"#).await;
        assert_eq!(again, "2");
        assert!(began.elapsed() >= AGAIN);

        let last = tokio::spawn(offered.answer_to(r#"{"version_info":"2"}"#));
        drop(sender);
        sleep(Duration::from_secs(3600)).await;
        assert!(!last.is_finished());
    }

    impl Offered {
        async fn answer_to(self, question: &'static str) -> Bytes {
            self.answer(question.as_bytes()).await
        }
    }
}
