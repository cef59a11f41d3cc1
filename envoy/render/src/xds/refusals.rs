//! What Envoy refuses before our filter sees it: what is no valid HTTP, too large, too late or too much. Logs and answers
//! have a reason all the same.
//!
//! Our filter has noted nothing of such a request, which is how the log knows them. They are told apart by Envoy's own
//! detail. Envoy's expressions cannot put texts together, so each reason has one whole text.
//!
//! Source: envoyproxy/envoy `envoy/stream_info/stream_info.h`, `ResponseCodeDetailValues`, and
//! `source/common/http/http1/codec_impl.cc`, `Http1ResponseCodeDetailValues`.

use egress_filter::{FIELDS, MetadataFormat, contract};
use serde_json::{Map, Value, json};

use super::message::{extension, set};
use super::options::{FilterFile, Options, Version};

/// The version from which a word of a log can have a second choice.
pub(super) const COALESCES: Version = Version {
    major: 1,
    minor: 38,
};

/// A reason.
struct Refusal {
    reason: &'static str,
    /// Which requests have it. The first of [`REFUSALS`] that is so counts.
    when: &'static str,
    /// What the application is told.
    sentence: &'static str,
}

const REFUSALS: [Refusal; 7] = [
    Refusal {
        reason: "overload",
        when: "response.code_details == 'overload'",
        sentence: "the proxy has no memory left for more requests",
    },
    Refusal {
        reason: "headers_too_large",
        when: "response.code_details.endsWith('headers_too_large') || response.code_details.endsWith('too_many_headers') || response.code_details == 'http2.header_list_size_too_large'",
        sentence: "the headers are larger than 96 kB, or more than 1,000",
    },
    Refusal {
        reason: "client_timeout",
        when: "response.code_details == 'request_header_timeout'",
        sentence: "the headers did not come in time",
    },
    Refusal {
        reason: "client_gone",
        when: "response.code_details == 'downstream_remote_disconnect'",
        sentence: "the client has gone",
    },
    Refusal {
        reason: "bad_upgrade",
        when: "response.code_details == 'upgrade_failed'",
        sentence: "the proxy does not offer this upgrade",
    },
    Refusal {
        reason: "no_host",
        when: "response.code_details == 'missing_host_header'",
        sentence: "the request names no host",
    },
    Refusal {
        reason: "bad_request",
        // The first two are the codecs' own.
        when: "response.code_details.startsWith('http') || response.code_details.startsWith('codec_error') || response.code_details in ['missing_path_rejected', 'absolute_path_rejected', 'path_normalization_failed', 'low_version']",
        sentence: "the request is not valid HTTP, or the proxy cannot carry it",
    },
];

/// Where our filter notes something, for expressions: in what it stands, and under which key. What a native module sets
/// as filter state is a text and nothing else, so it notes an object in the dynamic metadata.
fn noted(options: &Options) -> (&'static str, &'static str) {
    match (&options.filter, options.format) {
        (FilterFile::Module(_), MetadataFormat::Json) => {
            ("metadata.filter_metadata", contract::METADATA_NAMESPACE)
        }
        _ => ("filter_state", contract::METADATA_STATE),
    }
}

/// Whether our filter has noted nothing.
fn unseen(options: &Options) -> String {
    let (place, key) = noted(options);
    format!("!('{key}' in {place})")
}

/// Writes an expression that is `text` of the reason; `otherwise` where none is known.
fn choice(text: impl Fn(&Refusal) -> String, otherwise: &str) -> String {
    let choices = REFUSALS.iter().rev();
    choices.fold(otherwise.to_owned(), |rest, refusal| {
        format!("({}) ? {} : {rest}", refusal.when, text(refusal))
    })
}

/// Returns the word of a log for what our filter noted, or the same words for what it has not seen.
pub(super) fn text(options: &Options) -> String {
    let noted = format!("{}:PLAIN", contract::METADATA_STATE);
    if options.version < COALESCES {
        return format!("%FILTER_STATE({noted})%");
    }
    let words = |reason: &str| {
        let fields = FIELDS.iter().filter(|(entry, _)| !entry.is_rare());
        let word = |(_, key): &(_, &str)| match *key {
            "action" => "action=reject".to_owned(),
            "reason" => format!("reason={reason}"),
            key => format!("{key}=-"),
        };
        format!("'{}'", fields.map(word).collect::<Vec<_>>().join(" "))
    };
    let unseen = choice(|refusal| words(refusal.reason), &words("-"));
    let operators = json!({"operators": [
        {"command": "FILTER_STATE", "param": noted},
        {"command": "CEL", "param": unseen},
    ]});
    format!("%COALESCE({operators})%")
}

/// Returns the same for a log in JSON.
pub(super) fn object(options: &Options) -> String {
    let (place, key) = noted(options);
    if options.version < COALESCES {
        return format!("%TYPED_CEL({place}['{key}'])%");
    }
    let object =
        |refusal: &Refusal| format!("{{'action': 'reject', 'reason': '{}'}}", refusal.reason);
    let known = choice(object, "{'action': 'reject'}");
    format!(
        "%TYPED_CEL({} ? ({known}) : {place}['{key}'])%",
        unseen(options)
    )
}

/// Adds to a connection manager what applications are told of such a refusal.
pub(super) fn answers(fields: &mut Map<String, Value>, options: &Options) {
    if options.version < COALESCES {
        return;
    }
    let filter = |expression: String| {
        let filter = extension(
            "envoy.access_loggers.extension_filters.cel",
            "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
            json!({"expression": expression}),
        );
        json!({"extension_filter": filter})
    };
    let told = |refusal: &Refusal| format!("'{}: {}'", refusal.reason, refusal.sentence);
    let body = format!("egress_%CEL({})%\n", choice(told, "''"));
    let mapper = |when: &str| {
        let mut mapper = Map::new();
        set(
            &mut mapper,
            "filter",
            filter(format!("{} && ({when})", unseen(options))),
        );
        let body = json!({"text_format_source": {"inline_string": body}});
        set(&mut mapper, "body_format_override", body);
        mapper
    };
    // Envoy says that a URL without a path is not found.
    let mut without_path =
        mapper("response.code_details in ['absolute_path_rejected', 'missing_path_rejected']");
    set(&mut without_path, "status_code", json!(400));
    let any = REFUSALS.map(|refusal| format!("({})", refusal.when));
    let others = mapper(&any.join(" || "));
    set(
        fields,
        "local_reply_config",
        json!({"mappers": [without_path, others]}),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_failures_has_each_reason() {
        let page = include_str!("../../../../filter/core/failures.md");
        let (_, page) = page.split_once("\n## Requests that Envoy refuses").unwrap();
        let (part, _) = page.split_once("\n## ").unwrap();
        let rows = part
            .lines()
            .filter_map(|row| row.strip_prefix("| ")?.split(' ').next());
        let mut rows: Vec<&str> = rows.filter(|reason| *reason != "reason").collect();
        let mut all = REFUSALS.map(|refusal| refusal.reason);
        rows.sort_unstable();
        all.sort_unstable();
        assert_eq!(rows, all);
    }
}
