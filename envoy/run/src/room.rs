//! A disk that is full: nothing tells when it is not any more.

use std::env;
use std::io::{self, ErrorKind};
use std::time::Duration;

use tokio::time::sleep;

use super::event::{Event, Events, send};

/// How often it is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Does what needs room on the disk. While there is none, that is told once, and tried again and again.
///
/// # Errors
/// When it fails for another reason.
pub(super) async fn awaited<T>(events: &Events, does: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let mut told = false;
    loop {
        match does() {
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::StorageFull | ErrorKind::QuotaExceeded
                ) =>
            {
                if !told {
                    let text = format!(
                        "no room in `{}`: {error}; the start goes on when there is some\nhint: TMPDIR may name another folder",
                        env::temp_dir().display()
                    );
                    send(events, Event::Warning(text));
                }
                told = true;
                sleep(AGAIN).await;
            }
            other => return other,
        }
    }
}
