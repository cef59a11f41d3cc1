//! What we call in Envoy. Nothing here panics, and every call says whether it worked.
//!
//! Each function is declared as Envoy has it, with the versions that it was tried on. What came after the oldest of
//! these versions is looked up when it is first used, for a library that names it would not load there.
//!
//! Source: envoyproxy/envoy `source/extensions/dynamic_modules/abi/abi.h`, and the symbols that Envoy 1.38.2, 1.39.3
//! and 1.40.0 export.
#![expect(
    unsafe_code,
    reason = "the interface is made of raw pointers; each block says why it is sound"
)]

use std::borrow::Cow;
use std::ffi::{CStr, c_char, c_void};
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};
use std::ptr;
use std::sync::OnceLock;

use egress_filter::HostError;

/// Bytes that Envoy owns. They are there until the hook ends or something is set, so they are copied at once.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct EnvoyBuffer {
    /// Where they begin.
    pub ptr: *const u8,
    /// How many they are.
    pub len: usize,
}

/// Bytes of ours, which Envoy copies.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ModuleBuffer {
    /// Where they begin.
    pub ptr: *const u8,
    /// How many they are.
    pub len: usize,
}

/// A header of ours, which Envoy copies.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ModuleHeader {
    /// Its name.
    pub name: ModuleBuffer,
    /// Its value.
    pub value: ModuleBuffer,
}

/// A header that Envoy owns, as long as an [`EnvoyBuffer`].
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct EnvoyHeader {
    name: EnvoyBuffer,
    value: EnvoyBuffer,
}

impl EnvoyHeader {
    const EMPTY: EnvoyHeader = EnvoyHeader {
        name: EnvoyBuffer::EMPTY,
        value: EnvoyBuffer::EMPTY,
    };
}

impl EnvoyBuffer {
    const EMPTY: EnvoyBuffer = EnvoyBuffer {
        ptr: ptr::null(),
        len: 0,
    };

    /// Copies the bytes.
    ///
    /// # Safety
    /// They must be there still.
    pub(crate) unsafe fn to_vec(self) -> Vec<u8> {
        // SAFETY: as the caller says.
        unsafe { self.bytes() }.to_vec()
    }

    /// Returns the bytes.
    ///
    /// # Safety
    /// They must be there as long as what is returned.
    unsafe fn bytes<'b>(self) -> &'b [u8] {
        if self.ptr.is_null() || self.len == 0 {
            return &[];
        }
        // SAFETY: there are `len` bytes behind the pointer, as the caller says.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }
}

impl ModuleBuffer {
    /// A value that is nowhere, which unlike one that is empty removes a header.
    const NOTHING: ModuleBuffer = ModuleBuffer {
        ptr: ptr::null(),
        len: 0,
    };
}

impl From<&[u8]> for ModuleBuffer {
    fn from(bytes: &[u8]) -> Self {
        ModuleBuffer {
            ptr: bytes.as_ptr(),
            len: bytes.len(),
        }
    }
}

impl From<&str> for ModuleBuffer {
    fn from(text: &str) -> Self {
        text.as_bytes().into()
    }
}

const REQUEST_HEADERS: u32 = 0;
const RESPONSE_HEADERS: u32 = 2;
const RECEIVED_BODY: u32 = 0;
const BUFFERED_BODY: u32 = 1;
const LOCAL_RESET: u32 = 0;
const CLOSE_WITHOUT_FLUSH: u32 = 1;
const METRIC_OK: u32 = 0;

/// A piece of information that Envoy has about a stream, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Attribute {
    /// `response.code_details`
    ResponseDetails = 16,
    /// `response.flags`
    ResponseFlags = 17,
    /// `destination.port`
    DestinationPort = 27,
    /// `connection.id`
    ConnectionId = 28,
    /// `upstream.address`
    UpstreamAddress = 41,
    /// `upstream.local_address`
    UpstreamLocalAddress = 51,
    /// `upstream.transport_failure_reason`
    TransportFailure = 52,
    /// `xds.route_name`
    RouteName = 61,
}

