//! The only file that calls the host. Nothing here panics, and every call says whether it worked.
//!
//! The functions are those of the proxy-wasm ABI 0.2.1 that the SDK declares too. Ours differ if the status is
//! unexpected. The SDK panics, which costs a worker its VM and every stream in it. We return [`HostError`], so that the
//! caller can refuse the one request. They also pass borrowed bytes where the SDK copies.
//!
//! Source: proxy-wasm/spec `abi-versions/v0.2.1`, and proxy-wasm 0.2.5 `src/hostcalls.rs`.
#![expect(
    unsafe_code,
    reason = "the ABI is made of raw pointers; each block says why it is sound"
)]

use std::ptr::null_mut;

use egress_filter::{HostError, contract};

const OK: u32 = 0;
const NOT_FOUND: u32 = 1;
const REQUEST_HEADERS: u32 = 0;
const RESPONSE_HEADERS: u32 = 2;
const COUNTER: u32 = 0;

// Since Rust 1.96 the linker takes no symbol for granted: where it is imported from must be said.
#[link(wasm_import_module = "env")]
unsafe extern "C" {
    fn proxy_get_header_map_value(
        map: u32,
        key: *const u8,
        key_len: usize,
        value: *mut *mut u8,
        value_len: *mut usize,
    ) -> u32;
    fn proxy_replace_header_map_value(
        map: u32,
        key: *const u8,
        key_len: usize,
        value: *const u8,
        value_len: usize,
    ) -> u32;
    fn proxy_add_header_map_value(
        map: u32,
        key: *const u8,
        key_len: usize,
        value: *const u8,
        value_len: usize,
    ) -> u32;
    fn proxy_get_header_map_pairs(map: u32, pairs: *mut *mut u8, pairs_len: *mut usize) -> u32;
    fn proxy_remove_header_map_value(map: u32, key: *const u8, key_len: usize) -> u32;
    fn proxy_get_property(
        path: *const u8,
        path_len: usize,
        value: *mut *mut u8,
        value_len: *mut usize,
    ) -> u32;
    fn proxy_set_property(
        path: *const u8,
        path_len: usize,
        value: *const u8,
        value_len: usize,
    ) -> u32;
    fn proxy_call_foreign_function(
        name: *const u8,
        name_len: usize,
        argument: *const u8,
        argument_len: usize,
        result: *mut *mut u8,
        result_len: *mut usize,
    ) -> u32;
    fn proxy_send_local_response(
        status: u32,
        details: *const u8,
        details_len: usize,
        body: *const u8,
        body_len: usize,
        headers: *const u8,
        headers_len: usize,
        grpc_status: i32,
    ) -> u32;
    fn proxy_get_buffer_bytes(
        buffer: u32,
        start: usize,
        max: usize,
        value: *mut *mut u8,
        value_len: *mut usize,
    ) -> u32;
    fn proxy_close_stream(stream: u32) -> u32;
    fn proxy_set_effective_context(context: u32) -> u32;
    fn proxy_define_metric(kind: u32, name: *const u8, name_len: usize, id: *mut u32) -> u32;
    fn proxy_increment_metric(id: u32, by: i64) -> u32;
    fn proxy_get_current_time_nanoseconds(time: *mut u64) -> u32;
}

/// Takes over bytes that the host put into memory it asked our allocator for.
fn take(status: u32, value: *mut u8, len: usize) -> Result<Option<Vec<u8>>, HostError> {
    match status {
        // Of what is empty there is nothing to allocate.
        OK if value.is_null() => Ok(Some(Vec::new())),
        // SAFETY: the host got the block from our `malloc`, which the SDK defines as a `Vec` of exactly `len` bytes,
        // and wrote all of it. It gives the block away with the call.
        OK => Ok(Some(unsafe { Vec::from_raw_parts(value, len, len) })),
        NOT_FOUND => Ok(None),
        _ => Err(HostError),
    }
}

fn done(status: u32) -> Result<(), HostError> {
    if status == OK { Ok(()) } else { Err(HostError) }
}

/// Reads a request header; `None` when it is not there.
pub(crate) fn request_header(name: &str) -> Result<Option<Vec<u8>>, HostError> {
    header(REQUEST_HEADERS, name)
}

/// Reads a response header; `None` when it is not there.
pub(crate) fn response_header(name: &str) -> Result<Option<Vec<u8>>, HostError> {
    header(RESPONSE_HEADERS, name)
}

