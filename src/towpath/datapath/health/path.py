# SPDX-License-Identifier: Apache-2.0
"""The way of health checks: connections of this node's own, sent as a client's packets are.

A socket is bound to an address of the node, its end is written down in ``health_probes``
together with the backend, and then it is connected to the VIP. Its packets carry a mark
that routes them to the loopback device, where ``bpf/health/egress.h`` encapsulates them. The
answers come from the VIP to the node's address, and the kernel finds the socket by itself.

Where clients' packets are translated the backend is asked for itself, which needs none of
that: such a packet differs in nothing from one of this node's own.
"""

from __future__ import annotations

import logging
import socket
import struct
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from towpath.datapath.address import family, pack
from towpath.datapath.errors import DatapathError
from towpath.datapath.health.local_sources import LocalSources, is_local
from towpath.datapath.lb.encap import Encaps
from towpath.datapath.lb.outer_source import Vips, node_address
from towpath.kernel.bpf.links import attach_tc_egress
from towpath.kernel.errors import KernelError
from towpath.kernel.net import rules
from towpath.kernel.net.own_routes import preferred_source, stays_here

if TYPE_CHECKING:
    from collections.abc import Iterable

    from towpath.datapath.address import Address
    from towpath.datapath.health.asked import Asked
    from towpath.datapath.health.foreign import Foreign
    from towpath.datapath.program.attachment import Attachment
    from towpath.datapath.program.program import LoadedProgram
    from towpath.datapath.program.switches import Switches
    from towpath.kernel.bpf import links
    from towpath.kernel.net.devices import Devices
    from towpath.model.service import Forwarding, Tunnel
    from towpath.model.snat import Snat

log = logging.getLogger(__name__)

LOOPBACK = 1
# Of the rule and the table of routes; a rule for marks stands before those of most others.
TABLE = 0x7470
PRIORITY = 747

# Of an IPv6 link's smallest MTU, 1280, what two IPv6 headers, one of TCP and what a tunnel has
# between leave.
SEGMENT = 1168
_LINGER_NONE = struct.pack("ii", 1, 0)  # struct linger: on, for no time
_PROTOCOLS = {socket.SOCK_STREAM: socket.IPPROTO_TCP, socket.SOCK_DGRAM: socket.IPPROTO_UDP}
_SOCKET_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}


class End(NamedTuple):
    """The end of a check's connection on this node."""

    address: Address
    port: int
    protocol: int


