//! An Envoy made of Rust, so that `abi` and `host` run where memory is watched: under Miri and AddressSanitizer.
//!
//! It is as hard on the module as Envoy may be. What it hands out is freed as soon as anything is set. It answers from
//! within the call of a hook, and destroys the filter there.
#![expect(
    unsafe_code,
    reason = "it stands for a program in another language; each block says why it is sound"
)]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr;

use crate::abi::*;
use crate::host::{EnvoyBuffer, ModuleBuffer, ModuleHeader};

/// Bytes at a place of their own, which go as soon as they are replaced.
type Bytes = Box<[u8]>;
type Headers = Vec<(Bytes, Bytes)>;

/// A request or connection, as this Envoy has it.
#[derive(Default)]
struct Stream {
    /// Request headers, and response headers.
    headers: [RefCell<Headers>; 2],
    body: RefCell<Vec<Bytes>>,
    state: RefCell<BTreeMap<Vec<u8>, Bytes>>,
    attributes: RefCell<BTreeMap<u32, Bytes>>,
    port: u64,
    routes_chosen: Cell<usize>,
    /// The status, the details and the body of an answer.
    answer: RefCell<Option<(u32, String, String)>>,
    closed: Cell<bool>,
    counted: RefCell<Vec<usize>>,
    /// What the module made for it; null once it is destroyed.
    filter: Cell<*const c_void>,
}

fn bytes(text: &str) -> Bytes {
    text.as_bytes().into()
}

impl Stream {
    fn of(pointer: *mut c_void) -> &'static Stream {
        // SAFETY: tests keep a stream until after the last hook of it.
        unsafe { &*pointer.cast::<Stream>() }
    }

    fn pointer(&self) -> *mut c_void {
        ptr::from_ref(self).cast_mut().cast()
    }

    fn with_headers(request: &[(&str, &str)]) -> Self {
        let stream = Stream::default();
        let headers = request
            .iter()
            .map(|(name, value)| (bytes(name), bytes(value)));
        *stream.headers[0].borrow_mut() = headers.collect();
        stream
    }

    fn header(&self, which: usize, name: &str) -> Option<String> {
        let headers = self.headers[which].borrow();
        let found = headers.iter().find(|(it, _)| **it == *name.as_bytes());
        found.map(|(_, value)| String::from_utf8(value.to_vec()).unwrap())
    }

    fn destroy(&self) {
        let filter = self.filter.replace(ptr::null());
        if !filter.is_null() {
            // SAFETY: it is what the module returned, and comes back once.
            unsafe { envoy_dynamic_module_on_http_filter_destroy(filter) };
        }
    }
}

fn given(buffer: ModuleBuffer) -> Vec<u8> {
    if buffer.ptr.is_null() {
        return Vec::new();
    }
    // SAFETY: the module keeps it during the call.
    unsafe { std::slice::from_raw_parts(buffer.ptr, buffer.len) }.to_vec()
}

fn lent(bytes: &[u8]) -> EnvoyBuffer {
    EnvoyBuffer {
        ptr: bytes.as_ptr(),
        len: bytes.len(),
    }
}

/// Writes what is lent, if there is anything.
fn lend(found: Option<&Bytes>, out: *mut EnvoyBuffer) -> bool {
    let Some(found) = found else { return false };
    // SAFETY: the module has room for it.
    unsafe { out.write(lent(found)) };
    true
}

/// Copies all headers to other places, so that whatever was lent of them is gone.
fn moved(headers: &mut Headers) {
    *headers = headers.to_vec();
}

/// The index of request headers or response headers.
fn which(headers: u32) -> usize {
    usize::from(headers == 2)
}

/// A header as the module asks for all of them.
#[repr(C)]
struct Lent {
    name: EnvoyBuffer,
    value: EnvoyBuffer,
}

macro_rules! callbacks {
    ($(fn $name:ident($($argument:ident: $kind:ty),*) $(-> $result:ty)? $body:block)*) => {$(
        #[unsafe(no_mangle)]
        extern "C" fn $name($($argument: $kind),*) $(-> $result)? $body
    )*};
}

