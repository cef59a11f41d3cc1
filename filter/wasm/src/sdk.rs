//! What the SDK offers to every context and we do not use, for `host` calls the host.
//!
//! A context is a trait object, and its table of functions keeps all of them in the module, whoever calls them. So each
//! context has them with nothing in them, which saves a hundredth of the module.

/// Implements the SDK's `Context` without what it offers.
macro_rules! bare_context {
    ($context:ty) => {
        impl proxy_wasm::traits::Context for $context {
            crate::sdk::nothing! {
                get_property(Vec<&str>) -> Option<Vec<u8>>;
                get_shared_data(&str) -> (Option<Vec<u8>>, Option<u32>);
                resolve_shared_queue(&str, &str) -> Option<u32>;
                get_http_call_response_headers() -> Vec<(String, String)>;
                get_http_call_response_headers_bytes() -> Vec<(String, Vec<u8>)>;
                get_http_call_response_header(&str) -> Option<String>;
                get_http_call_response_header_bytes(&str) -> Option<Vec<u8>>;
                get_http_call_response_body(usize, usize) -> Option<Vec<u8>>;
                get_http_call_response_trailers() -> Vec<(String, String)>;
                get_http_call_response_trailers_bytes() -> Vec<(String, Vec<u8>)>;
                get_http_call_response_trailer(&str) -> Option<String>;
                get_http_call_response_trailer_bytes(&str) -> Option<Vec<u8>>;
                get_grpc_call_response_body(usize, usize) -> Option<Vec<u8>>;
                get_grpc_stream_initial_metadata() -> Vec<(String, Vec<u8>)>;
                get_grpc_stream_initial_metadata_value(&str) -> Option<Vec<u8>>;
                get_grpc_stream_trailing_metadata() -> Vec<(String, Vec<u8>)>;
                get_grpc_stream_trailing_metadata_value(&str) -> Option<Vec<u8>>;
                get_grpc_status() -> (u32, Option<String>);
            }
        }
    };
}

/// Functions that return what is empty.
macro_rules! nothing {
    ($($name:ident($($argument:ty),*) -> $result:ty;)*) => {$(
        fn $name(&self, $(_: $argument),*) -> $result {
            Default::default()
        }
    )*};
}

pub(crate) use {bare_context, nothing};