class HealthPath:
    """Makes connections that go to a backend in the way of clients' packets.

    ``attachment`` has the load balancer's devices, of all ``devices``; ``snat`` says what clients
    are translated to, ``foreign`` are other programs' checks. Nothing is attached, routed or set
    before `open`; `close` undoes it.
    `connection` may be called from another thread than the rest.
    """

    def __init__(
        self,
        program: LoadedProgram,
        attachment: Attachment,
        devices: Devices,
        switches: Switches,
        *,
        mark: int,
        foreign: Foreign,
        snat: Snat,
    ) -> None:
        self.foreign = foreign
        self._program = program
        self._snat = snat
        self._probes = program.maps["health_probes"]
        self._attachment = attachment
        self._devices = devices
        self._mark = mark
        self._encaps = Encaps(program.constant)
        self._attached: links.Attachment | None = None
        self._local_sources = LocalSources(devices, switches)
        self._own: dict[int, Address | None] = {}
        self._vips: frozenset[Address] = frozenset()
        self._others: frozenset[Address] = frozenset()
        self.repairs = 0
        """How often something was put back that others had taken away."""

    def open(self, vips: Iterable[Address], others: Iterable[Address] = ()) -> None:
        """Get ready for checks of these VIPs. May be called again. KernelError.

        ``others``: VIPs that only other programs may check.
        """
        self._vips, self._others = frozenset(vips), frozenset(others)
        if self._attached is None:
            self._attach()
        self._devices.read()
        self.follow()

    def follow(self) -> None:
        """Be ready still, as devices, addresses and rules are now. KernelError."""
        if self._attached is None:
            return
        self._look_after(self._attached)
        indexes = [
            each for index in self._attachment.devices for each in self._devices.entrances(index)
        ]
        known = self._vips | self._others
        addresses, vips = self._devices.addresses(indexes), Vips(known)
        self._own = {version: node_address(addresses, version, vips) for version in (4, 6)}
        if self._attachment.devices and self.foreign.follow(self._first(), self._own, known):
            self._tell("the rule or route for marks of foreign checks was removed")
        self._local_sources.allow(indexes if self._answered_here() else ())

    def _answered_here(self) -> bool:
        """Whether answers come from addresses of this node's own. Of ``others`` there are many."""
        if any(isinstance(vip, IPv4Address) and is_local(vip) for vip in self._vips):
            return True
        own = (each.interface.ip for each in self._devices.addresses())
        return any(isinstance(each, IPv4Address) and each in self._others for each in own)

    def _look_after(self, attached: links.Attachment) -> None:
        """Put back what others have taken away, such as a rule that a network manager doesn't know.

        KernelError.
        """
        program = self._program.object.programs["towpath_health"]
        if attached.program_id != program.id or not attached.attached:
            self._tell("the program of health checks on lo was detached or replaced")
            attached.detach()
            self._attached = attach_tc_egress(program, LOOPBACK)
        for vip in {each.version: each for each in self._vips}.values():
            if not stays_here(vip, self._mark):
                self._tell(f"the rule or route for mark {self._mark} was removed")
                rules.to_loopback(self._mark, TABLE, PRIORITY)
                break

    def _tell(self, what: str) -> None:
        self.repairs += 1
        log.warning("%s by somebody else; it is put back", what)

    def _attach(self) -> None:
        # The program before the routes: without it packets would end up on this node.
        program = self._program.object.programs["towpath_health"]
        attached = attach_tc_egress(program, LOOPBACK)
        try:
            rules.to_loopback(self._mark, TABLE, PRIORITY)
            self.foreign.open()
        except BaseException:
            attached.detach()
            raise
        self._attached = attached

    def close(self) -> None:
        """Detach, and route nothing by the mark any more. Twice is once."""
        if self._attached is not None:
            for undo in (self._unroute, self.foreign.close, self._attached.detach):
                try:
                    undo()
                except KernelError as error:
                    log.warning("%s", error)
            self._attached = None
        self._local_sources.restore()

    def _unroute(self) -> None:
        rules.no_longer(self._mark, TABLE, PRIORITY)

    def connection(self, asked: Asked) -> socket.socket:
        """Return a socket whose packets go to the backend as clients' do; not blocking.

        It is to be connected to the VIP, with forwarding snat to the backend, at any port.
        Closing it resets the connection, so that neither end waits for the other.
        DatapathError: the node has no address to be answered at. OSError: no sockets or ports
        are left.
        """
        vip, backend, forwarding, tunnel, datagrams = asked
        translated = forwarding == "snat"
        own = self._translated(backend) if translated else self._source(vip, backend)
        kind = socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM
        made = socket.socket(_SOCKET_FAMILIES[vip.version], kind)
        try:
            made.settimeout(0)
            if not datagrams:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
            if not translated:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark)
                if not datagrams:
                    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
            made.bind((str(own), 0))
            if not translated:
                way = self._way(vip, backend, forwarding)
                end = End(own, made.getsockname()[1], _PROTOCOLS[kind])
                self._write_down(end, backend, way, tunnel)
        except BaseException:
            made.close()
            raise
        return made

    def counters(self) -> dict[str, int]:
        """Packets by what became of them, such as sent or drop_no_route."""
        packets = self._program.rows("health_cpus")["packets"].sum(axis=0)
        return {
            member.name.removeprefix("HEALTH_").lower(): int(packets[int(member)])
            for member in self._program.btf.enum("health_verdict")
            if member.name != "HEALTH_MAX"
        }

    def _translated(self, backend: Address) -> Address:
        """What a client's packets are translated to, if this node can be answered there.

        Backends may let nobody else in.
        """
        ours = self._snat.addresses(backend.version)
        return next(filter(is_local, ours), None) or self._source(backend, backend)

    def _source(self, vip: Address, backend: Address) -> Address:
        """The node's address that backends know the way to: what the route to this one prefers.

        Else one of the devices or of VLANs on them, else what the route to the VIP prefers.
        """
        towards = (backend,) if vip.version == backend.version else ()
        for found in (
            *map(preferred_source, towards),
            self._own.get(vip.version),
            preferred_source(vip),
        ):
            if found and not found.is_link_local and found not in self._vips:
                return found
        raise DatapathError(
            f"no IPv{vip.version} address of this node to check {vip} from: the load balancer's "
            "devices need one that is no VIP"
        )

    def _first(self) -> int:
        """The device that the FIB is asked for, as if a client's packet had come in there."""
        for index in self._attachment.devices:
            return index
        raise DatapathError("none of the load balancer's devices is there")

    def _way(self, vip: Address, backend: Address, forwarding: Forwarding) -> int:
        """How a packet gets there: by ``enum health_way``.

        To this node as its own backend if it has the VIP; if not nobody here has clients' packets.
        """
        if is_local(backend) and is_local(vip):
            return self._program.constant("health_way", "HEALTH_HERE")
        name = "HEALTH_L2" if forwarding == "l2" else "HEALTH_TUNNEL"
        return self._program.constant("health_way", name)

    def _write_down(self, end: End, backend: Address, way: int, tunnel: Tunnel) -> None:
        own = end.address
        key: Any = np.zeros((), self._probes.key_dtype)
        key["addr"]["word"] = np.frombuffer(pack(own), ">u4")
        key["port"], key["protocol"], key["family"] = end.port, end.protocol, family(own)
        value: Any = np.zeros((), self._probes.value_dtype)
        value["to"]["addr"]["word"] = np.frombuffer(pack(backend), ">u4")
        value["to"]["family"] = family(backend)
        value["ifindex"], value["family"] = self._first(), family(own)
        value["way"], value["encap"] = way, self._encaps.word(tunnel)
        self._probes.update(key, value)
