# SPDX-License-Identifier: Apache-2.0
"""Services at the sockets of a cgroup's processes, in the script's own process."""

from __future__ import annotations

import errno
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from towpath.datapath.cgroup.root import CgroupRoot
from towpath.datapath.socket import trace
from towpath.datapath.socket.report import Wanted, flows, report, take
from towpath.datapath.socket.report import packets as flows_of_packets
from towpath.datapath.socket.trace import Call
from towpath.kernel.errors import KernelError
from towpath.loadbalancer import LoadBalancer
from towpath.model import Protocol, make_config

if TYPE_CHECKING:
    from collections.abc import Iterable

    from towpath.core.lb.plan import Transition
    from towpath.documents import PacketFlow, Socket, SocketFlow, SocketTrace
    from towpath.model import Address, Drain, Limits

log = logging.getLogger(__name__)


class SocketLoadBalancer(LoadBalancer):
    """A load balancer for the processes of a cgroup: connect() goes straight to a backend.

        with SocketLoadBalancer("/sys/fs/cgroup/app") as lb:
            lb.add_service("web", vip="203.0.113.10", port=80, backends=["192.0.2.11"])
            lb.run()

    It has the methods of LoadBalancer, and no device. When it is closed, or the script ends, it is
    gone without a trace; connections stay. With ``pins`` it works on instead. A backend that is
    removed doesn't wait for sockets: of TCP they stay connected, of UDP they are ended, with an
    error (ECONNABORTED) by which their programs know that they have to connect again.

    Args:
        cgroup: For processes in it, and in those that are in it. None: in those of this node, whose
            cgroup is found (docs/design/cgroups.md).
        limits: Room reserved in the kernel.
        pins: Where to keep it alive. None: it ends with this object.
        drain: How backends that are removed keep the flows they have.
        exclude: Cgroups whose processes are left alone.
        refuse_with: errno of calls to a service without a backend; before Linux 5.18 it is EPERM.
        packets: Devices of pods whose connect() never runs on this node (gVisor, Kata, VMs), such
            as ``["tap*"]``: their packets are translated.

    Raises:
        ConfigError: A value that isn't allowed.
        KernelError: ``cgroup`` is none, something there lets no other be beside it, no permission,
            ``pins`` are another process's.
    """

    def __init__(
        self,
        cgroup: Path | str | None = None,
        *,
        limits: Limits | None = None,
        pins: Path | None = None,
        drain: Drain | None = None,
        exclude: Iterable[Path | str] = (),
        refuse_with: int = errno.ECONNREFUSED,
        packets: Iterable[str] = (),
    ) -> None:
        devices = [*packets]
        wishes = {
            "limits": limits,
            "drain": drain,
            "socket": {"packets": {"devices": devices}} if devices else None,
        }
        config = make_config({name: wish for name, wish in wishes.items() if wish is not None})
        section = config.sections.get("socket")
        with ExitStack() as undo:
            self._start(config, pins, bare=True)
            undo.callback(super().close)
            self._root = undo.enter_context(CgroupRoot(None if cgroup is None else Path(cgroup)))
            self._sockets = self._balancer.sockets(
                self._root,
                pins and pins / "socket",
                exclude=[Path(each) for each in exclude],
                refuse_with=0 if refuse_with == errno.EPERM else refuse_with,
                packets=section.packets if section is not None else None,
            )
            self._balancer.tell(self._end_stale)
            undo.pop_all()

    def _end_stale(self, _: Transition | None = None) -> None:
        try:
            self._sockets.end_stale()
        except KernelError as error:
            log.warning("stale sockets can't be found: %s", error)

    def follow(self) -> tuple[str, ...]:
        """Attach and pin again what others have undone; returns what is wrong and stays so.

        Sockets are ended that were connecting to a backend while it was removed.
        """
        with self._lock:
            self._sockets.follow()
            self._end_stale()
            return (*super().follow(), *self._sockets.troubles)

    def socket(self) -> Socket:
        """Its cgroup, who is at the hooks, and what was counted."""
        return report(self._sockets, take(self._sockets), self._root.prove())

    def socket_flows(
        self,
        *,
        service: str | None = None,
        backend: Address | None = None,
        protocol: str | None = None,
        connected: bool | None = None,
        netns: int | None = None,
        limit: int = 1000,
    ) -> tuple[SocketFlow, ...]:
        """Sockets that talk to services, of all network namespaces: `Client.socket_flows`."""
        wanted = Wanted(service, backend, protocol, connected, netns)
        return tuple(flows(self._sockets, wanted, limit))

    def packet_flows(
        self,
        *,
        service: str | None = None,
        backend: Address | None = None,
        protocol: str | None = None,
        limit: int = 1000,
    ) -> tuple[PacketFlow, ...]:
        """Flows of pods at the devices of ``packets``: those of `Client.socket_flows`."""
        return tuple(flows_of_packets(self._sockets, Wanted(service, backend, protocol), limit))

    def socket_trace(
        self, address: Address, port: int, protocol: str = "tcp", *, socket: int = 0
    ) -> SocketTrace:
        """Where a connect() or a datagram would go, and why. ``socket``: the socket's cookie."""
        return trace.trace(self._sockets, Call(address, port, Protocol(protocol), socket=socket))

    def detach(self) -> None:
        """Take everything out of the kernel, pins too."""
        self._sockets.detach()
        super().detach()

    def close(self) -> None:
        """Remove everything; with pins, leave it at work. Twice is once."""
        self._sockets.close()
        self._root.close()
        super().close()
