//! Access logs: Istio's default format, and what originated it.

use egress_filter::{FIELDS, MetadataFormat};
use serde_json::{Map, Value, json};

use super::message::extension;
use super::options::{AccessLog, Options};
use super::refusals::{self, COALESCES};

/// Istio's default text format.
///
/// Source: istio/istio `pilot/pkg/model/telemetry_logging.go`, `EnvoyTextLogFormat`.
const ISTIO_TEXT: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" ",
    "%RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% ",
    "\"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ",
    "%COMMON_DURATION(US_TX_END:US_RX_BEG:ms)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" ",
    "\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% ",
    "%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% ",
    "%REQUESTED_SERVER_NAME% %ROUTE_NAME%",
);

/// The keys of Istio's JSON format.
///
/// Source: istio/istio `pilot/pkg/model/telemetry_logging.go`, `EnvoyJSONLogFormatIstio`.
const ISTIO_JSON: [(&str, &str); 24] = [
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    (
        "connection_termination_details",
        "%CONNECTION_TERMINATION_DETAILS%",
    ),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    (
        "upstream_service_time",
        "%COMMON_DURATION(US_TX_END:US_RX_BEG:ms)%",
    ),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    (
        "upstream_transport_failure_reason",
        "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    ),
];

/// The word of Istio's formats for the server's address.
const UPSTREAM_HOST: &str = "%UPSTREAM_HOST%";

/// The address that answered, and where none did, the one that was tried. Of a name with several addresses
/// [`UPSTREAM_HOST`] is the first, also when that one is dead and another has answered.
const ADDRESS_THAT_ANSWERED: &str =
    r#"%COALESCE({"operators": ["UPSTREAM_REMOTE_ADDRESS", "UPSTREAM_HOST"]})%"#;

/// Where the metadata of a line comes from.
pub(super) enum Metadata<'m> {
    /// From the filter.
    Filter,
    /// From here: a connection that no filter of ours has seen, and the entries that it has.
    Known(&'m [(&'m str, String)]),
}

/// Renders the access log of a connection manager, a TCP proxy or a listener.
pub(super) fn access_log(metadata: &Metadata<'_>, options: &Options) -> Value {
    let istio = |format: &str| match options.version >= COALESCES {
        true => format.replace(UPSTREAM_HOST, ADDRESS_THAT_ANSWERED),
        false => format.to_owned(),
    };
    let format = match options.format {
        MetadataFormat::Text => {
            let egress = match metadata {
                Metadata::Filter => refusals::text(options),
                Metadata::Known(entries) => {
                    let words: Vec<String> = FIELDS
                        .iter()
                        .filter(|(entry, _)| !entry.is_rare())
                        .map(|(_, key)| format!("{key}={}", known(entries, key).unwrap_or("-")))
                        .collect();
                    words.join(" ")
                }
            };
            let format = format!("{} {egress}\n", istio(ISTIO_TEXT));
            json!({"text_format_source": {"inline_string": format}})
        }
        MetadataFormat::Json => {
            let mut fields: Map<String, Value> = ISTIO_JSON
                .iter()
                .map(|(key, value)| ((*key).to_owned(), json!(istio(value))))
                .collect();
            let egress = match metadata {
                Metadata::Filter => json!(refusals::object(options)),
                Metadata::Known(entries) => FIELDS
                    .iter()
                    .filter_map(|(_, key)| {
                        known(entries, key).map(|value| ((*key).to_owned(), json!(value)))
                    })
                    .collect(),
            };
            fields.insert("egress".to_owned(), egress);
            json!({"json_format": fields})
        }
    };
    match &options.access_log {
        AccessLog::Stdout => extension(
            "envoy.access_loggers.stdout",
            "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
            json!({"log_format": format}),
        ),
        AccessLog::File(path) => extension(
            "envoy.access_loggers.file",
            "envoy.extensions.access_loggers.file.v3.FileAccessLog",
            json!({"path": path, "log_format": format}),
        ),
    }
}

/// Renders the access log of connections that one of these response flags is on.
pub(super) fn access_log_of(flags: &[&str], metadata: &Metadata<'_>, options: &Options) -> Value {
    let mut log = access_log(metadata, options);
    if let Some(fields) = log.as_object_mut() {
        let filter = json!({"response_flag_filter": {"flags": flags}});
        fields.insert("filter".to_owned(), filter);
    }
    log
}

fn known<'m>(entries: &'m [(&str, String)], key: &str) -> Option<&'m str> {
    entries
        .iter()
        .find(|(name, _)| *name == key)
        .map(|(_, value)| value.as_str())
}
