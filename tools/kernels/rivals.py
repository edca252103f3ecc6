# SPDX-License-Identifier: Apache-2.0
"""What pods' limits are compared with: the CNI bandwidth plugin, as Debian has it."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

from tools.debian import archive
from tools.debian.archive import Archive, DownloadError

if TYPE_CHECKING:
    from pathlib import Path

PACKAGE = "containernetworking-plugins"
PLUGIN = "usr/lib/cni/bandwidth"
RELEASES = ("bookworm", "sid")
"""Both have tbf on an ifb: the HTB of versions in between was taken back."""
_UPSTREAM = re.compile(r"^Version: (?:\d+:)?(\d+(?:\.\d+)*)", re.MULTILINE)


def obtain(release: str) -> tuple[str, Path]:
    """Return the plugin's version and binary, from the cache if it is there. DownloadError."""
    directory = archive.cache_directory("cni") / release
    if not (directory / "version").exists():
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        opened = Archive.opened(release, directory / "apt")
        version = _UPSTREAM.search(opened.record(PACKAGE))
        if version is None:
            raise DownloadError(f"{release} says no version of {PACKAGE}")
        for package in opened.download([PACKAGE]):
            archive.unpack(package, directory / "root")
        shutil.rmtree(opened.directory)
        (directory / "version").write_text(version.group(1))
    return (directory / "version").read_text(), directory / "root" / PLUGIN
