#!/usr/bin/env python3
"""oci.py WASM VERSION FOLDER: writes an image with the module as an OCI image layout.

One gzip layer with one file, `plugin.wasm`, at the root: the form that Istio's agent, Envoy Gateway and a plain
`COPY --from` all read. The same module gives the same bytes. Prints the digest of the manifest: what a registry
calls the image by, and what Istio compares `sha256` with.
"""

import gzip
import hashlib
import io
import json
import pathlib
import sys
import tarfile

wasm, version, folder = pathlib.Path(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
blobs = folder / "blobs" / "sha256"
blobs.mkdir(parents=True)


def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def blob(media_type, content):
    (blobs / digest(content).removeprefix("sha256:")).write_bytes(content)
    return {"mediaType": media_type, "digest": digest(content), "size": len(content)}


def document(value):
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


tar = io.BytesIO()
with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as archive:
    entry = tarfile.TarInfo("plugin.wasm")
    content = wasm.read_bytes()
    entry.size, entry.mode = len(content), 0o644
    archive.addfile(entry, io.BytesIO(content))
layer = blob("application/vnd.oci.image.layer.v1.tar+gzip", gzip.compress(tar.getvalue(), 9, mtime=0))
config = {
    "architecture": "wasm",
    "os": "wasi",
    "config": {},
    "rootfs": {"type": "layers", "diff_ids": [digest(tar.getvalue())]},
}
annotations = {
    "module.wasm.image/variant": "compat",
    "org.opencontainers.image.title": "egress-filter",
    "org.opencontainers.image.version": version,
    "org.opencontainers.image.licenses": "Apache-2.0",
}
manifest = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": blob("application/vnd.oci.image.config.v1+json", document(config)),
    "layers": [layer],
    "annotations": annotations,
}
entry = blob(manifest["mediaType"], document(manifest))
entry["annotations"] = {"org.opencontainers.image.ref.name": version}
index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]}
(folder / "index.json").write_bytes(document(index))
(folder / "oci-layout").write_bytes(document({"imageLayoutVersion": "1.0.0"}))
print(entry["digest"].removeprefix("sha256:"))
