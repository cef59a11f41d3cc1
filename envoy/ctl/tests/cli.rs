//! Golden cases of the command line: the input says how to run it, the outputs stand beside it.
//!
//! `cli/NAME.yaml` begins with `# egressctl ARGUMENTS`; `@` stands for the file itself. What was printed
//! is kept in `cli/NAME.out` and `cli/NAME.err`, the exit code at the end of the latter. `make bless`
//! rewrites them.
use std::fs;
use std::path::Path;
use std::process::Command;

#[cfg(test)]
mod goldens;
#[cfg(test)]
mod stage;

#[test]
fn outputs_are_as_they_were() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli");
    let stage = tempfile::tempdir().unwrap();
    stage::set(stage.path());
    // A bootstrap names a module, and rendering does not open it; but it must be there.
    fs::write(stage.path().join("filter.wasm"), "").unwrap();
    let mut goldens = goldens::Goldens::new();
    for case in &goldens::cases(&folder) {
        let name = case.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(case).unwrap();
        fs::write(stage.path().join(name), &text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_egressctl"))
            .args(goldens::arguments(&text, name))
            .current_dir(&stage)
            .env("SSL_CERT_FILE", "trusted.pem")
            .env_remove("RUST_BACKTRACE")
            .output()
            .unwrap();
        // Where the case was run is no part of what was promised.
        let portable = |bytes: &[u8]| {
            String::from_utf8_lossy(bytes).replace(stage.path().to_str().unwrap(), "[FOLDER]")
        };
        let error = format!(
            "{}exit code {}\n",
            portable(&output.stderr),
            output.status.code().unwrap()
        );
        for (ending, found) in [("out", portable(&output.stdout)), ("err", error)] {
            goldens.compare(case, ending, &found);
        }
    }
    goldens.finish();
}
