# SPDX-License-Identifier: Apache-2.0
"""A node with pods and two ways out, and masquerade's programs to be run on packets there."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scapy.layers.l2 import Ether

from towpath.datapath.masquerade.program import MasqueradeProgram
from towpath.datapath.masquerade.route_sources import RouteSources
from towpath.datapath.masquerade.tables import PrefixTable, Sources, read_counts
from towpath.kernel.bpf import probe
from towpath.kernel.bpf.probe_fib import fib_lookup
from towpath.kernel.net import interfaces
from towpath.kernel.net.devices import Devices
from towpath.kernel.net.netns import in_netns, new_netns
from towpath.model.masquerade import Rule, Section

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from scapy.packet import Packet

    from towpath.kernel.bpf.programs import TestRun

LIMIT = 30.0  # seconds; ends a hang
UNSPEC, SHOT, REDIRECT = 0xFFFFFFFF, 2, 7  # TC_ACT_*

POD, OTHER_POD, POD6 = "10.244.0.2", "10.244.0.3", "fd00:1::2"
REMOTE, REMOTE6 = "203.0.113.9", "2001:db8:9::9"
WAN, WAN6, LAN, SECOND = "192.168.0.1", "2001:db8:1::1", "10.0.0.1", "10.0.0.5"
POD_MAC, GATEWAY_MAC, LAN_MAC = "02:00:00:00:00:02", "02:00:00:00:01:fe", "02:00:00:00:02:64"
RULES = (
    Rule(
        ("cni0",),
        (ip_network("10.244.0.0/24"), ip_network("fd00:1::/64")),
        (ip_network("10.9.9.0/24"), ip_network("2001:db8:99::/48")),
    ),
)
SECTION = Section(rules=RULES, flows=4096)
_SKB = 192  # sizeof(struct __sk_buff)


def ip_batch(text: str) -> None:
    """Run iproute2's commands, a line each."""
    subprocess.run(["ip", "-batch", "-"], input=text, text=True, check=True, timeout=LIMIT)


NODE = f"""
addr add 10.244.0.1/24 dev cni0
addr add fd00:1::1/64 dev cni0 nodad
addr add {WAN}/24 dev wan
addr add {WAN6}/64 dev wan nodad
addr add {LAN}/24 dev lan
addr add {SECOND}/24 dev lan
link set cni0 up
link set wan up
link set lan up
neigh replace {POD} lladdr {POD_MAC} nud permanent dev cni0
neigh replace {OTHER_POD} lladdr {POD_MAC} nud permanent dev cni0
neigh replace {POD6} lladdr {POD_MAC} nud permanent dev cni0
neigh replace 192.168.0.254 lladdr {GATEWAY_MAC} nud permanent dev wan
neigh replace 2001:db8:1::fe lladdr {GATEWAY_MAC} nud permanent dev wan
neigh replace 10.0.0.100 lladdr {LAN_MAC} nud permanent dev lan
route replace default via 192.168.0.254
route replace default via 2001:db8:1::fe
route replace 10.8.0.0/16 via 10.0.0.100 src {SECOND}
route replace blackhole 10.7.0.0/16
"""


@contextmanager
def node() -> Iterator[None]:
    """Have the calling thread in a namespace with cni0 (pods), wan and lan."""
    with ExitStack() as undo:
        inner, outer = undo.enter_context(new_netns()), undo.enter_context(new_netns())
        undo.enter_context(in_netns(outer))
        for name in ("cni0", "wan", "lan"):
            netns = f"/proc/{os.getpid()}/fd/{inner}"
            ip_batch(
                f"link add p-{name} type veth peer name {name} netns {netns}\nlink set p-{name} up"
            )
        undo.enter_context(in_netns(inner))
        for family in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path("/proc/sys/net", family).write_text("1", encoding="ascii")
        ip_batch(f"link set lo up\n{NODE}")
        yield


@dataclass(frozen=True)
class Run:
    """What became of a packet."""

    action: int
    data: bytes
    moved: dict[str, int]
    """Counters of the program's verdicts that have moved, and "bound"."""

    @property
    def packet(self) -> Packet:
        """As scapy reads it."""
        return Ether(self.data)