fn header(map: u32, name: &str) -> Result<Option<Vec<u8>>, HostError> {
    let (mut value, mut len) = (null_mut(), 0);
    // SAFETY: the name lives through the call, and the host writes the two out-parameters only.
    let status =
        unsafe { proxy_get_header_map_value(map, name.as_ptr(), name.len(), &mut value, &mut len) };
    take(status, value, len)
}

/// Sets a request header in place of all that were there.
pub(crate) fn set_request_header(name: &str, value: &str) -> Result<(), HostError> {
    set_header(REQUEST_HEADERS, name, value.as_bytes())
}

/// Sets a response header in place of all that were there.
pub(crate) fn set_response_header(name: &str, value: &[u8]) -> Result<(), HostError> {
    set_header(RESPONSE_HEADERS, name, value)
}

/// Adds a line of a response header behind those that are there.
pub(crate) fn add_response_header(name: &str, value: &[u8]) -> Result<(), HostError> {
    // SAFETY: the host reads both texts during the call only.
    done(unsafe {
        proxy_add_header_map_value(
            RESPONSE_HEADERS,
            name.as_ptr(),
            name.len(),
            value.as_ptr(),
            value.len(),
        )
    })
}

/// Removes a response header; it need not be there.
pub(crate) fn remove_response_header(name: &str) -> Result<(), HostError> {
    // SAFETY: the host reads the name during the call only.
    done(unsafe { proxy_remove_header_map_value(RESPONSE_HEADERS, name.as_ptr(), name.len()) })
}

/// Shows all lines of the response's headers, in the order in which they came.
pub(crate) fn response_headers(mut see: impl FnMut(&[u8], &[u8])) -> Result<(), HostError> {
    let (mut pairs, mut len) = (null_mut(), 0);
    // SAFETY: the host writes the two out-parameters only.
    let status = unsafe { proxy_get_header_map_pairs(RESPONSE_HEADERS, &mut pairs, &mut len) };
    let pairs = take(status, pairs, len)?.unwrap_or_default();
    // On the wire: the number of pairs, the lengths of each, then each text with a zero behind it.
    let number = |at: usize| {
        let bytes = pairs.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes) as usize)
    };
    let count = number(0).unwrap_or(0);
    let mut at = 4 + 8 * count;
    for pair in 0..count {
        let sizes = 4 + 8 * pair;
        let sizes = number(sizes).zip(number(sizes + 4)).ok_or(HostError)?;
        let value = at + sizes.0 + 1;
        let name = pairs.get(at..at + sizes.0).ok_or(HostError)?;
        at = value + sizes.1 + 1;
        see(name, pairs.get(value..at - 1).ok_or(HostError)?);
    }
    Ok(())
}

fn set_header(map: u32, name: &str, value: &[u8]) -> Result<(), HostError> {
    // SAFETY: the host reads both texts during the call only.
    done(unsafe {
        proxy_replace_header_map_value(map, name.as_ptr(), name.len(), value.as_ptr(), value.len())
    })
}

/// Removes a request header; it need not be there.
pub(crate) fn remove_request_header(name: &str) -> Result<(), HostError> {
    // SAFETY: the host reads the name during the call only.
    done(unsafe { proxy_remove_header_map_value(REQUEST_HEADERS, name.as_ptr(), name.len()) })
}

/// Reads a property of one or more parts; `None` when the host does not know it.
#[inline(never)]
pub(crate) fn property(path: &[&str]) -> Result<Option<Vec<u8>>, HostError> {
    let path = path.join("\0");
    let (mut value, mut len) = (null_mut(), 0);
    // SAFETY: as in `header`.
    let status = unsafe { proxy_get_property(path.as_ptr(), path.len(), &mut value, &mut len) };
    take(status, value, len)
}

/// Reads a property that is a whole number; `None` when it is not there, or is something else.
pub(crate) fn number(path: &[&str]) -> Result<Option<u64>, HostError> {
    let bytes = property(path)?.unwrap_or_default();
    // Envoy hands integers over as eight bytes, least first.
    Ok(<[u8; 8]>::try_from(bytes).ok().map(u64::from_le_bytes))
}

/// Returns the time in nanoseconds since 1970.
pub(crate) fn time_ns() -> Result<u64, HostError> {
    let mut time = 0;
    // SAFETY: the host writes the number only, and during the call only.
    done(unsafe { proxy_get_current_time_nanoseconds(&mut time) })?;
    Ok(time)
}