callbacks! {
    fn envoy_dynamic_module_callback_log(_level: u32, message: ModuleBuffer) {
        given(message);
    }
    fn envoy_dynamic_module_callback_http_get_header(
        stream: *mut c_void, headers: u32, name: ModuleBuffer, value: *mut EnvoyBuffer, index: usize, count: *mut usize
    ) -> bool {
        let headers = Stream::of(stream).headers[which(headers)].borrow();
        let name = given(name);
        let values: Vec<&Bytes> = headers.iter().filter(|(it, _)| **it == *name).map(|(_, value)| value).collect();
        if !count.is_null() {
            // SAFETY: the module has room for it.
            unsafe { count.write(values.len()) };
        }
        lend(values.get(index).copied(), value)
    }
    fn envoy_dynamic_module_callback_http_set_header(
        stream: *mut c_void, headers: u32, name: ModuleBuffer, value: ModuleBuffer
    ) -> bool {
        let mut headers = Stream::of(stream).headers[which(headers)].borrow_mut();
        let name = given(name);
        headers.retain(|(it, _)| **it != *name);
        if !value.ptr.is_null() {
            headers.push((name.into(), given(value).into()));
        }
        moved(&mut headers);
        true
    }
    fn envoy_dynamic_module_callback_http_add_header(
        stream: *mut c_void, headers: u32, name: ModuleBuffer, value: ModuleBuffer
    ) -> bool {
        let mut headers = Stream::of(stream).headers[which(headers)].borrow_mut();
        headers.push((given(name).into(), given(value).into()));
        moved(&mut headers);
        true
    }
    fn envoy_dynamic_module_callback_http_get_headers_size(stream: *mut c_void, headers: u32) -> usize {
        Stream::of(stream).headers[which(headers)].borrow().len()
    }
    fn envoy_dynamic_module_callback_http_get_headers(stream: *mut c_void, headers: u32, out: *mut c_void) -> bool {
        let headers = Stream::of(stream).headers[which(headers)].borrow();
        for (at, (name, value)) in headers.iter().enumerate() {
            // SAFETY: the module has room for as many as it was told.
            unsafe { out.cast::<Lent>().add(at).write(Lent { name: lent(name), value: lent(value) }) };
        }
        true
    }
    fn envoy_dynamic_module_callback_http_send_response(
        pointer: *mut c_void, status: u32, headers: *const ModuleHeader, count: usize, body: ModuleBuffer, details: ModuleBuffer
    ) {
        let stream = Stream::of(pointer);
        let text = |buffer| String::from_utf8(given(buffer)).unwrap();
        *stream.answer.borrow_mut() = Some((status, text(details), text(body)));
        for at in 0..count {
            // SAFETY: the module keeps as many during the call.
            let header = unsafe { &*headers.add(at) };
            let header = (given(header.name).into(), given(header.value).into());
            stream.headers[1].borrow_mut().push(header);
        }
        // The answer passes through the filter, and then there is no more use for it.
        let filter = stream.filter.get();
        // SAFETY: the module has not got it back yet.
        unsafe { envoy_dynamic_module_on_http_filter_response_headers(pointer, filter, true) };
        stream.destroy();
    }
    fn envoy_dynamic_module_callback_http_filter_reset_stream(stream: *mut c_void, _reason: u32, _details: ModuleBuffer) {
        let stream = Stream::of(stream);
        stream.closed.set(true);
        stream.destroy();
    }
    fn envoy_dynamic_module_callback_http_clear_route_cache(stream: *mut c_void) {
        let chosen = &Stream::of(stream).routes_chosen;
        chosen.set(chosen.get() + 1);
    }
    fn envoy_dynamic_module_callback_http_get_body_chunks_size(stream: *mut c_void, body: u32) -> usize {
        if body == 0 { Stream::of(stream).body.borrow().len() } else { 0 }
    }
    fn envoy_dynamic_module_callback_http_get_body_chunks(stream: *mut c_void, _body: u32, out: *mut EnvoyBuffer) -> bool {
        for (at, chunk) in Stream::of(stream).body.borrow().iter().enumerate() {
            // SAFETY: the module has room for as many as it was told.
            unsafe { out.add(at).write(lent(chunk)) };
        }
        true
    }
    fn envoy_dynamic_module_callback_http_set_filter_state_bytes(stream: *mut c_void, key: ModuleBuffer, value: ModuleBuffer) -> bool {
        Stream::of(stream).state.borrow_mut().insert(given(key), given(value).into());
        true
    }
    fn envoy_dynamic_module_callback_http_set_filter_state_typed(stream: *mut c_void, key: ModuleBuffer, value: ModuleBuffer) -> bool {
        envoy_dynamic_module_callback_http_set_filter_state_bytes(stream, key, value)
    }
    fn envoy_dynamic_module_callback_http_get_filter_state_bytes(stream: *mut c_void, key: ModuleBuffer, value: *mut EnvoyBuffer) -> bool {
        lend(Stream::of(stream).state.borrow().get(&given(key)), value)
    }
    fn envoy_dynamic_module_callback_http_set_dynamic_metadata_string(
        stream: *mut c_void, _namespace: ModuleBuffer, key: ModuleBuffer, value: ModuleBuffer
    ) {
        envoy_dynamic_module_callback_http_set_filter_state_bytes(stream, key, value);
    }
    fn envoy_dynamic_module_callback_http_filter_get_attribute_string(stream: *mut c_void, id: u32, value: *mut EnvoyBuffer) -> bool {
        lend(Stream::of(stream).attributes.borrow().get(&id), value)
    }
    fn envoy_dynamic_module_callback_http_filter_get_attribute_int(stream: *mut c_void, _id: u32, value: *mut u64) -> bool {
        // SAFETY: the module has room for it.
        unsafe { value.write(Stream::of(stream).port) };
        true
    }
    fn envoy_dynamic_module_callback_http_filter_config_define_counter(
        _config: *mut c_void, name: ModuleBuffer, _labels: *const ModuleBuffer, _count: usize, id: *mut usize
    ) -> u32 {
        // SAFETY: the module has room for it.
        unsafe { id.write(given(name).len()) };
        0
    }
    fn envoy_dynamic_module_callback_http_filter_increment_counter(
        stream: *mut c_void, id: usize, _labels: *const ModuleBuffer, _count: usize, _by: u64
    ) -> u32 {
        Stream::of(stream).counted.borrow_mut().push(id);
        0
    }
    fn envoy_dynamic_module_callback_network_get_filter_state_bytes(stream: *mut c_void, key: ModuleBuffer, value: *mut EnvoyBuffer) -> bool {
        envoy_dynamic_module_callback_http_get_filter_state_bytes(stream, key, value)
    }
    fn envoy_dynamic_module_callback_network_set_filter_state_bytes(stream: *mut c_void, key: ModuleBuffer, value: ModuleBuffer) -> bool {
        envoy_dynamic_module_callback_http_set_filter_state_bytes(stream, key, value)
    }
    fn envoy_dynamic_module_callback_network_set_filter_state_typed(stream: *mut c_void, key: ModuleBuffer, value: ModuleBuffer) -> bool {
        envoy_dynamic_module_callback_http_set_filter_state_bytes(stream, key, value)
    }
    fn envoy_dynamic_module_callback_network_set_dynamic_metadata_string(
        stream: *mut c_void, _namespace: ModuleBuffer, key: ModuleBuffer, value: ModuleBuffer
    ) {
        envoy_dynamic_module_callback_http_set_filter_state_bytes(stream, key, value);
    }
    fn envoy_dynamic_module_callback_network_filter_get_local_address(stream: *mut c_void, address: *mut EnvoyBuffer, port: *mut u32) -> bool {
        // SAFETY: the module has room for it.
        unsafe { port.write(u32::try_from(Stream::of(stream).port).unwrap()) };
        lend(Stream::of(stream).attributes.borrow().get(&0), address)
    }
    fn envoy_dynamic_module_callback_network_filter_get_requested_server_name(stream: *mut c_void, name: *mut EnvoyBuffer) -> bool {
        lend(Stream::of(stream).attributes.borrow().get(&1), name)
    }
    fn envoy_dynamic_module_callback_network_filter_close(pointer: *mut c_void, _how: u32) {
        let stream = Stream::of(pointer);
        stream.closed.set(true);
        // Whoever closes is told of it within the call.
        let filter = stream.filter.get();
        // SAFETY: the module has not got it back yet.
        unsafe { envoy_dynamic_module_on_network_filter_event(pointer, filter, 1) };
    }
    fn envoy_dynamic_module_callback_network_filter_config_define_counter(_config: *mut c_void, name: ModuleBuffer, id: *mut usize) -> u32 {
        // SAFETY: the module has room for it.
        unsafe { id.write(given(name).len()) };
        0
    }
    fn envoy_dynamic_module_callback_network_filter_increment_counter(stream: *mut c_void, id: usize, _by: u64) -> u32 {
        Stream::of(stream).counted.borrow_mut().push(id);
        0
    }
}

