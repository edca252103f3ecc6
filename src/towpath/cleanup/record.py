# SPDX-License-Identifier: Apache-2.0
"""What was taken out and how it comes back, for whoever does that: on disk, of this boot only."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from towpath.core.kube_proxy.iptables import Jump
from towpath.core.kube_proxy.served import Served

if TYPE_CHECKING:
    from collections.abc import Sequence

DIRECTORY = Path("/var/lib/towpath/kube-proxy")
Phase = Literal["unhooked", "confirmed", "released"]
"""Nothing is deleted; all is but our own table; that is to go as well, and isn't made again."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_NETNS = Path("/proc/self/ns/net")


@dataclass(slots=True)
class Record:
    """A clean-up that has begun."""

    phase: Phase
    deadline: float
    """By the clock that also runs while the machine sleeps: when all is put back."""
    families: list[str] = field(default_factory=list)
    """Of nftables' tables."""
    jumps: dict[str, list[Jump]] = field(default_factory=dict)
    """Of iptables, by program."""
    served: list[Served] = field(default_factory=list)
    """What kube-proxy served: whose connections are waited for."""

    def write(self, directory: Path) -> None:
        """Put it on disk, whole or not at all."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        plain = asdict(self)
        plain["served"] = [[str(each.address), *each[1:]] for each in self.served]
        new = directory / ".record"
        with new.open("w") as file:
            json.dump(plain | _where(), file)
            file.flush()
            os.fsync(file.fileno())
        new.replace(directory / "record")


def read(directory: Path) -> Record | None:
    """What is on disk; None: nothing, or of another boot or network namespace."""
    try:
        plain: dict[str, Any] = json.loads((directory / "record").read_text())
    except FileNotFoundError:
        return None
    if any(plain.pop(key) != value for key, value in _where().items()):
        return None
    jumps = {name: [Jump(*each) for each in of] for name, of in plain.pop("jumps").items()}
    served = [Served(ip_address(each[0]), *each[1:]) for each in plain.pop("served")]
    return Record(**plain, jumps=jumps, served=served)


def remove(directory: Path) -> None:
    """Nothing is to be put back any more."""
    (directory / "record").unlink(missing_ok=True)


def now() -> float:
    """By the clock of deadlines."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def addresses(served: Sequence[Served]) -> set[tuple[Any, int, str]]:
    """What tracked connections are compared with."""
    return {(each.address, each.port, each.protocol) for each in served}


def _where() -> dict[str, str]:
    return {"boot": _BOOT.read_text().strip(), "netns": str(_NETNS.readlink())}