/// Sets a property of one part.
pub(crate) fn set_property(name: &str, value: &[u8]) -> Result<(), HostError> {
    // SAFETY: the host reads both during the call only.
    done(unsafe { proxy_set_property(name.as_ptr(), name.len(), value.as_ptr(), value.len()) })
}

/// Calls one of the host's own functions and drops what it returns.
pub(crate) fn call(name: &str, argument: &[u8]) -> Result<(), HostError> {
    let (mut value, mut len) = (null_mut(), 0);
    // SAFETY: as in `header`.
    let status = unsafe {
        proxy_call_foreign_function(
            name.as_ptr(),
            name.len(),
            argument.as_ptr(),
            argument.len(),
            &mut value,
            &mut len,
        )
    };
    take(status, value, len).map(drop)
}

/// Answers the request here. The request goes no further.
pub(crate) fn answer(status: u32, details: &str, body: &str) -> Result<(), HostError> {
    // A header map on the wire: the number of pairs, the lengths, then each text with a zero behind it.
    const HEADERS: &[u8] =
        b"\x01\x00\x00\x00\x0c\x00\x00\x00\x0a\x00\x00\x00content-type\0text/plain\0";
    // SAFETY: the host reads the three texts during the call only.
    done(unsafe {
        proxy_send_local_response(
            status,
            details.as_ptr(),
            details.len(),
            body.as_ptr(),
            body.len(),
            HEADERS.as_ptr(),
            HEADERS.len(),
            -1,
        )
    })
}

/// Reads the plugin configuration, all of it; empty when there is none.
pub(crate) fn plugin_configuration() -> Result<Vec<u8>, HostError> {
    const PLUGIN_CONFIGURATION: u32 = 7;
    buffer(PLUGIN_CONFIGURATION, usize::MAX)
}

/// Reads the first bytes of what is held of a request's body.
pub(crate) fn request_body(most: usize) -> Result<Vec<u8>, HostError> {
    const REQUEST_BODY: u32 = 0;
    buffer(REQUEST_BODY, most)
}

fn buffer(buffer: u32, most: usize) -> Result<Vec<u8>, HostError> {
    let (mut value, mut len) = (null_mut(), 0);
    // SAFETY: as in `header`.
    let status = unsafe { proxy_get_buffer_bytes(buffer, 0, most, &mut value, &mut len) };
    take(status, value, len).map(Option::unwrap_or_default)
}

/// Defines a counter, or finds the one of this name, and returns its number in this VM.
pub(crate) fn counter(name: &str) -> Result<u32, HostError> {
    let mut id = 0;
    // SAFETY: the host reads the name during the call only, and writes the number only.
    done(unsafe { proxy_define_metric(COUNTER, name.as_ptr(), name.len(), &mut id) })?;
    Ok(id)
}

/// Adds one to a counter.
pub(crate) fn increment(counter: u32) -> Result<(), HostError> {
    // SAFETY: nothing is passed but numbers.
    done(unsafe { proxy_increment_metric(counter, 1) })
}

/// Whether a connection within Envoy has a tunnel of the upstream proxy. It is known by the number of its context.
pub(crate) fn has_tunnel(context: usize) -> bool {
    // The context that has the hook.
    const OWN: u32 = 0;
    let ask = |context| {
        // SAFETY: nothing is passed but a number.
        done(unsafe { proxy_set_effective_context(context) })
    };
    let Ok(()) = u32::try_from(context).map_err(|_| HostError).and_then(ask) else {
        return false;
    };
    let address = property(&contract::UPSTREAM_LOCAL_ADDRESS);
    // There is always a context that has the hook.
    let _ = ask(OWN);
    matches!(address, Ok(Some(_)))
}

/// Closes the application's connection, where bytes are handled.
pub(crate) fn close_downstream() -> Result<(), HostError> {
    const DOWNSTREAM: u32 = 2;
    close(DOWNSTREAM)
}

/// Breaks off a request. By HTTP/1 the application's connection is closed with it.
pub(crate) fn close_request() -> Result<(), HostError> {
    const REQUEST: u32 = 0;
    close(REQUEST)
}

fn close(stream: u32) -> Result<(), HostError> {
    // SAFETY: nothing is passed but a number.
    done(unsafe { proxy_close_stream(stream) })
}