// 1.38.2, 1.39.3, 1.40.0.
unsafe extern "C" {
    fn envoy_dynamic_module_callback_log(level: u32, message: ModuleBuffer);

    fn envoy_dynamic_module_callback_http_get_header(
        filter: *mut c_void,
        headers: u32,
        name: ModuleBuffer,
        value: *mut EnvoyBuffer,
        index: usize,
        count: *mut usize,
    ) -> bool;
    fn envoy_dynamic_module_callback_http_set_header(
        filter: *mut c_void,
        headers: u32,
        name: ModuleBuffer,
        value: ModuleBuffer,
    ) -> bool;
    fn envoy_dynamic_module_callback_http_add_header(
        filter: *mut c_void,
        headers: u32,
        name: ModuleBuffer,
        value: ModuleBuffer,
    ) -> bool;
    fn envoy_dynamic_module_callback_http_get_headers_size(
        filter: *mut c_void,
        headers: u32,
    ) -> usize;
    fn envoy_dynamic_module_callback_http_send_response(
        filter: *mut c_void,
        status: u32,
        headers: *const ModuleHeader,
        headers_len: usize,
        body: ModuleBuffer,
        details: ModuleBuffer,
    );
    fn envoy_dynamic_module_callback_http_filter_reset_stream(
        filter: *mut c_void,
        reason: u32,
        details: ModuleBuffer,
    );
    fn envoy_dynamic_module_callback_http_get_headers(
        filter: *mut c_void,
        headers: u32,
        all: *mut EnvoyHeader,
    ) -> bool;
    fn envoy_dynamic_module_callback_http_clear_route_cache(filter: *mut c_void);
    fn envoy_dynamic_module_callback_http_get_body_chunks_size(
        filter: *mut c_void,
        body: u32,
    ) -> usize;
    fn envoy_dynamic_module_callback_http_get_body_chunks(
        filter: *mut c_void,
        body: u32,
        chunks: *mut EnvoyBuffer,
    ) -> bool;
    fn envoy_dynamic_module_callback_http_set_filter_state_bytes(
        filter: *mut c_void,
        key: ModuleBuffer,
        value: ModuleBuffer,
    ) -> bool;
    fn envoy_dynamic_module_callback_http_set_filter_state_typed(
        filter: *mut c_void,
        key: ModuleBuffer,
        value: ModuleBuffer,
    ) -> bool;
    fn envoy_dynamic_module_callback_http_get_filter_state_bytes(
        filter: *mut c_void,
        key: ModuleBuffer,
        value: *mut EnvoyBuffer,
    ) -> bool;
    fn envoy_dynamic_module_callback_http_set_dynamic_metadata_string(
        filter: *mut c_void,
        namespace: ModuleBuffer,
        key: ModuleBuffer,
        value: ModuleBuffer,
    );
    fn envoy_dynamic_module_callback_http_filter_get_attribute_string(
        filter: *mut c_void,
        attribute: u32,
        value: *mut EnvoyBuffer,
    ) -> bool;
    fn envoy_dynamic_module_callback_http_filter_get_attribute_int(
        filter: *mut c_void,
        attribute: u32,
        value: *mut u64,
    ) -> bool;
    fn envoy_dynamic_module_callback_http_filter_config_define_counter(
        config: *mut c_void,
        name: ModuleBuffer,
        labels: *const ModuleBuffer,
        labels_len: usize,
        id: *mut usize,
    ) -> u32;
    fn envoy_dynamic_module_callback_http_filter_increment_counter(
        filter: *mut c_void,
        id: usize,
        labels: *const ModuleBuffer,
        labels_len: usize,
        by: u64,
    ) -> u32;

    fn envoy_dynamic_module_callback_network_get_filter_state_bytes(
        filter: *mut c_void,
        key: ModuleBuffer,
        value: *mut EnvoyBuffer,
    ) -> bool;
    fn envoy_dynamic_module_callback_network_set_filter_state_bytes(
        filter: *mut c_void,
        key: ModuleBuffer,
        value: ModuleBuffer,
    ) -> bool;
    fn envoy_dynamic_module_callback_network_set_filter_state_typed(
        filter: *mut c_void,
        key: ModuleBuffer,
        value: ModuleBuffer,
    ) -> bool;
    fn envoy_dynamic_module_callback_network_set_dynamic_metadata_string(
        filter: *mut c_void,
        namespace: ModuleBuffer,
        key: ModuleBuffer,
        value: ModuleBuffer,
    );
    fn envoy_dynamic_module_callback_network_filter_get_local_address(
        filter: *mut c_void,
        address: *mut EnvoyBuffer,
        port: *mut u32,
    ) -> bool;
    fn envoy_dynamic_module_callback_network_filter_get_requested_server_name(
        filter: *mut c_void,
        name: *mut EnvoyBuffer,
    ) -> bool;
    fn envoy_dynamic_module_callback_network_filter_close(filter: *mut c_void, how: u32);
    fn envoy_dynamic_module_callback_network_filter_config_define_counter(
        config: *mut c_void,
        name: ModuleBuffer,
        id: *mut usize,
    ) -> u32;
    fn envoy_dynamic_module_callback_network_filter_increment_counter(
        filter: *mut c_void,
        id: usize,
        by: u64,
    ) -> u32;
}

