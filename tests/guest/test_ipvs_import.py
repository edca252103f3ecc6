# SPDX-License-Identifier: Apache-2.0
"""A table of IPVS comes to the same services however it is read: by netlink, ipvsadm, /proc."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.guest.harness_guest import ip, run

from towpath.cli.imported import LEFT_OUT
from towpath.core.imports.imported import NoteKind
from towpath.core.imports.ipvs import import_ipvsadm, import_proc, import_table
from towpath.kernel.jiffies import per_second
from towpath.kernel.net.ipvs import read_ipvs
from towpath.kernel.net.netns import in_netns
from towpath.lab import namespaces
from towpath.model import Affinity, parse_services

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.core.imports.imported import Imported

NODE = "tpipvs"
TABLE = """\
-A -t 203.0.113.10:80 -s rr
-a -t 203.0.113.10:80 -r 192.0.2.11:80 -g -w 1
-a -t 203.0.113.10:80 -r 192.0.2.12:80 -g -w 0
-A -t 203.0.113.11:443 -s rr -p 1800 -M 255.255.255.0
-a -t 203.0.113.11:443 -r 192.0.2.11:8443 -m -w 1
-A -u 203.0.113.12:53 -s rr -o
-a -u 203.0.113.12:53 -r 192.0.2.11:53 -i -w 1
-A -t [2001:db8::10]:0 -s rr -p 60 -M 64
-a -t [2001:db8::10]:0 -r [2001:db8:1::11]:0 -g -w 1
-A -t 203.0.113.13:80 -s rr -b flag-1,flag-3
-a -t 203.0.113.13:80 -r [2001:db8:1::11]:80 -i -w 1
-A -f 7 -s rr
-a -f 7 -r 192.0.2.11:0 -g -w 1
-A -t 203.0.113.14:80 -s rr
-a -t 203.0.113.14:80 -r 192.0.2.11:80 -i -w 1 --tun-type gue --tun-port 6080
-A -t 203.0.113.15:80 -s rr
-a -t 203.0.113.15:80 -r 192.0.2.11:80 -g -w 1 -x 100 -y 50
"""


@pytest.fixture(scope="module")
def node() -> Iterator[str]:
    """A namespace with that table, and timeouts that aren't the default."""
    with ExitStack() as undo:
        namespaces.create(NODE)
        undo.callback(namespaces.remove, NODE)
        # Without a table of local routes no address of IPv4 is unicast to IPVS.
        ip(NODE, "link set lo up")
        run(NODE, ["ipvsadm", "-R"], TABLE)
        run(NODE, ["ipvsadm", "--set", "900", "120", "30"])
        yield NODE


def summary(imported: Imported) -> list[tuple[object, ...]]:
    """Services in the order of what they are for; kernels list them in another."""
    services = sorted(imported.services, key=lambda each: each.key.order)
    return [
        (
            each.key,
            each.forwarding,
            each.affinity,
            each.flow_table,
            each.flow_timeout,
            set(each.backends),
        )
        for each in services
    ]


def left_out(imported: Imported) -> list[str]:
    """What isn't there."""
    return sorted(each.what for each in imported.notes if each.kind is NoteKind.LEFT_OUT)


def test_the_kernel_and_ipvsadm_say_the_same(node: str) -> None:
    """But for the timeout of UDP, which ipvsadm doesn't save."""
    with in_netns(node):
        servers, udp_timeout = read_ipvs()
    said = run(node, ["ipvsadm", "-S", "-n"])
    wanted, saved = import_ipvsadm(f"--set 900 120 30\n{TABLE}", "x"), import_ipvsadm(said, "x")
    told = import_table(servers, udp_timeout)
    assert udp_timeout == 30
    assert summary(told) == summary(wanted)
    assert summary(import_table(servers)) == summary(saved)
    assert left_out(told) == left_out(saved) == left_out(wanted) != []
    assert len(told.services) == 7
    flags = {each.vip: each.flags for each in servers}
    assert frozenset({1, 3}) in flags.values()
    beside = {each.what for each in told.notes if each.service}
    assert "thresholds of 192.0.2.11 (upper 100, lower 50)" in beside
    assert "persistence by network (/64)" in beside


def test_proc_says_most_of_it(node: str) -> None:
    """Persistence in jiffies; tunnels of any type are of the usual one."""
    with in_netns(node):
        text = Path("/proc/thread-self/net/ip_vs").read_text()
    found = import_proc(text, "ip_vs", per_second())
    wanted = import_ipvsadm(TABLE.replace(" --tun-type gue --tun-port 6080", ""), "x")
    assert summary(found) == summary(wanted)
    assert left_out(found) == ["firewall mark 7"]
    affinities = {each.affinity for each in found.services}
    assert affinities == {None, Affinity(1800), Affinity(60)}


@pytest.mark.thorough
def test_the_command_reads_it(node: str) -> None:
    """Without a file, and nothing is changed by that."""
    before = run(node, ["ipvsadm", "-S", "-n"])
    command = [sys.executable, "-m", "towpath", "import", "ipvs"]
    done = namespaces.run(node, command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == LEFT_OUT
    assert done.stderr.splitlines()[-1] == "services: 7 printed, 1 left out"
    assert len(parse_services(done.stdout, "printed")) == 6
    assert run(node, ["ipvsadm", "-S", "-n"]) == before
