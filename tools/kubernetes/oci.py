# SPDX-License-Identifier: Apache-2.0
"""Container images as OCI archives, which `ctr images import` takes: no registry is needed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_MEDIA = "application/vnd.oci.image"


def write(
    out: Path,
    name: str,
    root: Path,
    entry: Sequence[str],
    environment: Sequence[str] = (),
) -> None:
    """Write an image of one layer, which is a directory, to a tar file.

    ``name``: with a tag, such as ``localhost/towpath:1``. The same directory gives the same file.
    """
    layer = _layer(root)
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": list(entry), "Env": list(environment)},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
    }
    platform = {"architecture": "amd64", "os": "linux"}
    blobs: list[bytes] = [layer, _json(config)]
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{_MEDIA}.manifest.v1+json",
            "config": _descriptor(blobs[1], "config.v1+json"),
            "layers": [_descriptor(layer, "layer.v1.tar")],
        }
    )
    blobs.append(manifest)
    names = {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rpartition(":")[2],
    }
    described = _descriptor(manifest, "manifest.v1+json")
    listed = described | {"platform": platform, "annotations": names}
    with tarfile.open(out, "w") as archive:
        _add(archive, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _add(archive, "index.json", _json({"schemaVersion": 2, "manifests": [listed]}))
        for blob in blobs:
            _add(archive, f"blobs/sha256/{_digest(blob).partition(':')[2]}", blob)


def _layer(root: Path) -> bytes:
    """All below a directory, as root's."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as layer:
        for directory, directories, files in os.walk(root):
            directories.sort()
            for name in sorted([*directories, *files]):
                path = os.path.join(directory, name)  # noqa: PTH118 - of ten thousand
                inside = os.path.relpath(path, root)
                layer.add(path, inside, recursive=False, filter=_as_root)
    return raw.getvalue()


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _descriptor(blob: bytes, kind: str) -> dict[str, Any]:
    return {"mediaType": f"{_MEDIA}.{kind}", "digest": _digest(blob), "size": len(blob)}


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