// The C library's.
unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
}

type GetText = unsafe extern "C" fn(*mut c_void, u32, *mut EnvoyBuffer) -> bool;
type SetValue = unsafe extern "C" fn(*mut c_void, ModuleBuffer, ModuleBuffer, u32, u32) -> bool;
type GetNumber = unsafe extern "C" fn(*mut c_void, u32, *mut u64) -> bool;

/// Functions that only newer Envoys have.
struct Newer {
    /// 1.39.3, 1.40.0: `network_filter_get_attribute_string`.
    network_text: Option<GetText>,
    /// 1.39.3, 1.40.0: `network_filter_get_attribute_int`.
    network_number: Option<GetNumber>,
    /// 1.40.0: `http_set_filter_state_value`.
    set_value: Option<SetValue>,
}

impl Newer {
    fn get() -> &'static Newer {
        static NEWER: OnceLock<Newer> = OnceLock::new();
        NEWER.get_or_init(|| {
            let text = symbol(c"envoy_dynamic_module_callback_network_filter_get_attribute_string");
            let number = symbol(c"envoy_dynamic_module_callback_network_filter_get_attribute_int");
            let value = symbol(c"envoy_dynamic_module_callback_http_set_filter_state_value");
            // SAFETY: Envoy exports functions of these types under these names, or nothing; and null is the `None` of
            // a function.
            unsafe {
                Newer {
                    network_text: std::mem::transmute::<*mut c_void, Option<GetText>>(text),
                    network_number: std::mem::transmute::<*mut c_void, Option<GetNumber>>(number),
                    set_value: std::mem::transmute::<*mut c_void, Option<SetValue>>(value),
                }
            }
        })
    }
}

/// Finds a function of Envoy's; null where this Envoy has none of that name.
fn symbol(name: &CStr) -> *mut c_void {
    if cfg!(miri) {
        return ptr::null_mut(); // it knows no `dlsym`
    }
    // `RTLD_DEFAULT`: whatever the process has, as the linker would find it.
    const DEFAULT: *mut c_void = ptr::null_mut();
    // SAFETY: the name ends in a zero and lives through the call.
    unsafe { dlsym(DEFAULT, name.as_ptr()) }
}

/// Returns the version of the interface that this Envoy speaks of. It compares the texts for a warning only.
pub(crate) fn abi_version() -> &'static CStr {
    match symbol(c"envoy_dynamic_module_callback_log_v2").is_null() {
        true => c"v0.1.0",
        false => c"v0.2.0",
    }
}

/// How grave a line of Envoy's log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Level {
    Info = 2,
    Warning = 3,
    Error = 4,
}

/// Writes a line to Envoy's own log.
pub(crate) fn log(level: Level, line: &str) {
    // SAFETY: Envoy reads the text during the call only.
    unsafe { envoy_dynamic_module_callback_log(level as u32, line.into()) }
}

fn done(worked: bool) -> Result<(), HostError> {
    if worked { Ok(()) } else { Err(HostError) }
}

fn counted(result: u32) -> Result<(), HostError> {
    done(result == METRIC_OK)
}

/// A request, during one hook.
#[derive(Debug, Clone, Copy)]
pub struct HttpHost<'h> {
    filter: *mut c_void,
    hook: PhantomData<&'h c_void>,
}

