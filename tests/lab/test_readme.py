# SPDX-License-Identifier: Apache-2.0
"""What the README shows works as it stands there."""

from __future__ import annotations

import ast
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack, closing, contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_balancer import ip, state, wait_for_run

import towpath
from towpath.datapath.observe.testpackets import packet
from towpath.kernel.bpf.links import attach_xdp, xdp_mode
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.net.interfaces import device_index
from towpath.kernel.net.netns import new_netns
from towpath.model import FlowTuple, parse_config

if TYPE_CHECKING:
    from collections.abc import Iterator

README = Path(__file__).resolve().parents[2] / "README.md"
MAX_LINES = 19

# What the script speaks of: its device, with an address in the backends' network.
NETWORK = """
link set lo up
link add eth0 address 02:00:00:00:00:01 type veth peer name wire
link set eth0 up
link set wire up
address add 192.0.2.1/24 dev eth0
address add 2001:db8::1/64 dev eth0 nodad
neighbour add 192.0.2.11 lladdr 02:00:00:00:00:11 dev eth0
neighbour add 192.0.2.12 lladdr 02:00:00:00:00:12 dev eth0
neighbour add 2001:db8::11 lladdr 02:00:00:00:01:11 dev eth0
neighbour add 2001:db8::12 lladdr 02:00:00:00:01:12 dev eth0
"""


def blocks(language: str, section: str = "") -> list[str]:
    """The code blocks of a language, in all of the README or below one heading."""
    text = README.read_text()
    if section:
        text = text.split(f"\n## {section}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


EVERYTHING = 3  # ETH_P_ALL
MAC = bytes.fromhex("020000000001")
ETHERTYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}

SCRIPT = blocks("python", "In Python")[0]


@contextmanager
def network() -> Iterator[socket.socket]:
    """A namespace with the script's device; gives the other end of its wire."""
    with new_netns(), BpfObject.packaged("lab_pass") as passing:
        ip(NETWORK)
        passing.load()
        # A veth takes what XDP sends back only while it has a program itself.
        with attach_xdp(passing.programs["pass"], device_index("wire"), "native"):
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERYTHING))
            with closing(wire):
                wire.bind(("wire", EVERYTHING))
                wire.settimeout(60)
                yield wire


@contextmanager
def running(script: Path) -> Iterator[subprocess.Popen[str]]:
    """A script, killed afterwards if it hasn't ended."""
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=script.parent,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def balanced(wire: socket.socket, flow: FlowTuple) -> IPv4Address | IPv6Address:
    """Send a flow's first packet; the backend that it comes back for, in a tunnel."""
    inner, version = packet(flow), flow.destination.version
    wire.send(MAC + bytes(6) + ETHERTYPES[version] + inner)
    while True:
        # Whatever else there is on the wire, and the packet itself on its way out.
        outer, tunnelled, rest = wire.recv(2048).partition(inner)
        if tunnelled and len(outer) > 14:
            assert (outer[12:14], rest) == (ETHERTYPES[version], b"")
            return ip_address(outer[-4:] if version == 4 else outer[-16:])


def flows(destination: str, protocol: str) -> list[FlowTuple]:
    """Flows of one client to a service."""
    client = "[2001:db8:7::1]" if "[" in destination else "198.51.100.7"
    return [
        FlowTuple.parse(f"{client}:{port} -> {destination} {protocol}")
        for port in range(40000, 40064)
    ]


def test_the_script_is_short() -> None:
    """A complete load balancer in under 20 lines."""
    assert SCRIPT.count("\n") <= MAX_LINES


def test_the_script_balances_until_ctrl_c(tmp_path: Path) -> None:
    """Exactly that text: real packets go to the backends, by weight; then nothing is left."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with ExitStack() as stack:
        wire = stack.enter_context(network())
        before = state("eth0")
        process = stack.enter_context(running(script))
        wait_for_run(process)
        assert xdp_mode(device_index("eth0")) == "native"
        web = Counter(balanced(wire, flow) for flow in flows("203.0.113.10:80", "tcp"))
        dns = Counter(balanced(wire, flow) for flow in flows("[2001:db8:53::1]:53", "udp"))
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=120)
        assert (process.returncode, errors) == (0, "")
        assert state("eth0") == before
    assert {str(address) for address in web} == {"192.0.2.11", "192.0.2.12"}
    assert output.strip() in {str(address) for address in web}
    # Weights of 3 and 1; these flows and no others, so it is the same every time.
    assert [str(address) for address, _ in dns.most_common()] == ["2001:db8::11", "2001:db8::12"]
    assert dns.most_common()[0][1] > 2 * dns.most_common()[1][1]


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_every_script_compiles(number: int) -> None:
    """And what it imports from Towpath is there."""
    tree = ast.parse(blocks("python")[number])
    names = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "towpath"
        for alias in node.names
    ]
    assert names
    assert all(hasattr(towpath, name) for name in names)


@pytest.mark.parametrize("number", range(len(blocks("yaml"))))
def test_every_configuration_is_allowed(number: int) -> None:
    """By the parser that the agent reads its file with."""
    config = parse_config(blocks("yaml")[number], "README.md")
    assert config.devices
    assert config.services


def test_there_are_both() -> None:
    """The pattern finds what it looks for."""
    assert len(blocks("python")) >= 2
    assert blocks("yaml")