mod tests {
    use super::*;

    const STOP: u32 = 1;

    fn rules(more: &str, protocol: &str) -> String {
        format!(
            r#"{{{more} "resources": [
                {{"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {{"name": "a"}},
                  "spec": {{"hosts": ["a.example.com"], "resolution": "DNS",
                            "ports": [{{"number": 80, "name": "p", "protocol": "{protocol}", "targetPort": 443}}]}}}},
                {{"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": {{"name": "a"}},
                  "spec": {{"host": "a.example.com", "trafficPolicy": {{"tls": {{"mode": "SIMPLE"}}}}}}}}
            ]}}"#
        )
    }

    fn http(text: &str) -> *const c_void {
        let none = lent(b"");
        // SAFETY: both texts live through the call.
        unsafe {
            envoy_dynamic_module_on_http_filter_config_new(
                ptr::null_mut(),
                none,
                lent(text.as_bytes()),
            )
        }
    }

    fn of_requests() -> *const c_void {
        http(&rules(
            r#""listener": {"port": 80}, "controlHeaders": "STRIPPED","#,
            "HTTP",
        ))
    }

    /// Asks for a host, by a configuration that goes away meanwhile.
    fn asked(config: *const c_void, stream: &Stream) -> u32 {
        // SAFETY: the configuration is what the module returned, and is destroyed once, after the filter was made.
        unsafe {
            stream.filter.set(envoy_dynamic_module_on_http_filter_new(
                config,
                stream.pointer(),
            ));
            envoy_dynamic_module_on_http_filter_config_destroy(config);
            envoy_dynamic_module_on_http_filter_request_headers(
                stream.pointer(),
                stream.filter.get(),
                true,
            )
        }
    }

    fn answered(stream: &Stream, response: &[(&str, &str)]) -> u32 {
        let headers = response
            .iter()
            .map(|(name, value)| (bytes(name), bytes(value)));
        *stream.headers[1].borrow_mut() = headers.collect();
        // SAFETY: the filter was not destroyed yet.
        unsafe {
            envoy_dynamic_module_on_http_filter_response_headers(
                stream.pointer(),
                stream.filter.get(),
                true,
            )
        }
    }

    #[test]
    fn a_request_outlives_its_configuration() {
        let stream = Stream::with_headers(&[(":authority", "a.example.com")]);
        assert_eq!(asked(of_requests(), &stream), 0);
        assert_eq!(
            stream.header(0, "x-egress-originate").as_deref(),
            Some("shared|SIMPLE|system|auto")
        );
        assert_eq!(
            stream.header(0, ":authority").as_deref(),
            Some("a.example.com")
        );
        assert_eq!(stream.routes_chosen.get(), 1);
        assert_eq!(
            answered(
                &stream,
                &[
                    (":status", "200"),
                    ("a", "b"),
                    ("c", "d"),
                    ("e", "f"),
                    ("g", "h")
                ]
            ),
            0
        );
        assert!(stream.answer.borrow().is_none());
        stream.destroy();
    }

    #[test]
    fn a_filter_that_is_destroyed_by_its_own_answer_is_not_used_after() {
        let stream = Stream::with_headers(&[(":authority", "other.example.com")]);
        assert_eq!(asked(of_requests(), &stream), STOP);
        let answer = stream.answer.borrow();
        let (status, details, body) = answer.as_ref().unwrap();
        assert_eq!((*status, details.as_str()), (502, "egress_unknown_host"));
        assert!(body.starts_with("egress_unknown_host: "), "{body}");
        assert!(stream.filter.get().is_null());
    }

    #[test]
    fn so_it_is_where_another_answer_takes_the_place_of_envoys() {
        let stream = Stream::with_headers(&[(":authority", "a.example.com")]);
        asked(of_requests(), &stream);
        let details = "upstream_reset_before_response_started{connection_timeout}";
        stream.attributes.borrow_mut().insert(16, bytes(details));
        assert_eq!(
            answered(
                &stream,
                &[(":status", "503"), ("content-type", "text/plain")]
            ),
            STOP
        );
        assert_eq!(stream.answer.borrow().as_ref().unwrap().1, details);
        assert_eq!(stream.counted.borrow().len(), 1);
        assert!(stream.filter.get().is_null());
    }

    #[test]
    fn headers_are_taken_away_however_many_there_are() {
        for count in [0, 3, 33, 200] {
            let stream = Stream::with_headers(&[(":authority", "a.example.com")]);
            asked(of_requests(), &stream);
            let mut headers = vec![
                ("x-egress-a", "1"),
                ("x-envoy-b", "2"),
                ("x-envoy-upstream-service-time", "3"),
            ];
            headers.extend([("other", "4")].repeat(count));
            headers.extend([("x-envoy-b", "5"), ("", "6")]);
            answered(&stream, &headers);
            let left = stream.headers[1].borrow().len();
            assert_eq!(left, count + 2, "{count}");
            stream.destroy();
        }
    }

    #[test]
    fn what_is_no_configuration_makes_none() {
        for text in [
            "",
            "{",
            "\u{0}",
            "{\"resources\": [1]}",
            &rules(r#""filter": "NETWORK","#, "TCP"),
        ] {
            assert!(http(text).is_null(), "{text}");
        }
    }

    #[test]
    fn a_connection_that_is_closed_within_its_hook_is_told_so_there() {
        let text = rules(r#""listener": {"port": 80}, "filter": "NETWORK","#, "TCP");
        let other = rules(r#""listener": {"port": 81}, "filter": "NETWORK","#, "TCP");
        for (text, closes) in [(text, false), (other, true)] {
            let stream = Stream {
                port: 80,
                ..Stream::default()
            };
            stream.attributes.borrow_mut().insert(0, bytes("127.0.0.1"));
            // SAFETY: as in `http` and `asked`; the filter is given back once.
            let status = unsafe {
                let config = envoy_dynamic_module_on_network_filter_config_new(
                    ptr::null_mut(),
                    lent(b""),
                    lent(text.as_bytes()),
                );
                assert!(!config.is_null());
                let filter = envoy_dynamic_module_on_network_filter_new(config, stream.pointer());
                stream.filter.set(filter);
                envoy_dynamic_module_on_network_filter_config_destroy(config);
                let status =
                    envoy_dynamic_module_on_network_filter_new_connection(stream.pointer(), filter);
                envoy_dynamic_module_on_network_filter_event(stream.pointer(), filter, 0);
                envoy_dynamic_module_on_network_filter_destroy(filter);
                status
            };
            assert_eq!(
                (status == STOP, stream.closed.get()),
                (closes, closes),
                "{text}"
            );
        }
    }
}
