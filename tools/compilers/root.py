# SPDX-License-Identifier: Apache-2.0
"""A compiler's root: its packages and all that they depend on, unpacked, and nothing set up.

Kept between runs. After a week the archive is asked again, and what has a new version there is
unpacked in the old one's place. While the archive can't be had, what is there goes on being used.
"""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tools.debian.archive import Archive, DownloadError, cache_directory, unpack

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tools.compilers.supported import Compiler

DAYS = 7
# An archive that is being updated has lists for a moment whose packages are not there.
_TRIES = 2
# What is in packages of before /bin and /lib were links into /usr goes where it is found now.
_MERGED = ("bin", "lib", "lib64", "sbin")
_RECORD = "packages.json"


@dataclass(frozen=True, slots=True)
class Root:
    """One that is unpacked."""

    path: Path
    versions: dict[str, str]
    """Of each package."""
    newest: int
    """The newest major of clang that the same archive had."""
    days: float
    """Since the archive was asked."""
    trouble: str = ""
    """Why the archive could not be asked again; empty: it need not, or could."""


@contextmanager
def obtained(compiler: Compiler, *, fresh: bool = False) -> Iterator[Root]:
    """Return a compiler's root, which no other process uses in the block.

    ``fresh``: whatever is kept. DownloadError: nothing is kept, and the archive can't be had.
    """
    place = cache_directory("compilers") / compiler.name
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in place.parent.glob(f"{place.name}-*"):
            shutil.rmtree(left)  # by a run that was killed
        yield _obtain(compiler, place, fresh=fresh)


def _obtain(compiler: Compiler, place: Path, *, fresh: bool) -> Root:
    found = kept(place)
    if found and not fresh and found.days < DAYS:
        return found
    for tries in range(_TRIES):
        try:
            return _unpacked(compiler, place, None if fresh else found)
        except DownloadError as error:
            if tries + 1 < _TRIES:
                continue
            if found is None:
                raise
            found = replace(found, trouble=str(error))
    assert found  # noqa: S101 - or it was raised
    return found


def kept(place: Path) -> Root | None:
    """Return what was unpacked there."""
    record = place / _RECORD
    if not record.exists():
        return None
    days = (time.time() - record.stat().st_mtime) / 86400
    return Root(path=place / "root", days=days, **json.loads(record.read_text()))


def _unpacked(compiler: Compiler, place: Path, before: Root | None) -> Root:
    """Ask the archive; what it has is unpacked unless it is what was there ``before``."""
    with TemporaryDirectory(dir=place.parent, prefix=f"{place.name}-") as name:
        archive = Archive.opened(compiler.distribution.name, Path(name, "apt"))
        versions = archive.versions(compiler.packages)
        if before is None or before.versions != versions:
            new = Path(name, "new")
            _fill(new / "root", archive.download_all(compiler.packages))
            shutil.rmtree(place, ignore_errors=True)
            new.rename(place)
        newest = _newest(archive)
    record = {"versions": versions, "newest": newest}
    (place / _RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    return Root(place / "root", versions, newest, 0)


def _newest(archive: Archive) -> int:
    return max(int(m[1]) for name in archive.names() if (m := re.fullmatch(r"clang-(\d+)", name)))


def _fill(root: Path, packages: list[Path]) -> None:
    for name in _MERGED:
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for package in packages:
        unpack(package, root)
    (root / "tmp").mkdir(exist_ok=True)