impl HttpHost<'_> {
    /// # Safety
    /// Envoy gave the pointer to the hook that this lives in.
    pub(crate) unsafe fn new(filter: *mut c_void) -> Self {
        HttpHost {
            filter,
            hook: PhantomData,
        }
    }

    /// Reads a request header; `None` when it is not there.
    pub(crate) fn request_header(&self, name: &str) -> Option<Vec<u8>> {
        self.header(REQUEST_HEADERS, name)
    }

    /// Reads a response header; `None` when it is not there.
    pub(crate) fn response_header(&self, name: &str) -> Option<Vec<u8>> {
        self.header(RESPONSE_HEADERS, name)
    }

    /// Whether one of the values of a request header is such.
    pub(crate) fn has_request_header(&self, name: &str, such: impl Fn(&[u8]) -> bool) -> bool {
        let (mut index, mut count) = (0, 1);
        while index < count {
            match self.value(REQUEST_HEADERS, name, index, &mut count) {
                Some(value) if such(&value) => return true,
                Some(_) => index += 1,
                None => return false,
            }
        }
        false
    }

    fn header(&self, headers: u32, name: &str) -> Option<Vec<u8>> {
        self.value(headers, name, 0, &mut 0)
    }

    /// Reads one value of a header, and how many there are.
    fn value(&self, headers: u32, name: &str, index: usize, count: &mut usize) -> Option<Vec<u8>> {
        let mut value = EnvoyBuffer::EMPTY;
        // SAFETY: the name lives through the call, and Envoy writes the two out-parameters only. What comes back is
        // copied before anything is set.
        unsafe {
            envoy_dynamic_module_callback_http_get_header(
                self.filter,
                headers,
                name.into(),
                &mut value,
                index,
                count,
            )
            .then(|| value.to_vec())
        }
    }

    /// Sets a request header in place of all that were there.
    pub(crate) fn set_request_header(&self, name: &str, value: &str) -> Result<(), HostError> {
        self.set_header(REQUEST_HEADERS, name.into(), value.into())
    }

    /// Sets a response header in place of all that were there.
    pub(crate) fn set_response_header(&self, name: &str, value: &str) -> Result<(), HostError> {
        self.set_header(RESPONSE_HEADERS, name.into(), value.into())
    }

    /// Removes a request header; it need not be there.
    pub(crate) fn remove_request_header(&self, name: &str) -> Result<(), HostError> {
        self.set_header(REQUEST_HEADERS, name.into(), ModuleBuffer::NOTHING)
    }

    /// Removes all response headers whose names are `withheld`. Returns how many are left.
    pub(crate) fn remove_response_headers(
        &self,
        withheld: impl Fn(&[u8]) -> bool,
    ) -> Result<usize, HostError> {
        let mut removed = Vec::new();
        let mut left = self.each_response_header(|name, _| {
            if withheld(name) {
                removed.push(name.to_vec());
            }
        })?;
        if !removed.is_empty() {
            for name in &removed {
                self.set_header(
                    RESPONSE_HEADERS,
                    name.as_slice().into(),
                    ModuleBuffer::NOTHING,
                )?;
            }
            left = self.response_headers();
        }
        Ok(left)
    }

    /// Shows all lines of the response's headers, in the order in which they came, and returns how many there are.
    pub(crate) fn each_response_header(
        &self,
        mut see: impl FnMut(&[u8], &[u8]),
    ) -> Result<usize, HostError> {
        // Answers have few, and those take no memory.
        const FEW: usize = 32;
        let count = self.response_headers();
        let (mut few, mut many);
        let all: &mut [EnvoyHeader] = if count <= FEW {
            few = [EnvoyHeader::EMPTY; FEW];
            few.get_mut(..count).unwrap_or_default()
        } else {
            many = vec![EnvoyHeader::EMPTY; count];
            &mut many
        };
        if all.is_empty() {
            return Ok(0);
        }
        // SAFETY: there is room for as many as were told, and nothing has changed since.
        done(unsafe {
            envoy_dynamic_module_callback_http_get_headers(
                self.filter,
                RESPONSE_HEADERS,
                all.as_mut_ptr(),
            )
        })?;
        for header in all {
            // SAFETY: both texts are Envoy's until something is set, which `see` has no way to do.
            let (name, value) = unsafe { (header.name.bytes(), header.value.bytes()) };
            see(name, value);
        }
        Ok(count)
    }

    /// Sets the lines of a response header in place of all that were there.
    pub(crate) fn set_response_lines(
        &self,
        name: &str,
        lines: &[Cow<'_, [u8]>],
    ) -> Result<(), HostError> {
        let first = lines.first().map(|line| ModuleBuffer::from(&**line));
        let first = first.unwrap_or(ModuleBuffer::NOTHING);
        self.set_header(RESPONSE_HEADERS, name.into(), first)?;
        let mut others = lines.iter().skip(1);
        others.try_for_each(|line| {
            let line = ModuleBuffer::from(&**line);
            // SAFETY: Envoy reads both during the call only.
            done(unsafe {
                envoy_dynamic_module_callback_http_add_header(
                    self.filter,
                    RESPONSE_HEADERS,
                    name.into(),
                    line,
                )
            })
        })
    }

    fn set_header(
        &self,
        headers: u32,
        name: ModuleBuffer,
        value: ModuleBuffer,
    ) -> Result<(), HostError> {
        // SAFETY: Envoy reads both during the call only.
        done(unsafe {
            envoy_dynamic_module_callback_http_set_header(self.filter, headers, name, value)
        })
    }

    /// Returns how many headers the response has.
    pub(crate) fn response_headers(&self) -> usize {
        // SAFETY: nothing is passed but the pointer of the hook.
        unsafe {
            envoy_dynamic_module_callback_http_get_headers_size(self.filter, RESPONSE_HEADERS)
        }
    }

    /// Has Envoy look at the routes again.
    pub(crate) fn choose_route_again(&self) {
        // SAFETY: as in `response_headers`.
        unsafe { envoy_dynamic_module_callback_http_clear_route_cache(self.filter) }
    }

    /// Reads the first bytes of what is held of the request's body, the ones that came just now last.
    pub(crate) fn request_body(&self, most: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for body in [BUFFERED_BODY, RECEIVED_BODY] {
            // SAFETY: as in `response_headers`.
            let count = unsafe {
                envoy_dynamic_module_callback_http_get_body_chunks_size(self.filter, body)
            };
            let mut chunks = vec![EnvoyBuffer::EMPTY; count];
            // SAFETY: there is room for as many as were told, and nothing has changed since.
            let there = count > 0
                && unsafe {
                    envoy_dynamic_module_callback_http_get_body_chunks(
                        self.filter,
                        body,
                        chunks.as_mut_ptr(),
                    )
                };
            for chunk in chunks.iter().take_while(|_| there) {
                let left = most.saturating_sub(bytes.len());
                let first = EnvoyBuffer {
                    len: chunk.len.min(left),
                    ..*chunk
                };
                // SAFETY: it is part of a chunk, and nothing is set while we read.
                bytes.extend(unsafe { first.to_vec() });
            }
        }
        bytes
    }

    /// Sets one of Envoy's own filter-state objects, made from a text.
    pub(crate) fn set_object(&self, key: &str, value: &str) -> Result<(), HostError> {
        // SAFETY: as in `set_header`.
        done(unsafe {
            envoy_dynamic_module_callback_http_set_filter_state_typed(
                self.filter,
                key.into(),
                value.into(),
            )
        })
    }

    /// Sets a filter-state object that is a text.
    pub(crate) fn set_text(&self, key: &str, value: &[u8]) -> Result<(), HostError> {
        // SAFETY: as in `set_header`.
        done(unsafe {
            envoy_dynamic_module_callback_http_set_filter_state_bytes(
                self.filter,
                key.into(),
                value.into(),
            )
        })
    }

    /// Sets a filter-state object that is a text, for as long as the client's connection lives; where this Envoy cannot,
    /// for this request.
    pub(crate) fn set_text_of_connection(&self, key: &str, value: &str) -> Result<(), HostError> {
        const OF_CONNECTION: u32 = 2;
        const NOT_SHARED: u32 = 0;
        let Some(set) = Newer::get().set_value else {
            return self.set_text(key, value.as_bytes());
        };
        // SAFETY: as in `set_header`.
        done(unsafe {
            set(
                self.filter,
                key.into(),
                value.into(),
                OF_CONNECTION,
                NOT_SHARED,
            )
        })
    }

    /// Reads a filter-state object that is a text; `None` when there is none.
    pub(crate) fn text(&self, key: &str) -> Option<Vec<u8>> {
        let mut value = EnvoyBuffer::EMPTY;
        // SAFETY: as in `header`.
        unsafe {
            envoy_dynamic_module_callback_http_get_filter_state_bytes(
                self.filter,
                key.into(),
                &mut value,
            )
            .then(|| value.to_vec())
        }
    }

    /// Sets an entry of the dynamic metadata.
    pub(crate) fn set_metadata(&self, namespace: &str, key: &str, value: &str) {
        // SAFETY: as in `set_header`.
        unsafe {
            envoy_dynamic_module_callback_http_set_dynamic_metadata_string(
                self.filter,
                namespace.into(),
                key.into(),
                value.into(),
            );
        }
    }

    /// Reads what Envoy knows as text; `None` where it does not.
    pub(crate) fn attribute(&self, attribute: Attribute) -> Option<Vec<u8>> {
        let mut value = EnvoyBuffer::EMPTY;
        // SAFETY: as in `header`.
        unsafe {
            envoy_dynamic_module_callback_http_filter_get_attribute_string(
                self.filter,
                attribute as u32,
                &mut value,
            )
            .then(|| value.to_vec())
        }
    }

    /// Reads what Envoy knows as a number; `None` where it does not.
    pub(crate) fn number(&self, attribute: Attribute) -> Option<u64> {
        let mut value = 0;
        // SAFETY: Envoy writes the number only.
        unsafe {
            envoy_dynamic_module_callback_http_filter_get_attribute_int(
                self.filter,
                attribute as u32,
                &mut value,
            )
            .then_some(value)
        }
    }

    /// Answers the request here. Envoy may have ended the stream when this returns, so it comes last in a hook.
    pub(crate) fn answer(self, status: u32, details: &str, body: &str) {
        let header = ModuleHeader {
            name: "content-type".into(),
            value: "text/plain".into(),
        };
        // SAFETY: Envoy copies header, body and details during the call. It keeps its filter until the hook returns.
        unsafe {
            envoy_dynamic_module_callback_http_send_response(
                self.filter,
                status,
                &header,
                1,
                body.into(),
                details.into(),
            );
        }
    }

    /// Breaks off the request. It comes last in a hook, as [`HttpHost::answer`] does.
    pub(crate) fn close(self) {
        // SAFETY: as in `answer`.
        unsafe {
            envoy_dynamic_module_callback_http_filter_reset_stream(
                self.filter,
                LOCAL_RESET,
                "egress_closed".into(),
            );
        }
    }

    /// Adds one to a counter.
    pub(crate) fn increment(&self, counter: usize) -> Result<(), HostError> {
        // SAFETY: there are no labels, which a null pointer and no length say.
        counted(unsafe {
            envoy_dynamic_module_callback_http_filter_increment_counter(
                self.filter,
                counter,
                ptr::null(),
                0,
                1,
            )
        })
    }
}

