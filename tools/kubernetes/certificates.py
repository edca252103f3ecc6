# SPDX-License-Identifier: Apache-2.0
"""An authority, and what a control plane has signed by it."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from tools.kubernetes.errors import KubernetesError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_DAYS = ("-days", "30")


def make_authority(directory: Path) -> None:
    """Write ``ca.crt`` and ``ca.key``."""
    key, certificate = directory / "ca.key", directory / "ca.crt"
    out = ("-keyout", str(key), "-out", str(certificate))
    _openssl("req", "-x509", *_KEY, *_DAYS, *out, "-subj", "/CN=towpath-kubernetes-ca")


def sign(directory: Path, name: str, subject: str, names: Sequence[str] = ()) -> None:
    """Write ``NAME.crt`` and ``NAME.key``, signed by the authority of the same directory.

    ``names``: what a server is reached by, such as ``DNS:localhost`` and ``IP:127.0.0.1``.
    """
    request, certificate = directory / f"{name}.csr", directory / f"{name}.crt"
    key = str(directory / f"{name}.key")
    more = ("-addext", f"subjectAltName={','.join(names)}") if names else ()
    _openssl("req", *_KEY, "-keyout", key, "-out", str(request), "-subj", subject, *more)
    authority = ("-CA", str(directory / "ca.crt"), "-CAkey", str(directory / "ca.key"))
    files = ("-in", str(request), "-out", str(certificate))
    _openssl("x509", "-req", *files, *authority, "-CAcreateserial", *_DAYS, "-copy_extensions=copy")
    request.unlink()


def make_signing_key(path: Path) -> None:
    """Write the key that tokens of service accounts are signed with."""
    _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(path))


def _openssl(*words: str) -> None:
    done = subprocess.run(["openssl", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise KubernetesError(f"openssl {words[0]}: {done.stderr.strip()}")
