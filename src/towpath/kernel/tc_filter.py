# SPDX-License-Identifier: Apache-2.0
"""A program at tc's ingress by way of a classic filter, for kernels without TCX (before 6.6).

The clsact qdisc holds BPF filters in direct-action mode. Such a filter stays when the process that
made it ends: there is nothing to pin, so pinning names the program, by whose id the filter is found
again.
"""

from __future__ import annotations

import errno as errnos
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from towpath.kernel import bpffs
from towpath.kernel.errors import CAP_NET_ADMIN, KernelError, permission_hint
from towpath.kernel.libbpf import ProgInfo, get_info
from towpath.kernel.netlink import connected, device_name, netlink_error
from towpath.kernel.programs import Program

_INGRESS = 0xFFFFFFF2  # TC_H_CLSACT, TC_H_MIN_INGRESS
_CLSACT = 0xFFFFFFF1
_ETH_P_ALL = 0x0003
_HANDLE = 1
_PRIORITY = 49152  # what tc picks for the first filter; those of an administrator come before


class TcFilter:
    """A classic BPF filter, with the methods of `links.Link`.

    ``close`` leaves it attached, as nothing else holds it. A context manager, which detaches.
    """

    mode = "clsact"

    def __init__(self, ifindex: int, priority: int, program_fd: int) -> None:
        self.ifindex = ifindex
        self._priority = priority
        self._fd = program_fd

    @classmethod
    def from_pin(cls, path: Path | str) -> Self:
        """The filter whose program is pinned at ``path``. KernelError: no device has one."""
        fd = bpffs.open_pin(path, "prog")
        try:
            ifindex, priority = _find(get_info(fd, ProgInfo(), f"ask for {path}").id)
        except BaseException:
            os.close(fd)
            raise
        return cls(ifindex, priority, fd)

    @property
    def program_id(self) -> int:
        """The id of the program that is attached now."""
        return int(get_info(self._fd, ProgInfo(), "ask for a filter's program").id)

    def update(self, program: Program) -> None:
        """Replace the program; no packet goes by in between. A pin keeps naming the old one."""
        _request("replace", self.ifindex, program, self._priority)
        os.close(self._fd)
        self._fd = os.dup(program.fd)

    def pin(self, path: Path | str) -> None:
        """Name the program in a BPF file system. KernelError."""
        bpffs.pin(self._fd, path, f"the filter on {device_name(self.ifindex)}")

    def detach(self) -> None:
        """Remove the filter, which may be gone with its device. Twice is once."""
        if self._fd < 0:
            return
        with connected() as netlink:
            try:
                netlink.tc(
                    "del-filter",
                    "bpf",
                    self.ifindex,
                    handle=_HANDLE,
                    parent=_INGRESS,
                    prio=self._priority,
                    protocol=_ETH_P_ALL,
                )
            except netlink_error() as error:
                if error.code not in (errnos.ENOENT, errnos.ENODEV, errnos.EINVAL):
                    raise _error("remove a filter from", self.ifindex, error.code) from error
        self.close()

    def close(self) -> None:
        """Let go of the filter, which stays. Twice is once."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.detach()


def attach(program: Program, ifindex: int) -> TcFilter:
    """Attach to a device's tc ingress, making its clsact qdisc if need be. KernelError."""
    with connected() as netlink:
        try:
            netlink.tc("add", "clsact", ifindex)
        except netlink_error() as error:
            if error.code != errnos.EEXIST:
                raise _error("make a clsact qdisc on", ifindex, error.code) from error
    priority = _free_priority(ifindex)
    _request("add", ifindex, program, priority)
    return TcFilter(ifindex, priority, os.dup(program.fd))


def _request(verb: str, ifindex: int, program: Program, priority: int) -> None:
    with connected() as netlink:
        try:
            netlink.tc(
                f"{verb}-filter",
                "bpf",
                ifindex,
                handle=_HANDLE,
                fd=program.fd,
                name=program.name,
                parent=_INGRESS,
                prio=priority,
                protocol=_ETH_P_ALL,
                direct_action=True,
            )
        except netlink_error() as error:
            raise _error(f"{verb} a filter on", ifindex, error.code) from error


def _filters(ifindex: int) -> list[tuple[int, int]]:
    """The BPF filters at a device's ingress: priority and program id."""
    with connected() as netlink:
        found = []
        for message in netlink.get_filters(index=ifindex, parent=_INGRESS):
            options = message.get("options")
            number = None if options is None else options.get("id")
            if message.get("kind") == "bpf" and number is not None:
                found.append((message["info"] >> 16, number))
        return found


def _free_priority(ifindex: int) -> int:
    taken = {priority for priority, _ in _filters(ifindex)}
    return next(priority for priority in range(_PRIORITY, 1 << 16) if priority not in taken)


def _find(program_id: int) -> tuple[int, int]:
    with connected() as netlink:
        devices = [message["index"] for message in netlink.get_links()]
    for ifindex in devices:
        for priority, number in _filters(ifindex):
            if number == program_id:
                return ifindex, priority
    raise KernelError(f"no device has a filter with program {program_id}")


def _error(what: str, ifindex: int, number: int) -> KernelError:
    hint = permission_hint(CAP_NET_ADMIN) if number == errnos.EPERM else ""
    return KernelError(f"{what} {device_name(ifindex)}", number, hint)
