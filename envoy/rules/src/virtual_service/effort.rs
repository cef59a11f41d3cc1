//! How long a route waits and how often it tries, and what goes wrong on purpose: `timeout`, `retries` and `fault`.

use std::time::Duration;

use egress_policy::fields::{Field, Fields, listed};
use egress_policy::{ProblemKind, did_you_mean};

use super::answer::read_status;

/// How often a request is tried again.
///
/// Source: istio/api `networking/v1alpha3/virtual_service.proto`, `HTTPRetry`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Retries {
    /// How often; zero is never.
    pub attempts: u32,
    /// How long one try may take.
    pub per_try_timeout: Option<Duration>,
    /// After which answers and failures, in Envoy's words; none for Istio's default.
    pub retry_on: Vec<String>,
    /// After which statuses.
    pub statuses: Vec<u16>,
    /// How long to wait at least before another try.
    pub backoff: Option<Duration>,
    /// Whether addresses that were tried are left out, where it is said.
    pub other_hosts: Option<bool>,
}

/// After which answers and failures Istio has a request tried again, where a VirtualService says nothing of them.
///
/// Source: istio/istio `pilot/pkg/networking/core/route/retry/retry.go`, `defaultRetryOn`.
const DEFAULT_RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled";

impl Retries {
    /// Returns after which answers and failures a request is tried again, in Envoy's words.
    ///
    /// Source: istio/istio `pilot/pkg/networking/core/route/retry/retry.go`, `ConvertPolicy`.
    pub fn conditions(&self) -> String {
        const STATUSES: &str = "retriable-status-codes";
        let said = !self.retry_on.is_empty() || !self.statuses.is_empty();
        let mut conditions = match said {
            true => self.retry_on.join(","),
            false => DEFAULT_RETRY_ON.to_owned(),
        };
        if !self.statuses.is_empty() && !conditions.contains(STATUSES) {
            conditions.push_str(if conditions.is_empty() { "" } else { "," });
            conditions.push_str(STATUSES);
        }
        conditions
    }
}

/// What goes wrong on purpose.
///
/// Source: istio/api `networking/v1alpha3/virtual_service.proto`, `HTTPFaultInjection`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Fault {
    /// Requests that are answered here.
    pub abort: Option<(Abort, Percent)>,
    /// Requests that wait.
    pub delay: Option<(Duration, Percent)>,
}

/// How a request is answered on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abort {
    /// With a status of HTTP.
    Http(u16),
    /// With a status of gRPC.
    Grpc(u8),
}

/// A part of all requests, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(pub u32);

impl Percent {
    /// All of them.
    pub const ALL: Percent = Percent(1_000_000);
}

/// What `retryOn` may have beside statuses.
///
/// Source: istio/istio `pkg/config/validation/validation.go`, `supportedRetryOnPolicies`.
const RETRY_ON: [&str; 16] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "envoy-ratelimited",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// The statuses of gRPC, each at its number.
const GRPC: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Reads a duration that Istio takes: a millisecond at least, and whole ones.
///
/// Source: istio/istio `pkg/config/validation/agent/validation.go`, `ValidateDuration`.
pub(super) fn read_time(field: Field<'_>) -> Option<Duration> {
    let time = field.duration()?;
    if time < Duration::from_millis(1) {
        let kind = ProblemKind::Invalid("duration must be greater than 1ms".to_owned());
        field.error_with_hint(kind, "leave it out: without it there is none");
        return None;
    }
    if time.subsec_nanos() % 1_000_000 != 0 {
        let text = "only durations to ms precision are supported".to_owned();
        field.error_with_hint(
            ProblemKind::Invalid(text),
            "round it, for example to `1.5s`",
        );
        return None;
    }
    Some(time)
}

/// Source: istio/istio `pkg/config/validation/validation.go`, `validateHTTPRetry`, and
/// `pilot/pkg/networking/core/route/retry/retry.go`, `parseRetryOn`.
pub(super) fn read_retries(field: Field<'_>) -> Option<Retries> {
    let fields = field.fields()?;
    let attempts = fields.read("attempts", |field| {
        field.number(0, i32::MAX.unsigned_abs().into())
    });
    let bad = fields.has("attempts") && attempts.is_none();
    let attempts = attempts.and_then(|it| u32::try_from(it).ok()).unwrap_or(0);
    let (mut retry_on, mut statuses) = (Vec::new(), Vec::new());
    fields.read("retryOn", |field| {
        for part in field.text()?.split(',').filter(|part| !part.is_empty()) {
            match part.parse::<u16>() {
                Ok(status) if is_known(status) => statuses.push(status),
                _ if RETRY_ON.contains(&part) => retry_on.push(part.to_owned()),
                _ => {
                    let shown: String = part.chars().take(40).collect();
                    let text = format!("\"{shown}\" is not a valid retryOn policy");
                    let hint = match did_you_mean(part.trim(), &RETRY_ON) {
                        Some(meant) => format!("did you mean `{meant}`?"),
                        None => format!(
                            "a status, or one of {}, with `,` and no blank between",
                            listed(&RETRY_ON)
                        ),
                    };
                    field.error_with_hint(ProblemKind::Invalid(text), hint);
                }
            }
        }
        Some(())
    });
    let retries = Retries {
        attempts,
        per_try_timeout: fields.read("perTryTimeout", read_time),
        retry_on,
        statuses,
        backoff: fields.read("backoff", read_time),
        other_hosts: fields.read("retryIgnorePreviousHosts", |field| field.bool()),
    };
    // Here all addresses of a service are of one priority, so there is no remote one.
    fields.read("retryRemoteLocalities", |field| field.bool());
    let says = ["perTryTimeout", "retryOn", "retryRemoteLocalities"];
    if attempts == 0 && !bad && says.iter().any(|name| fields.given(name)) {
        let text = "http retry policy configured when attempts are set to 0 (disabled)".to_owned();
        fields.error(ProblemKind::Conflict(text), Some("set `attempts`"));
    }
    Some(retries)
}

