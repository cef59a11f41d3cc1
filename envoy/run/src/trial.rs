//! A configuration on trial: another Envoy loads it, filter and all, and what it does to that one harms nobody.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use super::{atomic, envoy_log};

/// How long Envoy may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Lets an Envoy load a bootstrap, which is written into the folder for that.
///
/// # Errors
/// With Envoy's reason when it does not.
pub async fn load(envoy: &Path, folder: &Path, bootstrap: &Value) -> Result<(), String> {
    let file = folder.join("trial.json");
    atomic::write_private(&file, &bootstrap.to_string())
        .map_err(|error| format!("cannot write a bootstrap: {error}"))?;
    let mut command = Command::new(envoy);
    command.args(["--mode", "validate", "--disable-hot-restart", "-c"]);
    command.arg(&file).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(LIMIT, command.output())
        .await
        .map_err(|_| format!("Envoy did not load the filter within {LIMIT:?}"))?
        .map_err(|error| format!("cannot start `{}`: {error}", envoy.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let log = String::from_utf8_lossy(&output.stderr);
    Err(envoy_log::reason(log.lines(), &output.status.to_string()))
}
