//! What Envoy calls. Each hook catches panics: none crosses the border, and the stream that met one is refused.
//!
//! Envoy keeps what a hook returns as a pointer and hands it to the hooks that follow. A configuration is an `Arc`,
//! used by all workers; a request or connection is an `Rc`, used by the worker that has it. A hook holds a count of its
//! own while it runs, for Envoy may destroy a stream from within a call that one of its hooks made.
//!
//! Source: envoyproxy/envoy `source/extensions/dynamic_modules/abi/abi.h`. Envoy 1.38.2, 1.39.3 and 1.40.0 ask for the
//! same hooks of HTTP filters and network filters, and refuse a library that lacks one.
#![expect(
    unsafe_code,
    reason = "the interface is made of raw pointers; each block says why it is sound"
)]

use std::ffi::{c_char, c_void};
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::rc::Rc;
use std::sync::Arc;

use egress_filter::{FilterKind, Next};

use crate::config::Config;
use crate::host::{self, ConfigHost, EnvoyBuffer, HttpHost, Level, NetworkHost, log};
use crate::http::Request;
use crate::network::Connection;

/// `FilterHeadersStatus` and `FilterDataStatus` have these two in common; what is held of a body is kept.
const CONTINUE: u32 = 0;
const STOP: u32 = 1;

const REMOTE_CLOSE: u32 = 0;
const LOCAL_CLOSE: u32 = 1;

/// Returns what a hook returns, or what it returns after a panic.
fn caught<R>(hook: impl FnOnce() -> R, after_panic: impl FnOnce() -> R) -> R {
    // Whatever the panic left half done belongs to the one stream, which is refused.
    catch_unwind(AssertUnwindSafe(hook)).unwrap_or_else(|_| {
        // A second panic, from within the refusal, leaves nothing to be tried.
        catch_unwind(AssertUnwindSafe(|| {
            log(
                Level::Error,
                "egress: the filter panicked; what it was about is refused",
            );
            after_panic()
        }))
        .unwrap_or_else(|_| std::process::abort())
    })
}

fn status(next: Next) -> u32 {
    match next {
        Next::Continue => CONTINUE,
        Next::Wait | Next::Stop => STOP,
    }
}

/// Holds on to what Envoy has a pointer of, while a hook runs.
///
/// # Safety
/// The pointer is one of [`Rc::into_raw`] whose count Envoy has not given back.
unsafe fn held<T>(pointer: *const c_void) -> Rc<T> {
    let pointer = pointer.cast::<T>();
    // SAFETY: as the caller says; the count that is added is the one that the result gives back.
    unsafe {
        Rc::increment_strong_count(pointer);
        Rc::from_raw(pointer)
    }
}

/// As [`held`], for configurations.
///
/// # Safety
/// As [`held`], of [`Arc::into_raw`].
unsafe fn held_config(pointer: *const c_void) -> Arc<Config> {
    let pointer = pointer.cast::<Config>();
    // SAFETY: as in `held`.
    unsafe {
        Arc::increment_strong_count(pointer);
        Arc::from_raw(pointer)
    }
}

/// Called when the library is loaded, on the main thread.
#[unsafe(no_mangle)]
pub extern "C" fn envoy_dynamic_module_on_program_init() -> *const c_char {
    host::abi_version().as_ptr()
}

/// Loads a configuration; null refuses it.
unsafe fn config_new(text: EnvoyBuffer, kind: FilterKind, host: ConfigHost<'_>) -> *const c_void {
    let load = || {
        // SAFETY: Envoy keeps the text until the hook returns.
        let text = unsafe { text.to_vec() };
        let config = Config::load(text, kind, host);
        config.map_or(ptr::null(), |config| Arc::into_raw(Arc::new(config)).cast())
    };
    caught(load, ptr::null)
}