/// Whether a status is one that HTTP has a word for.
///
/// Source: golang/go `src/net/http/status.go`, `StatusText`.
fn is_known(status: u16) -> bool {
    matches!(status, 100..=103 | 200..=208 | 226 | 300..=305 | 307 | 308 | 400..=418 | 421..=426 | 428 | 429 | 431)
        || matches!(status, 451 | 500..=508 | 510 | 511)
}

/// Source: istio/istio `pkg/config/validation/validation.go`, `validateHTTPFaultInjection`.
pub(super) fn read_fault(field: Field<'_>) -> Option<Fault> {
    let fields = field.fields()?;
    if !fields.has("abort") && !fields.has("delay") {
        let text = "HTTP fault injection must have an abort and/or a delay".to_owned();
        fields.error(ProblemKind::Invalid(text), Some("give one of them"));
    }
    Some(Fault {
        abort: fields.read("abort", read_abort),
        delay: fields.read("delay", read_delay),
    })
}

fn read_abort(field: Field<'_>) -> Option<(Abort, Percent)> {
    let fields = field.fields()?;
    let percent = share_of_all(&fields, None);
    fields.read("http2Error", |field| {
        let text = "HTTP/2 abort fault injection not supported yet".to_owned();
        field.error_with_hint(ProblemKind::Invalid(text), "give `httpStatus`");
        Some(())
    });
    let kinds = ["httpStatus", "grpcStatus", "http2Error"];
    match kinds.iter().filter(|name| fields.has(name)).count() {
        0 => fields.error(
            ProblemKind::Invalid("abort configured, but error type not set".to_owned()),
            Some("give `httpStatus` or `grpcStatus`"),
        ),
        1 => {}
        _ => {
            let text = "only one of `httpStatus`, `grpcStatus` and `http2Error` may be given";
            fields.error(
                ProblemKind::Conflict(text.to_owned()),
                Some("keep one of them"),
            );
        }
    }
    let http = fields.read("httpStatus", read_status).map(Abort::Http);
    let grpc = fields.read("grpcStatus", |field| {
        let read = |word: &str| GRPC.iter().position(|known| *known == word);
        let number = field.word("gRPC status", &GRPC, read)?;
        u8::try_from(number).ok().map(Abort::Grpc)
    });
    Some((http.or(grpc)?, percent))
}

fn read_delay(field: Field<'_>) -> Option<(Duration, Percent)> {
    let fields = field.fields()?;
    let whole = read_whole_percent(&fields);
    let percent = share_of_all(&fields, whole);
    fields.read("exponentialDelay", |field| {
        let text = "exponentialDelay not supported yet".to_owned();
        field.error_with_hint(ProblemKind::Invalid(text), "give `fixedDelay`");
        Some(())
    });
    let time = match fields.has("exponentialDelay") {
        true => None,
        false => fields.require("fixedDelay", read_time),
    };
    fields.ignore(&["fixedDelay"]);
    Some((time?, percent))
}

/// Reads `percentage`, without which Istio has Envoy do nothing.
///
/// Source: istio/istio `pilot/pkg/networking/core/route/route.go`, `TranslateFault`.
fn share_of_all(fields: &Fields<'_>, otherwise: Option<Percent>) -> Percent {
    let percent = fields.read("percentage", read_percent).or(otherwise);
    if percent.is_none() && !fields.has("percentage") {
        let text = "a fault without `percentage` happens to no request".to_owned();
        let hint = "as in Istio; for all requests write `percentage: {value: 100}`";
        fields.warning_at("percentage", ProblemKind::Invalid(text), hint);
    }
    percent.unwrap_or(Percent(0))
}

/// Reads `percentage`.
///
/// Source: istio/istio `pkg/config/validation/validation.go`, `validatePercentage`.
pub(super) fn read_percent(field: Field<'_>) -> Option<Percent> {
    let fields = field.fields()?;
    let value = fields.read("value", |field| {
        let value = field.decimal(Some(100))?.0;
        if value > 0.0 && value < 0.0001 {
            let text = format!("percentage {value} is neither 0.0, nor in range [0.0001, 100.0]");
            field.error_with_hint(ProblemKind::Invalid(text), "0.0001 is the least");
            return None;
        }
        Some(value)
    });
    let millionths = (value.unwrap_or(0.0) * 10_000.0).round();
    // Every number in its range is one of these.
    (0..=Percent::ALL.0)
        .contains(&(millionths as u32))
        .then_some(Percent(millionths as u32))
}

/// Reads `percent`, which `percentage` took the place of.
fn read_whole_percent(fields: &Fields<'_>) -> Option<Percent> {
    let percent = fields.read("percent", |field| field.number(0, 100))?;
    Some(Percent(u32::try_from(percent).ok()? * 10_000))
}
