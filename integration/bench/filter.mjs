// The filter as Envoy loads it, inside Node's V8: what it costs to be configured and to handle a request, where every
// call to the host is answered at once. `node filter.mjs egress-filter.wasm 10 10000` prints a line of JSON for each size.

import { readFileSync } from 'node:fs';

const ROUND = 4096; // hosts that are asked for in turn
const AT_LEAST = 300; // milliseconds that are measured
const [OK, NOT_FOUND] = [0, 1];

// As in filter/policy/benches/engine.rs: every tenth host is a wildcard, and every tenth, another one, has a rule of its own.
function host(n) {
  const depth = '.svc'.repeat(n % 7);
  return n % 10 === 0 ? `*.tenant-${n}${depth}.example.com` : `api-${n}${depth}.example.com`;
}

function resources(hosts) {
  const resource = (kind, name, spec) => ({ apiVersion: 'networking.istio.io/v1', kind, metadata: { name }, spec });
  const on80 = (host, tls) => ({ host, trafficPolicy: { portLevelSettings: [{ port: { number: 80 }, tls }] } });
  const ports = [
    { number: 80, name: 'http', protocol: 'HTTP', targetPort: 443 },
    { number: 443, name: 'tls', protocol: 'TLS' },
  ];
  const all = [resource('DestinationRule', 'all', on80('*', { mode: 'SIMPLE' }))];
  for (let n = 0; n < hosts; n++) {
    const name = host(n);
    const resolution = name.startsWith('*') ? 'DYNAMIC_DNS' : 'DNS';
    all.push(resource('ServiceEntry', `entry-${n}`, { hosts: [name], ports, resolution }));
    if (n % 10 === 1) {
      all.push(resource('DestinationRule', `rule-${n}`, on80(name, { mode: 'SIMPLE', sni: `sni-${n}.example.com` })));
    }
  }
  return all;
}

// An instance of the module, and a host that answers it.
class Vm {
  constructor(module, configuration) {
    this.configuration = configuration;
    this.answered = 0;
    this.led = 0;
    const bytes = (from, length) => new Uint8Array(this.exports.memory.buffer, from, length);
    const give = (value, at, length) => {
      const to = (this.exports.malloc ?? this.exports.proxy_on_memory_allocate)(value.length);
      bytes(to, value.length).set(value);
      const view = new DataView(this.exports.memory.buffer);
      view.setUint32(at, to, true);
      view.setUint32(length, value.length, true);
      return OK;
    };
    const known = {
      proxy_get_buffer_bytes: (_kind, _start, _most, at, length) => give(this.configuration, at, length),
      proxy_get_header_map_value: (_map, _name, _bytes, at, length) => give(this.authority, at, length),
      proxy_get_property: () => NOT_FOUND,
      proxy_send_local_response: () => ((this.answered += 1), OK),
      proxy_set_property: () => ((this.led += 1), OK),
      proxy_log: (level, at, length) => {
        if (level >= 4) throw new Error(Buffer.from(bytes(at, length)).toString());
        return OK;
      },
    };
    const imports = {};
    for (const { module: from, name } of WebAssembly.Module.imports(module)) {
      (imports[from] ??= {})[name] = known[name] ?? (() => OK);
    }
    this.exports = new WebAssembly.Instance(module, imports).exports;
    this.exports._initialize?.();
    this.exports.proxy_on_context_create(1, 0);
    this.exports.proxy_on_vm_start(1, 0);
  }

  configure() {
    if (this.exports.proxy_on_configure(1, this.configuration.length) !== 1) throw new Error('the configuration is refused');
  }

  request(id, authority) {
    this.authority = authority;
    this.exports.proxy_on_context_create(id, 1);
    this.exports.proxy_on_request_headers(id, 8, 1);
    this.exports.proxy_on_done?.(id);
    this.exports.proxy_on_log?.(id);
    this.exports.proxy_on_delete?.(id);
  }
}

// Nanoseconds that one of `each` takes, after as long a warm-up.
function measured(each, run) {
  for (const really of [false, true]) {
    const begun = performance.now();
    let rounds = 0;
    do {
      run();
      rounds += 1;
    } while (performance.now() - begun < AT_LEAST);
    if (really) return ((performance.now() - begun) * 1e6) / (rounds * each);
  }
}

const [path, ...sizes] = process.argv.slice(2);
const module = new WebAssembly.Module(readFileSync(path));
let empty;
for (const hosts of [1, ...sizes.map(Number)]) {
  const all = resources(hosts);
  const configuration = Buffer.from(JSON.stringify({ schema: 1, listener: { port: 80 }, resources: all }));
  let vm = new Vm(module, configuration);
  vm.configure();
  const memory = vm.exports.memory.buffer.byteLength;
  empty ??= memory;
  if (hosts === 1) continue;
  const configure = measured(all.length, () => vm.configure());
  vm = new Vm(module, configuration);
  vm.configure();
  const step = Math.max(1, Math.floor(hosts / ROUND));
  const asked = Array.from({ length: Math.min(ROUND, hosts) }, (_, at) => Buffer.from(host(at * step).replace('*', 'www')));
  let id = 2;
  const several = measured(asked.length, () => asked.forEach((one) => vm.request(id++, one)));
  const one = measured(ROUND, () => {
    for (let at = 0; at < ROUND; at++) vm.request(id++, asked[1]);
  });
  // Each was led somewhere, and none was answered by the filter.
  if (vm.answered > 0 || vm.led < id - 2) throw new Error(`${vm.answered} of ${id - 2} were refused, ${vm.led} led`);
  console.log(JSON.stringify({ hosts, configure, several, one, memory: (memory - empty) / hosts }));
}
