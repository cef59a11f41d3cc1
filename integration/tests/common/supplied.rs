//! Secrets from files in place of istiod and its agent.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::common::Trusted;

/// Where the TLS of a cluster is.
pub(crate) const TLS: &str = "/transport_socket/typed_config/common_tls_context";

/// Lets a cluster read its secrets from files. Whom it asked for them is looked at.
pub(crate) fn supply(
    cluster: &mut Value,
    secrets: &[(String, Value)],
    trusted: &Trusted,
) -> Result<()> {
    let Some(context) = cluster.pointer_mut(TLS) else {
        return Ok(());
    };
    for path in [
        "/validation_context_sds_secret_config",
        "/combined_validation_context/validation_context_sds_secret_config",
        "/tls_certificate_sds_secret_configs/0",
    ] {
        let Some(reference) = context.pointer_mut(path) else {
            continue;
        };
        let name = reference["name"].as_str().context("no name")?.to_owned();
        let source = reference["sds_config"].clone();
        let agent = &source["api_config_source"]["grpc_services"];
        let asked = match name.starts_with("file-") {
            true => *agent == json!([{"envoy_grpc": {"cluster_name": "sds-grpc"}}]),
            false => source == json!({"ads": {}, "resource_api_version": "V3"}),
        };
        ensure!(asked, "{reference}");
        let found = secrets.iter().find(|(known, _)| *known == name);
        let found = found.with_context(|| format!("no secret {name}"))?;
        let mut secret = found.1.clone();
        let kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
        let given = match secret.is_null() {
            true => Vec::new(),
            false => {
                secret["@type"] = json!(kind);
                secret["name"] = json!(name);
                vec![secret]
            }
        };
        let file = name.replace(['/', ':'], "_") + ".json";
        let resources = json!({"resources": given}).to_string();
        let file = trusted.file(&file, &resources)?;
        reference["sds_config"] = json!({
            "path_config_source": {"path": file},
            "resource_api_version": "V3",
            "initial_fetch_timeout": "1s",
        });
    }
    Ok(())
}
