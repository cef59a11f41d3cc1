//! The proxy-wasm module: entry point for Envoy.
