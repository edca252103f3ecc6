# SPDX-License-Identifier: Apache-2.0
"""Kernels from a Debian archive: found, unpacked, cached."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tools.debian import archive
from tools.debian.archive import Archive, DownloadError

if TYPE_CHECKING:
    from pathlib import Path

    from tools.kernels.supported import Kernel

_PARTS = re.compile(r"linux-(image|binary|modules)-\S*cloud-amd64\S*")


@dataclass(frozen=True, slots=True)
class Image:
    """An unpacked kernel. ``release`` is what `uname -r` says in it."""

    root: Path
    release: str

    @property
    def kernel(self) -> Path:
        """The bootable image."""
        for path in (self.root / f"boot/vmlinuz-{self.release}", self.modules / "vmlinuz"):
            if path.exists():
                return path
        raise DownloadError(f"no kernel image below {self.root}")

    @property
    def modules(self) -> Path:
        """The directory of its modules."""
        return self.root / "lib/modules" / self.release


def obtain(kernel: Kernel) -> Image:
    """Return an unpacked kernel, from the cache if it is there. DownloadError: it can't be had."""
    directory = archive.cache_directory("kernels") / kernel.name
    unpacked = directory / "root"
    if not (directory / "complete").exists():
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        opened = Archive.opened(kernel.release, directory / "apt")
        for package in opened.download(_parts(kernel, opened)):
            archive.unpack(package, unpacked)
        shutil.rmtree(opened.directory)
        _merge_usr(unpacked)
        archive.run("depmod", "-b", unpacked, _release(unpacked))
        (directory / "complete").touch()
    return Image(unpacked, _release(unpacked))


def _parts(kernel: Kernel, opened: Archive) -> list[str]:
    """Return the packages that image and modules are split into, with their versions."""
    wanted, found = [kernel.package], []
    while wanted:
        name = wanted.pop()
        record = opened.record(name)
        depends = re.search(r"^Depends: (.*)$", record, re.MULTILINE)
        names = [match.group() for match in _PARTS.finditer(depends.group(1) if depends else "")]
        wanted += [each for each in names if each not in found and each not in wanted]
        if re.match(r"linux-\w+-\d", name):
            found.append(f"{name}={kernel.version}" if kernel.version else name)
    return found


def _merge_usr(root: Path) -> None:
    """Newer packages have usr/lib/modules only."""
    if not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")


def _release(root: Path) -> str:
    (only,) = (root / "lib/modules").iterdir()
    return only.name
