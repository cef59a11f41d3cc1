//! `egressctl doctor` on a real Envoy, and on what is none.

mod common;

use std::{os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use egress_integration::envoy;

use common::{HOST, Trusted, egressctl, originated};

/// What `doctor` found of one thing.
fn about<'f>(found: &'f [Value], what: &str) -> Result<&'f Value> {
    let mut all = found.iter().filter(|one| one["about"] == what);
    let one = all
        .next()
        .with_context(|| format!("nothing about {what}: {found:#?}"))?;
    ensure!(all.next().is_none(), "{what} twice: {found:#?}");
    Ok(one)
}

/// What `doctor` finds with these arguments; it ends with 1 when anything is an error.
async fn examined(trusted: &Trusted, args: &[&Path]) -> Result<Vec<Value>> {
    let all = ["doctor", "-o", "json"].map(Path::new);
    let output = egressctl(trusted, all.iter().chain(args)).await?;
    let found: Vec<Value> = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let bad = found.iter().any(|one| one["verdict"] == "error");
    assert_eq!(output.status.code(), Some(i32::from(bad)), "{found:#?}");
    for one in &found {
        let advised = one["hint"].is_string();
        ensure!(advised || one["verdict"] != "warning", "{one}");
    }
    Ok(found)
}

/// A program that answers as Envoy would: `version` to `--version`, and otherwise `log` and an end that is not well.
fn program(trusted: &Trusted, version: &str, log: &str) -> Result<std::path::PathBuf> {
    let text = format!(
        "#!/bin/sh\nif [ \"$1\" = --version ]; then echo '{version}'; exit; fi\necho '{log}' >&2\nexit 1\n"
    );
    let path = trusted.file("program", &text)?;
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
    Ok(path)
}

#[tokio::test]
async fn a_good_envoy_loads_the_filter() -> Result<()> {
    let trusted = Trusted::new()?;
    let rules = trusted.file("rules.yaml", &originated(HOST, 443))?;
    let binary = envoy::binary()?;
    let args = [Path::new("--envoy"), &binary, Path::new("-f"), &rules];
    let found = examined(&trusted, &args).await?;
    let envoy = about(&found, "envoy")?;
    let version = envoy::version().await?;
    ensure!(
        envoy["what"]
            .as_str()
            .is_some_and(|what| what.contains(&format!("is Envoy {version}"))),
        "{envoy}"
    );
    for what in ["filter", "load", "authorities", "rules", "credentials"] {
        assert_eq!(about(&found, what)?["verdict"], "ok", "{found:#?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_filter_that_envoy_cannot_load_is_told_of() -> Result<()> {
    let trusted = Trusted::new()?;
    let binary = envoy::binary()?;
    let wasm = trusted.path("broken.wasm");
    std::fs::write(&wasm, b"\0asm\x01\0\0\0and no more")?;
    let args = [Path::new("--envoy"), &binary, Path::new("--wasm"), &wasm];
    let found = examined(&trusted, &args).await?;
    assert_eq!(about(&found, "filter")?["verdict"], "ok");
    assert_eq!(about(&found, "load")?["verdict"], "error", "{found:#?}");
    Ok(())
}

#[tokio::test]
async fn what_is_no_envoy_is_told_of() -> Result<()> {
    let trusted = Trusted::new()?;
    let other = program(&trusted, "other 1.40.0", "")?;
    let found = examined(&trusted, &[Path::new("--envoy"), &other]).await?;
    let envoy = about(&found, "envoy")?;
    assert_eq!(envoy["verdict"], "error", "{envoy}");
    ensure!(
        envoy["what"]
            .as_str()
            .is_some_and(|what| what.contains("is not an Envoy"))
    );
    ensure!(
        envoy["hint"]
            .as_str()
            .is_some_and(|hint| hint.contains("make envoy"))
    );
    ensure!(about(&found, "load").is_err(), "{found:#?}");
    Ok(())
}

#[tokio::test]
async fn an_envoy_without_v8_is_told_of() -> Result<()> {
    let trusted = Trusted::new()?;
    let without = program(
        &trusted,
        "envoy  version: 0ebf/1.38.3/Modified/RELEASE/BoringSSL",
        "[1][warning][wasm] [wasm_vm.cc:102] Failed to create Wasm VM using envoy.wasm.runtime.v8 runtime. \
         Envoy was compiled without support for it\n\
         [1][critical][main] [server.cc:76] error initializing configuration: Unable to create Wasm plugin egress",
    )?;
    let found = examined(&trusted, &[Path::new("--envoy"), &without]).await?;
    let load = about(&found, "load")?;
    assert_eq!(load["verdict"], "error", "{load}");
    ensure!(
        load["hint"]
            .as_str()
            .is_some_and(|hint| hint.contains("no V8")),
        "{load}"
    );
    Ok(())
}

#[tokio::test]
async fn rules_with_mistakes_are_told_of() -> Result<()> {
    let trusted = Trusted::new()?;
    let rules = originated(HOST, 443).replace("SIMPLE", "SIMPEL");
    let rules = trusted.file("rules.yaml", &rules)?;
    let found = examined(&trusted, &[Path::new("-f"), &rules]).await?;
    let told = about(&found, "rules")?;
    assert_eq!(
        (&told["verdict"], &told["what"]),
        (&"error".into(), &"errors: 1, warnings: 0".into())
    );
    Ok(())
}