/// A connection that is not HTTP, during one hook.
#[derive(Debug, Clone, Copy)]
pub struct NetworkHost<'h> {
    filter: *mut c_void,
    hook: PhantomData<&'h c_void>,
}

impl NetworkHost<'_> {
    /// # Safety
    /// As [`HttpHost::new`].
    pub(crate) unsafe fn new(filter: *mut c_void) -> Self {
        NetworkHost {
            filter,
            hook: PhantomData,
        }
    }

    /// Reads the address and port that the application dialled; `None` where it is no address of IP.
    pub(crate) fn destination(&self) -> Option<SocketAddr> {
        let (mut address, mut port) = (EnvoyBuffer::EMPTY, 0);
        // SAFETY: Envoy writes the two out-parameters only, and the text is copied at once.
        let text = unsafe {
            envoy_dynamic_module_callback_network_filter_get_local_address(
                self.filter,
                &mut address,
                &mut port,
            )
            .then(|| address.to_vec())
        }?;
        let address: IpAddr = std::str::from_utf8(&text).ok()?.parse().ok()?;
        Some(SocketAddr::new(address, u16::try_from(port).ok()?))
    }

    /// Reads the SNI of the application's own TLS; `None` where there is none.
    pub(crate) fn server_name(&self) -> Option<Vec<u8>> {
        let mut name = EnvoyBuffer::EMPTY;
        // SAFETY: as in `destination`.
        unsafe {
            envoy_dynamic_module_callback_network_filter_get_requested_server_name(
                self.filter,
                &mut name,
            )
            .then(|| name.to_vec())
        }
    }

    /// Sets one of Envoy's own filter-state objects, made from a text.
    pub(crate) fn set_object(&self, key: &str, value: &str) -> Result<(), HostError> {
        // SAFETY: Envoy reads both during the call only.
        done(unsafe {
            envoy_dynamic_module_callback_network_set_filter_state_typed(
                self.filter,
                key.into(),
                value.into(),
            )
        })
    }

    /// Sets a filter-state object that is a text.
    pub(crate) fn set_text(&self, key: &str, value: &[u8]) -> Result<(), HostError> {
        // SAFETY: as in `set_object`.
        done(unsafe {
            envoy_dynamic_module_callback_network_set_filter_state_bytes(
                self.filter,
                key.into(),
                value.into(),
            )
        })
    }

    /// Sets an entry of the dynamic metadata.
    pub(crate) fn set_metadata(&self, namespace: &str, key: &str, value: &str) {
        // SAFETY: as in `set_object`.
        unsafe {
            envoy_dynamic_module_callback_network_set_dynamic_metadata_string(
                self.filter,
                namespace.into(),
                key.into(),
                value.into(),
            );
        }
    }

    /// Reads what Envoy knows as text; `None` where it does not.
    pub(crate) fn attribute(&self, attribute: Attribute) -> Option<Vec<u8>> {
        let (get, mut value) = (Newer::get().network_text?, EnvoyBuffer::EMPTY);
        // SAFETY: as in `destination`.
        unsafe { get(self.filter, attribute as u32, &mut value).then(|| value.to_vec()) }
    }

    /// Reads what Envoy knows as a number; `None` where it does not.
    pub(crate) fn number(&self, attribute: Attribute) -> Option<u64> {
        let (get, mut value) = (Newer::get().network_number?, 0);
        // SAFETY: Envoy writes the number only.
        unsafe { get(self.filter, attribute as u32, &mut value).then_some(value) }
    }

    /// Reads a filter-state object that is a text; `None` when there is none.
    pub(crate) fn text(&self, key: &str) -> Option<Vec<u8>> {
        let mut value = EnvoyBuffer::EMPTY;
        // SAFETY: as in `destination`.
        unsafe {
            envoy_dynamic_module_callback_network_get_filter_state_bytes(
                self.filter,
                key.into(),
                &mut value,
            )
            .then(|| value.to_vec())
        }
    }

    /// Returns a number that no other connection has while this one lives.
    pub(crate) fn number_of_connection(&self) -> usize {
        self.filter.expose_provenance()
    }

    /// Closes the application's connection. It comes last in a hook.
    pub(crate) fn close(self) {
        // SAFETY: nothing is passed but the pointer of the hook, and Envoy keeps its filter until the hook returns.
        unsafe {
            envoy_dynamic_module_callback_network_filter_close(self.filter, CLOSE_WITHOUT_FLUSH);
        }
    }

    /// Adds one to a counter.
    pub(crate) fn increment(&self, counter: usize) -> Result<(), HostError> {
        // SAFETY: nothing is passed but the pointer of the hook and numbers.
        counted(unsafe {
            envoy_dynamic_module_callback_network_filter_increment_counter(self.filter, counter, 1)
        })
    }
}