/// # Safety
/// `config` is what [`config_new`] returned, and not null.
unsafe fn config_destroy(config: *const c_void) {
    caught(
        || {
            // SAFETY: this is the count that `config_new` gave Envoy; it comes back once.
            let config = unsafe { Arc::from_raw(config.cast::<Config>()) };
            config.retire();
        },
        || (),
    );
}

/// Makes a request or connection. After a panic there is none: Envoy then answers 500, or closes the connection.
///
/// # Safety
/// `config` is what [`config_new`] returned, not null, and not destroyed.
unsafe fn stream_new<T>(
    config: *const c_void,
    new: impl FnOnce(Arc<Config>) -> T,
) -> *const c_void {
    let make = || {
        // SAFETY: as the caller says.
        let config = unsafe { held_config(config) };
        Rc::into_raw(Rc::new(new(config))).cast()
    };
    caught(make, ptr::null)
}

/// # Safety
/// `stream` is what [`stream_new`] returned of this type, and comes back once.
unsafe fn stream_destroy<T>(stream: *const c_void) {
    let destroy = || {
        // SAFETY: as the caller says.
        drop(unsafe { Rc::from_raw(stream.cast::<T>()) });
    };
    caught(destroy, || ());
}

// --- HTTP filter ---

/// # Safety
/// Envoy calls it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_http_filter_config_new(
    envoy: *mut c_void,
    _name: EnvoyBuffer,
    config: EnvoyBuffer,
) -> *const c_void {
    let host = ConfigHost::Http(envoy, PhantomData);
    // SAFETY: the text is Envoy's, during this hook.
    unsafe { config_new(config, FilterKind::Http, host) }
}

/// # Safety
/// Envoy calls it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_http_filter_config_destroy(config: *const c_void) {
    // SAFETY: Envoy gives back what it was given.
    unsafe { config_destroy(config) }
}

/// # Safety
/// Envoy calls it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_http_filter_new(
    config: *const c_void,
    _envoy: *mut c_void,
) -> *const c_void {
    // SAFETY: the configuration is not destroyed before the last filter of it is made.
    unsafe { stream_new(config, Request::new) }
}

/// # Safety
/// Envoy calls it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_http_filter_destroy(filter: *const c_void) {
    // SAFETY: Envoy gives back the count that it got, once.
    unsafe { stream_destroy::<Request>(filter) }
}

/// # Safety
/// Envoy calls it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_http_filter_request_headers(
    envoy: *mut c_void,
    filter: *const c_void,
    _end_of_stream: bool,
) -> u32 {
    // SAFETY: Envoy has not given back its count, and its own pointer lives through the hook.
    let (request, host) = unsafe { (held::<Request>(filter), HttpHost::new(envoy)) };
    caught(
        || status(request.on_request_headers(host)),
        || {
            request.on_panic(host);
            STOP
        },
    )
}

/// # Safety
/// Envoy calls it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_http_filter_request_body(
    envoy: *mut c_void,
    filter: *const c_void,
    end_of_stream: bool,
) -> u32 {
    // SAFETY: as in `request_headers`.
    let (request, host) = unsafe { (held::<Request>(filter), HttpHost::new(envoy)) };
    caught(
        || status(request.on_request_body(host, end_of_stream)),
        || {
            request.on_late_panic(host);
            STOP
        },
    )
}

/// # Safety
/// Envoy calls it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_http_filter_response_headers(
    envoy: *mut c_void,
    filter: *const c_void,
    _end_of_stream: bool,
) -> u32 {
    // SAFETY: as in `request_headers`.
    let (request, host) = unsafe { (held::<Request>(filter), HttpHost::new(envoy)) };
    caught(
        || status(request.on_response_headers(host)),
        || {
            request.on_late_panic(host);
            STOP
        },
    )
}

/// A hook that has nothing to do, and lets pass what it is called for.
macro_rules! nothing {
    ($($name:ident($($argument:ty),*) $(-> $status:ty)?;)*) => {$(
        #[doc = "Does nothing."]
        #[unsafe(no_mangle)]
        pub extern "C" fn $name($(_: $argument),*) $(-> $status)? {
            $(<$status>::default())?
        }
    )*};
}

