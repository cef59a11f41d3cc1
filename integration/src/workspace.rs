//! Where the workspace keeps what the harness starts.

use std::path::Path;

/// The root of the workspace that this crate was built in.
pub(crate) fn root() -> &'static Path {
    let member = Path::new(env!("CARGO_MANIFEST_DIR"));
    member.parent().unwrap_or(member)
}