/// Whether a connection within Envoy has a tunnel of the upstream proxy. Where Envoy does not say, it has.
///
/// `number` is one of [`NetworkHost::number_of_connection`], as `egress_filter` keeps it: for this thread alone, and no
/// longer than the stream of the connection.
pub(crate) fn has_tunnel(number: usize) -> bool {
    if Newer::get().network_text.is_none() {
        return true;
    }
    // SAFETY: the stream is dropped before Envoy's filter is, so what the pointer is of lives, and on this thread.
    let host = unsafe { NetworkHost::new(ptr::with_exposed_provenance_mut(number)) };
    host.attribute(Attribute::UpstreamLocalAddress).is_some()
}

/// What a configuration is made for, while it is made.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ConfigHost<'h> {
    Http(*mut c_void, PhantomData<&'h c_void>),
    Network(*mut c_void, PhantomData<&'h c_void>),
}

impl ConfigHost<'_> {
    /// Defines a counter and returns its number; `None` where Envoy does not take it.
    pub(crate) fn counter(self, name: &str) -> Option<usize> {
        let mut id = 0;
        // SAFETY: Envoy reads the name during the call only, and writes the number only. Whoever made this got the
        // pointer from the hook that this lives in.
        let result = unsafe {
            match self {
                ConfigHost::Http(config, _) => {
                    envoy_dynamic_module_callback_http_filter_config_define_counter(
                        config,
                        name.into(),
                        ptr::null(),
                        0,
                        &mut id,
                    )
                }
                ConfigHost::Network(config, _) => {
                    envoy_dynamic_module_callback_network_filter_config_define_counter(
                        config,
                        name.into(),
                        &mut id,
                    )
                }
            }
        };
        (result == METRIC_OK).then_some(id)
    }
}
