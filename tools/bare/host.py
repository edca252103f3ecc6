# SPDX-License-Identifier: Apache-2.0
"""What a root takes over from this machine, so that it reaches packages the way that this does.

Found when it is needed, kept nowhere: apt's settings, names and certificates, pip's settings.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

# What says how to fetch; the rest of apt's settings is the root's own business.
_FETCHING = ("Acquire::http", "Acquire::https", "Acquire::Check-", "Acquire::Retries")
_AGAIN = 'Acquire::Retries "3";'
_FILES = ("etc/resolv.conf", "etc/hosts", "etc/pip.conf")
# `update-ca-certificates` takes these up when ca-certificates is installed, and not before: a
# root in which nothing installs that has no certificates.
_AUTHORITIES = "usr/local/share/ca-certificates"
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}


def apt_options() -> str:
    """Return apt's settings here that say how packages are fetched, as its configuration."""
    shown = subprocess.run(
        ["apt-config", "dump", "Acquire"], capture_output=True, text=True, check=True
    ).stdout
    lines = [line for line in shown.splitlines() if line.startswith(_FETCHING)]
    return "".join(f"{line}\n" for line in [_AGAIN, *lines])


def copy_to(root: Path) -> None:
    """Give a root the names, certificates and pip's settings of this machine."""
    for name in _FILES:
        source = Path("/", name)
        if source.exists():
            shutil.copyfile(source, root / name)
    for source in Path("/", _AUTHORITIES).rglob("*.crt"):
        target = root / source.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    for directory in os.environ.get("PIP_FIND_LINKS", "").split():
        if Path(directory).is_dir():
            shutil.copytree(directory, root / directory.lstrip("/"), dirs_exist_ok=True)


def environment() -> dict[str, str]:
    """Return the environment of commands in a root: a fresh one, and how pip is told to fetch."""
    fetching = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("PIP_") or name.lower().endswith("_proxy")
    }
    return _ENVIRONMENT | fetching | {"TERM": os.environ.get("TERM", "dumb")}