class Rig:
    """The loaded programs, with tables as the agent fills them."""

    def __init__(self, section: Section = SECTION) -> None:
        named = fib_lookup().source
        self.program = MasqueradeProgram(section, sources=named)
        self.index = {name: socket.if_nametoindex(name) for name in ("cni0", "wan", "lan")}
        maps = self.program.maps
        pods = {
            (self.index["cni0"], prefix): 0 for rule in section.rules for prefix in rule.prefixes
        }
        PrefixTable(maps["masq_pods4"], maps["masq_pods6"]).replace(pods)
        spared = {
            (0, prefix): 1
            for rule in section.rules
            for prefix in (*rule.prefixes, *(rule.exclude or ()))
        }
        PrefixTable(maps["masq_spared4"], maps["masq_spared6"]).replace(spared)
        self.sources = Sources(self.program)
        self.sources.sync(
            ip_address(each) for each in (WAN, LAN, SECOND, WAN6, "10.244.0.1", "fd00:1::1")
        )
        self._named = named
        self.follow_routes()
        for name in self.index:
            self.device(name)
        self._before = read_counts(self.program)

    def follow_routes(self) -> None:
        """Read the routes, where the kernel's FIB doesn't tell which source they prefer."""
        if not self._named:
            with RouteSources(self.program) as routes, Devices() as devices:
                routes.sync(self.sources, devices.addresses())

    def alike(self, bits: int) -> None:
        """Say which flows all go one way: enum masquerade_alike."""
        state = self.program.maps["masq_states"].lookup(0)
        state["alike"] = bits
        self.program.maps["masq_states"].update(0, state)

    def device(self, name: str, *, ethernet: bool = True, peer: bool = False) -> None:
        """Say what a device is."""
        record = np.zeros((), self.program.maps["masq_devices"].value_dtype)
        record["flags"] = ethernet * 1 | peer * 2
        record["mtu"] = 1500
        none = self.sources.none
        wan = name == "wan"
        record["source4"] = self.sources.by_address[ip_address(WAN)] if wan else none
        record["source6"] = self.sources.by_address[ip_address(WAN6)] if wan else none
        self.program.maps["masq_devices"].update(self.index[name], record)

    def run(
        self,
        program: str,
        frame: Packet | bytes,
        device: str,
        *,
        came_by: str | None = None,
        gso_size: int = 0,
    ) -> Run:
        """Run a program on a frame, and see which counters have moved."""
        if came_by and not probe.test_run_context():
            pytest.skip("this kernel runs no program as if its packet had come in by a device")
        ctx = bytearray(_SKB)
        struct.pack_into("=II", ctx, 36, self.index[came_by] if came_by else 0, self.index[device])
        if gso_size:
            struct.pack_into("=I", ctx, 164, 2)
            struct.pack_into("=I", ctx, 176, gso_size)
        done = self.program.programs[f"masq_{program}"].test_run(bytes(frame), ctx=bytes(ctx))
        return Run(done.retval, done.data, self.moved())

    def moved(self) -> dict[str, int]:
        """Which counters have moved since the last look."""
        now = read_counts(self.program)
        moved = {
            f"{program}.{name}": value - self._before[program][name]
            for program, counts in now.items()
            for name, value in counts.items()
            if value != self._before[program][name] and name != "bytes"
        }
        self._before = now
        return moved

    def burst(self, packets: list[Packet]) -> list[TestRun]:
        """Pods' packets come in by cni0, one after the other as fast as can be."""
        frames = [bytes(Ether(src=POD_MAC, dst=mac("cni0")) / each) for each in packets]
        ctx = bytearray(_SKB)
        struct.pack_into("=II", ctx, 36, 0, self.index["cni0"])
        made = self.program.programs["masq_from_pod"]
        return [made.test_run(frame, ctx=bytes(ctx)) for frame in frames]

    def out(self, packet: Packet, **more: Any) -> Run:
        """A pod's packet comes in by cni0."""
        return self.run("from_pod", Ether(src=POD_MAC, dst=mac("cni0")) / packet, "cni0", **more)

    def answer(self, packet: Packet, device: str = "wan", **more: Any) -> Run:
        """A packet comes in from outside."""
        frame = Ether(src=GATEWAY_MAC, dst=mac(device)) / packet
        return self.run("from_net", frame, device, **more)

    def leave(self, packet: Packet, device: str = "wan", **more: Any) -> Run:
        """A packet that came by cni0 is sent by the stack."""
        frame = Ether(src=mac(device), dst=GATEWAY_MAC) / packet
        return self.run("to_net", frame, device, came_by="cni0", **more)

    def inward(self, packet: Packet, came_by: str = "wan") -> Run:
        """A packet that came by another device is sent to a pod by the stack."""
        frame = Ether(src=mac("cni0"), dst=POD_MAC) / packet
        return self.run("to_pod", frame, "cni0", came_by=came_by)

    def close(self) -> None:
        """Unload them."""
        self.program.close()


def mac(device: str) -> str:
    """The MAC address of a device of the node."""
    return interfaces.mac(socket.if_nametoindex(device)).hex(":")
