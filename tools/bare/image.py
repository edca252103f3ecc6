# SPDX-License-Identifier: Apache-2.0
"""Roots of the smallest Debian, made by mmdebstrap and kept as archives between runs."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING

from tools.bare import host
from tools.debian.archive import KEYRING, cache_directory, mirror

if TYPE_CHECKING:
    from pathlib import Path

    from tools.debian.distributions import Distribution

# What the README asks for.
_WITH = ("git", "make")
_DAYS = 7
"""How long an archive is kept."""


def obtain(distribution: Distribution, *, fresh: bool = False) -> Path:
    """Return the archive of a distribution's root; made if there is none of these days."""
    options, source = host.apt_options(), mirror()
    made_from = "\n".join((distribution.name, options, source, *_WITH))
    key = hashlib.sha256(made_from.encode()).hexdigest()[:12]
    archive = cache_directory("bare") / f"{distribution.name}-{key}.tar"
    if not fresh and archive.exists() and time.time() - archive.stat().st_mtime < _DAYS * 86400:
        return archive
    archive.parent.mkdir(parents=True, exist_ok=True)
    for old in archive.parent.glob(f"{distribution.name}-*.tar*"):
        old.unlink()
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as settings:
        settings.write(options)
        settings.flush()
        partial = archive.with_suffix(".tar.partial")
        command = ["mmdebstrap", "--quiet", "--variant=minbase", "--format=tar"]
        command += [f"--aptopt={settings.name}", f"--keyring={KEYRING}"]
        command += [f"--include={','.join(_WITH)}", distribution.name, str(partial), source]
        subprocess.run(command, stdin=subprocess.DEVNULL, check=True)
        partial.rename(archive)
    return archive


def unpack(archive: Path, root: Path) -> None:
    """Make a root of an archive, as this machine would have it."""
    root.mkdir(parents=True)
    # Devices are the namespace's: see `enter`.
    command = ["tar", "-x", "--numeric-owner", "--exclude=./dev/*", "-C", str(root)]
    subprocess.run([*command, "-f", str(archive)], check=True)
    host.copy_to(root)
