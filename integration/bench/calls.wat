;; A filter that calls Envoy with constants and does nothing else: what a call costs, whatever filter makes it.
;; calls.py fills in the calls of the callback for requests, and further callbacks.
(module
  (import "env" "proxy_get_header_map_value" (func $read (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_replace_header_map_value" (func $write (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_set_property" (func $property (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 2048) ":authority")
  (data (i32.const 2064) "egress")
  (data (i32.const 2080) "x-egress-originate")
  (data (i32.const 2560) "@CLUSTER@")
  (data (i32.const 3072) "@METADATA@")
  (func (export "_initialize"))
  (func (export "proxy_abi_version_0_2_1"))
  ;; Each answer of Envoy's overwrites the one before it.
  (func (export "malloc") (param i32) (result i32) (i32.const 65536))
  (func (export "proxy_on_vm_start") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_configure") (param i32 i32) (result i32) (i32.const 1))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    @CALLS@
    (i32.const 0))
  @EXPORTS@)