type Pointer = *mut c_void;
type Filter = *const c_void;

nothing! {
    envoy_dynamic_module_on_http_filter_request_trailers(Pointer, Filter) -> u32;
    envoy_dynamic_module_on_http_filter_response_body(Pointer, Filter, bool) -> u32;
    envoy_dynamic_module_on_http_filter_response_trailers(Pointer, Filter) -> u32;
    envoy_dynamic_module_on_http_filter_stream_complete(Pointer, Filter);
    envoy_dynamic_module_on_http_filter_http_callout_done(Pointer, Filter, u64, u32, Pointer, usize, Pointer, usize);
    envoy_dynamic_module_on_http_filter_http_stream_headers(Pointer, Filter, u64, Pointer, usize, bool);
    envoy_dynamic_module_on_http_filter_http_stream_data(Pointer, Filter, u64, Pointer, usize, bool);
    envoy_dynamic_module_on_http_filter_http_stream_trailers(Pointer, Filter, u64, Pointer, usize);
    envoy_dynamic_module_on_http_filter_http_stream_complete(Pointer, Filter, u64);
    envoy_dynamic_module_on_http_filter_http_stream_reset(Pointer, Filter, u64, u32);
    envoy_dynamic_module_on_http_filter_scheduled(Pointer, Filter, u64);
    envoy_dynamic_module_on_http_filter_downstream_above_write_buffer_high_watermark(Pointer, Filter);
    envoy_dynamic_module_on_http_filter_downstream_below_write_buffer_low_watermark(Pointer, Filter);
    envoy_dynamic_module_on_network_filter_read(Pointer, Filter, usize, bool) -> u32;
    envoy_dynamic_module_on_network_filter_write(Pointer, Filter, usize, bool) -> u32;
}

// --- network filter ---

/// # Safety
/// Envoy calls it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_network_filter_config_new(
    envoy: *mut c_void,
    _name: EnvoyBuffer,
    config: EnvoyBuffer,
) -> *const c_void {
    let host = ConfigHost::Network(envoy, PhantomData);
    // SAFETY: the text is Envoy's, during this hook.
    unsafe { config_new(config, FilterKind::Network, host) }
}

/// # Safety
/// Envoy calls it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_network_filter_config_destroy(
    config: *const c_void,
) {
    // SAFETY: Envoy gives back what it was given.
    unsafe { config_destroy(config) }
}

/// # Safety
/// Envoy calls it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_network_filter_new(
    config: *const c_void,
    _envoy: *mut c_void,
) -> *const c_void {
    // SAFETY: the configuration is not destroyed before the last filter of it is made.
    unsafe { stream_new(config, Connection::new) }
}

/// # Safety
/// Envoy calls it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_network_filter_destroy(filter: *const c_void) {
    // SAFETY: Envoy gives back the count that it got, once.
    unsafe { stream_destroy::<Connection>(filter) }
}

/// # Safety
/// Envoy calls it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_network_filter_new_connection(
    envoy: *mut c_void,
    filter: *const c_void,
) -> u32 {
    // SAFETY: Envoy has not given back its count, and its own pointer lives through the hook.
    let (connection, host) = unsafe { (held::<Connection>(filter), NetworkHost::new(envoy)) };
    caught(
        || status(connection.on_new_connection(host)),
        || {
            connection.on_panic(host);
            STOP
        },
    )
}

/// # Safety
/// Envoy calls it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn envoy_dynamic_module_on_network_filter_event(
    envoy: *mut c_void,
    filter: *const c_void,
    event: u32,
) {
    if event != REMOTE_CLOSE && event != LOCAL_CLOSE {
        return;
    }
    // SAFETY: as in `new_connection`.
    let (connection, host) = unsafe { (held::<Connection>(filter), NetworkHost::new(envoy)) };
    // It is closed already.
    caught(|| connection.on_close(host), || ());
}
