# SPDX-License-Identifier: Apache-2.0
"""docs/operations.md names all that the code changes on a machine."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from towpath.cli import decap
from towpath.datapath.bandwidth import fq
from towpath.datapath.bandwidth import node as bandwidth
from towpath.datapath.health import path
from towpath.datapath.maps.pins import HOST, LINKS, MAPS, NAMES
from towpath.datapath.masquerade import node as masquerade
from towpath.datapath.neigh import keeper
from towpath.datapath.observe import refused
from towpath.datapath.program import switches, trial
from towpath.datapath.socket.packets import node as packets
from towpath.kernel.bpf import bpffs
from towpath.kernel.net import clsact, sysctl
from towpath.kernel.net.offloads import RX_VLAN
from towpath.model.settings import DEFAULT_MARK, Api, State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.kernel.net.offloads import Offload

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()
CHANGES = PAGE.partition("## What Towpath changes")[2].partition("\n## ")[0]
SOURCE = ROOT / "src" / "towpath"
# These work in namespaces of their own, or only read: the page says so.
ELSEWHERE = {"lab", "bench"}
# Programs that are only run by a call, are iterators, or are attached in a namespace of their own.
NEVER_ATTACHED = {
    "ask_route",
    "has_its_own_word",
    "jiffies",
    "nat_enter",
    "nat_leave",
    "note_stamp",
    "socket_list_notes",
    "socket_list_peers",
    "socket_list_slots",
    "socket_list_udp",
    "socket_trial",
}
SYSCTLS = SOURCE / "kernel" / "net" / "sysctl.py"


def sources() -> Iterator[Path]:
    """The modules that can change something on the machine they run on."""
    for each in sorted(SOURCE.rglob("*.py")):
        if each.relative_to(SOURCE).parts[0] not in ELSEWHERE:
            yield each


def strings(module: Path) -> Iterator[str]:
    """The text constants of a module that are no docstrings."""
    tree = ast.parse(module.read_text())
    lone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in lone:
            yield node.value


@pytest.mark.parametrize("setting", sysctl.WRITTEN, ids=str)
def test_every_setting_is_there(setting: sysctl.Sysctl) -> None:
    """With when and why it is written, and what else it changes."""
    name = re.escape(f"net.{setting.family}.conf.DEVICE.{setting.name}")
    (row,) = re.findall(rf"^\| `{name}` = \d \|(.*)\|$", CHANGES, re.MULTILINE)
    assert all(cell.strip() for cell in row.split("|"))


def test_no_setting_is_there_that_is_never_written() -> None:
    """The page is no longer than the list in the code."""
    found = set(re.findall(r"^\| `net\.(\w+)\.conf\.DEVICE\.(\w+)`", CHANGES, re.MULTILINE))
    assert found == {tuple(each) for each in sysctl.WRITTEN}


@pytest.mark.parametrize("offload", RX_VLAN, ids=str)
def test_every_offload_is_there(offload: Offload) -> None:
    """By the name that the kernel has for it, with when and why it is switched."""
    (row,) = re.findall(rf"^\| `{offload}` [^|]*off \|(.*)\|$", CHANGES, re.MULTILINE)
    assert all(cell.strip() for cell in row.split("|"))


def test_settings_are_of_these_two_kinds() -> None:
    """Whatever is set and set back."""
    assert {*map(str, switches.SETTINGS)} == {*map(str, (*sysctl.WRITTEN, *RX_VLAN))}


def test_settings_are_written_in_one_place() -> None:
    """Nothing else in the code knows a file below /proc/sys, but to read it."""
    known = {
        str(each.relative_to(SOURCE))
        for each in sources()
        if any("/proc/sys" in text or "/sys/class/net" in text for text in strings(each))
    }
    reads = {"cleanup/found.py", "doctor/devices.py", "doctor/masquerade.py"}
    reads.add("kernel/net/conntrack_flows.py")
    boot = {"cleanup/record.py"}  # which boot this is: nothing to be set
    in_namespaces = {"kernel/net/napi.py"}  # for `towpath bench` alone
    assert known == {str(SYSCTLS.relative_to(SOURCE)), *reads, *boot, *in_namespaces}
    assert not any("write" in (SOURCE / each).read_text() for each in reads)
    users = [each.stem for each in sources() if re.search(r"\bnapi\b", each.read_text())]
    assert users == ["napi"]


def test_what_namespaces_have_is_there() -> None:
    """Whatever the code writes that no device has."""
    written = [each for each in vars(sysctl).values() if isinstance(each, sysctl.NamespaceSysctl)]
    assert len(written) == 2
    for each in written:
        assert f"\n| `net.{each.family}.{each.name}`" in CHANGES
    assert "\n| `gso_max_size`" in CHANGES


def test_every_program_that_is_attached_is_there() -> None:
    """By its name in the kernel, which bpftool shows."""
    programs = {
        name
        for source in (ROOT / "bpf").rglob("*.bpf.c")
        if source.parent.name not in {"lab", "bench", "doctor"}
        for name in re.findall(r"^SEC.*\nint (\w+)\(", source.read_text(), re.MULTILINE)
    }
    hooks = "connect", "sendmsg", "recvmsg", "getpeername"
    programs |= {f"socket_{hook}{version}" for hook in hooks for version in (4, 6)}
    assert programs >= {"towpath_lb", "bw_tag", "masq_from_pod", "socket_from_pod"}
    # A name ends with a star for several, and those with 6 are said to be there with those with 4.
    said = re.findall(r"`(\w+\*?)`", CHANGES)
    told = {name for name in programs for each in said if fnmatch(re.sub("6$", "4", name), each)}
    assert programs - told == NEVER_ATTACHED
    attached = {text for each in sources() for text in strings(each)}
    assert {each for each in programs if each.startswith("towpath_")} <= attached


def test_every_tracepoint_is_there() -> None:
    """With the programs that are at it."""
    for program, tracepoint in refused._TRACEPOINTS.items():
        assert f"`{program}`" in CHANGES
        assert f"`{tracepoint}`" in CHANGES


def test_the_trial_is_as_it_is_made() -> None:
    """Its device, and what it sends."""
    assert f"`{trial._NAME.decode()}`" in CHANGES
    assert f"(0x{trial._EXPERIMENTAL.hex()})" in CHANGES


def test_routing_is_as_it_is_made() -> None:
    """Mark, table and priority."""
    assert f"fwmark {DEFAULT_MARK:#x} lookup {path.TABLE} priority {path.PRIORITY}" in CHANGES
    assert f"table {path.TABLE} ({path.TABLE:#x})" in CHANGES


def test_filters_are_as_they_are_made() -> None:
    """Priority and handle, by which `tc filter show` has them."""
    assert f"priority {clsact.PRIORITY}, handle {clsact.HANDLE:#x}" in CHANGES
    for capability in (bandwidth, masquerade, packets):
        assert f"handle {capability.HANDLE:#x}" in CHANGES


def test_the_qdisc_is_as_it_is_made() -> None:
    """By its handle, by which `tc qdisc show` has it."""
    assert f"qdisc `fq`, handle {fq._HANDLE >> 16:x}:" in CHANGES


def test_neighbours_are_as_they_are_made() -> None:
    """By their protocol, which `ip neigh` shows."""
    assert f"`managed extern_learn proto {keeper.PROTOCOL}`" in CHANGES


def test_tables_are_whole() -> None:
    """No row is without a head, which would be shown as text."""
    blocks = re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE)
    assert len(blocks) > 10
    for block in blocks:
        first, second, *_ = block.splitlines()
        assert set(second) <= set("| -"), first


def test_every_place_for_files_is_there() -> None:
    """By its default, and what is in it."""
    state = State()
    for place in (state.directory, state.pins, Api().socket, decap.PINS, bpffs.ROOT):
        assert f"`{place}`" in CHANGES
    for name in (MAPS, LINKS, NAMES, HOST):
        assert f"`{name}`" in CHANGES


def test_nothing_that_the_page_rules_out_is_done() -> None:
    """Other features, qdiscs, interrupts, neighbours, addresses and routes."""
    words = re.compile(
        r"ethtool|SIOCETHTOOL|smp_affinity|netlink\.(?:neigh|addr|tc)\(|link\(\"(?:set|add|del)"
    )
    found = {each.stem for each in sources() if words.search(each.read_text())}
    assert found == {"offloads"}
    writers = {each.stem for each in sources() if "netlink.route" in each.read_text()}
    assert writers == {"rules"}
    # Only the process that checks large bodies is limited, by itself.
    assert {each.stem for each in sources() if "RLIMIT_" in each.read_text()} == {"judge"}


def test_links_within_the_page_lead_somewhere() -> None:
    """To a heading."""
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in PAGE.splitlines()
        if line.startswith("#")
    }
    assert set(re.findall(r"\(#([\w-]+)\)", PAGE)) <= headings
