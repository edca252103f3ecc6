# SPDX-License-Identifier: Apache-2.0
"""All network namespaces that can be found: named ones, and those of processes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAMED = Path("/run/netns")
_PROCESSES = Path("/proc")


def namespaces() -> list[Path]:
    """A path for each network namespace but the caller's own, as far as they can be seen.

    A namespace that nothing but an open file keeps isn't found.
    """
    seen = {_identity(Path("/proc/thread-self/ns/net"))}
    found = []
    for path in _paths():
        identity = _identity(path)
        if identity is not None and identity not in seen:
            seen.add(identity)
            found.append(path)
    return found


def _paths() -> Iterator[Path]:
    if _NAMED.is_dir():
        yield from sorted(_NAMED.iterdir())
    for process in _PROCESSES.iterdir():
        if process.name.isdigit():
            yield process / "ns" / "net"


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:  # it has just ended, or isn't ours to see
        return None
    return found.st_dev, found.st_ino
