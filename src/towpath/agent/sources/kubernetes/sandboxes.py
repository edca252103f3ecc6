# SPDX-License-Identifier: Apache-2.0
"""Addresses that pods' sandboxes were given, before a process of the pod runs.

Container runtimes keep what CNI plugins have answered (libcni's cache): a file for each sandbox and
network, written when all plugins are done, whose arguments name the pod. The API server knows the
addresses some tenths of a second later, when the pod may have sent already.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from contextlib import suppress
from ipaddress import ip_interface
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from towpath.core.kubernetes.addresses import read_unicast
from towpath.kernel.directory_watch import DirectoryWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from towpath.model.kinds import Address

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""Whatever is told, the directory is looked at so often."""
_UID = "K8S_POD_UID"


class _Ip(msgspec.Struct):
    address: str = ""


class _OldIp(msgspec.Struct):
    ip: str = ""


class _Result(msgspec.Struct):
    ips: list[_Ip] | None = None
    ip4: _OldIp | None = None
    ip6: _OldIp | None = None


class _Cached(msgspec.Struct, rename="camel"):
    container_id: str = ""
    cni_args: list[list[str]] | None = None
    result: _Result | None = None


class Placed(NamedTuple):
    """What one file says."""

    uid: str
    container: str
    addresses: tuple[Address, ...]


def read(text: bytes) -> Placed | None:
    """Read a file of the cache; None: it is of no pod. MsgspecError: it is something else."""
    found = msgspec.json.decode(text, type=_Cached)
    arguments = {each[0]: each[1] for each in found.cni_args or () if len(each) > 1}
    uid, result = arguments.get(_UID), found.result
    if not uid or result is None:
        return None
    texts = [each.address for each in result.ips or ()]
    texts += [each.ip for each in (result.ip4, result.ip6) if each is not None]
    addresses = []
    for each in texts:
        try:
            address = ip_interface(each).ip
            if not address.is_loopback:  # which the runtime gives to every pod
                addresses.append(read_unicast(str(address)))
        except ValueError:
            log.info("a CNI plugin has given pod %s the address %r, which is none", uid, each)
    return Placed(uid, found.container_id, tuple(addresses))


def by_pod(found: Mapping[float, list[Placed]]) -> dict[str, tuple[Address, ...]]:
    """The addresses of each pod, by UID. ``found``: by when it was written.

    Files of sandboxes that ended in another way than they should stay: of a pod its last sandbox
    counts, and an address is whose file is the last.
    """
    last: dict[str, str] = {}
    owners: dict[Address, str] = {}
    addresses: defaultdict[tuple[str, str], list[Address]] = defaultdict(list)
    for _, placed in sorted(found.items()):
        for each in placed:
            last[each.uid] = each.container
            owners |= dict.fromkeys(each.addresses, each.uid)
            addresses[each.uid, each.container] += each.addresses
    return {
        uid: tuple(each for each in addresses[uid, container] if owners[each] == uid)
        for uid, container in last.items()
    }


class Sandboxes:
    """Follows the directory. ``changed`` is called with what there is, on the event loop."""

    def __init__(
        self, path: Path, changed: Callable[[Mapping[str, tuple[Address, ...]]], None]
    ) -> None:
        self._path, self._changed = path, changed
        self._known: dict[str, tuple[float, Placed | None]] = {}
        self.trouble: str | None = None
        """Why nothing is told; None: it is."""

    async def run(self) -> None:
        """Follow until cancelled."""
        loop = asyncio.get_running_loop()
        wake = asyncio.Event()
        with DirectoryWatch(self._path) as watch:
            loop.add_reader(watch.fileno(), wake.set)
            try:
                while True:
                    wake.clear()
                    watch.drain()
                    watch.renew()
                    self.look()
                    # wait_for() of Python 3.11 may lose that it is cancelled.
                    with suppress(TimeoutError):
                        async with asyncio.timeout(LOOK_SECONDS):
                            await wake.wait()
            finally:
                loop.remove_reader(watch.fileno())

    def look(self) -> None:
        """Look once: at files that are new, or written since."""
        try:
            there = {each.name: each.stat().st_mtime for each in self._path.iterdir()}
            self.trouble = None
        except OSError as error:
            there = {}
            self.trouble = (
                f"{self._path}: {error.strerror}; without it limits of pods begin when the API"
                " server knows their addresses, after they have begun to run"
            )
        before = self._known
        self._known = {}
        for name, written in there.items():
            if name in before and before[name][0] == written:
                self._known[name] = before[name]
            else:
                with suppress(OSError, msgspec.MsgspecError):
                    # It is gone by now, or is being written.
                    text = (self._path / name).read_bytes()
                    self._known[name] = (written, read(text))
        if self._known != before:
            found_: defaultdict[float, list[Placed]] = defaultdict(list)
            for written, placed in self._known.values():
                if placed is not None:
                    found_[written].append(placed)
            self._changed(by_pod(found_))
