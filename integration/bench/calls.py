"""What a wasm filter costs by what Envoy calls it for and what it calls, with nothing behind the calls."""

import proxies
from lab import fill

# Callbacks of ours beside that of requests, with their types.
CALLBACKS = {
    "proxy_on_context_create": "(param i32 i32)",
    "proxy_on_delete": "(param i32)",
    "proxy_on_response_headers": "(param i32 i32 i32) (result i32) (i32.const 0)",
}
# What ours calls for a request: integration/tests/hostcalls.rs holds it to that.
OWN, SHARED = ["read", "write", "property"], ["read", "property"]
# As long as what ours writes for a request.
METADATA = "action=originate reason=- rule=default/api.bench.example.com ".ljust(300, "x")


def constants(*numbers):
    return " ".join(f"(i32.const {number})" for number in numbers)


def calls(cluster):
    """The calls of ours, by their names in the module."""
    return {
        "read": f"(drop (call $read {constants(0, 2048, 10, 1024, 1028)}))",
        "write": f"(drop (call $write {constants(0, 2080, 18, 2560, len(cluster))}))",
        "property": f"(drop (call $property {constants(2064, 6, 3072, len(METADATA))}))",
    }


def module(lab, made, cluster="-"):
    """A module that has the callbacks of ours, and makes these calls for each request."""
    known = calls(cluster)
    made = " ".join(known[name] for name in made)
    exports = "\n  ".join(f'(func (export "{name}") {kind})' for name, kind in CALLBACKS.items())
    return proxies.assembled(lab, fill("calls.wat", exports=exports, calls=made, cluster=cluster, metadata=METADATA))
