//! What loading takes at its height, which a VM never gives back, and what stays of it.

#![expect(
    unsafe_code,
    reason = "a global allocator is unsafe to implement; this one adds what the system's is asked for"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;

use egress_filter::load_for;
use serde_json::{Value, json};

thread_local! {
    /// What this thread has, and the most it ever had, in bytes.
    static TAKEN: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

struct Counting;

impl Counting {
    fn count(taken: usize, given: usize) {
        // A thread that is ending has no counter any more, and nobody asks for it.
        let _ = TAKEN.try_with(|cell| {
            let (now, most) = cell.get();
            let now = (now + taken).saturating_sub(given);
            cell.set((now, most.max(now)));
        });
    }
}

// SAFETY: every call goes to the system's allocator as it came; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size(), 0);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        Self::count(0, layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// An entry and a rule for each host.
fn config(hosts: usize) -> Vec<u8> {
    let document = |kind: &str, name: &str, spec: Value| json!({"apiVersion": "networking.istio.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    let resources: Vec<Value> = (0..hosts)
        .flat_map(|n| {
            let host = format!("host-{n}.bench.example.com");
            let ports = json!([
                {"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 443},
                {"number": 443, "name": "tls", "protocol": "TLS"},
            ]);
            let entry = json!({"hosts": [host], "ports": ports, "resolution": "DNS"});
            let settings = json!([{"port": {"number": 80}, "tls": {"mode": "SIMPLE"}}]);
            let rule = json!({"host": host, "trafficPolicy": {"portLevelSettings": settings}});
            [
                document("ServiceEntry", &host, entry),
                document("DestinationRule", &host, rule),
            ]
        })
        .collect();
    let config = json!({"schema": 1, "listener": {"port": 80}, "resources": resources});
    let mut text = config.to_string().into_bytes();
    // What it has to spare would count as what loading gives back.
    text.shrink_to_fit();
    text
}

#[test]
fn loading_takes_little_more_than_the_text_and_keeps_less() {
    const HOSTS: usize = 10_000;
    let json = config(HOSTS);
    let text = json.len();
    let before = TAKEN.get().0 - text;
    TAKEN.set((before + text, before + text));
    let loaded = load_for(json, Some(BTreeMap::new())).unwrap();
    let (now, most) = TAKEN.get();
    assert_eq!(loaded.table.len(), HOSTS);
    let (kept, most) = ((now - before) / HOSTS, (most - before) / HOSTS);
    // In bytes a host. With pointers of eight bytes; a VM has those of four.
    assert!(kept < 600, "{kept} bytes a host stay");
    assert!(
        most < text / HOSTS + 1_300,
        "{most} bytes a host at its height"
    );
}
