# SPDX-License-Identifier: Apache-2.0
"""``towpath decap`` as a user runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import UDP
from scapy.packet import Raw
from tests.prog.decap import harness
from tests.prog.decap.harness import CLIENTS, TARGETS, VIPS
from tests.prog.decap.wire import BACKEND, TIMEOUT, WIRE, tunnel, until, wire

from towpath.kernel.bpf.links import xdp_program_id
from towpath.kernel.net.interfaces import device_index
from towpath.kernel.net.netns import in_netns

if TYPE_CHECKING:
    from collections.abc import Iterator

TOWPATH = [sys.executable, "-m", "towpath", "decap"]
BOTH = ["--address", TARGETS[4], "-a", TARGETS[6]]


@pytest.fixture(scope="module", autouse=True)
def ends() -> Iterator[None]:
    """The namespaces, once for the module."""
    with wire():
        yield


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in the backend's namespace to its end."""
    with in_netns(BACKEND):
        return subprocess.run(
            [*TOWPATH, *arguments], capture_output=True, text=True, check=False, timeout=TIMEOUT
        )


def attached() -> bool:
    """Whether a program is on the backend's device."""
    with in_netns(BACKEND):
        return xdp_program_id(device_index(WIRE)) != 0


def send(count: int) -> None:
    """Send that many tunnel packets from the balancer's end."""
    header = harness.ip(4, CLIENTS[4], VIPS[4])
    with closing(tunnel(4, 4)) as raw:
        for _ in range(count):
            raw.send(bytes(header / UDP(sport=1, dport=9) / Raw(b"x")))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_runs_until_a_signal_and_leaves_nothing(number: signal.Signals) -> None:
    """One status line, then counters as JSON on standard output; exit code 0."""
    command = [*TOWPATH, WIRE, *BOTH, "-o", "json"]
    with in_netns(BACKEND):
        process = subprocess.Popen(
            command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    with process:
        assert process.stderr is not None
        status = process.stderr.readline()
        assert status == (f"{WIRE}: unwrapping for {TARGETS[4]}, {TARGETS[6]} in native mode\n")
        assert attached()
        process.send_signal(number)
        output, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, errors) == (0, "")
    assert json.loads(output)["verdicts"]["drop_malformed"] == 0
    assert not attached()


def test_pinned_it_goes_on_by_itself_until_detached() -> None:
    """Attach and return; show the counters, for people and programs; detach."""
    pins = "/sys/fs/bpf/tpdc"
    made = run(WIRE, *BOTH, "--pin", pins)
    assert (made.returncode, made.stdout) == (0, "")
    assert made.stderr.endswith(f"in native mode, pinned in {pins}\n")
    send(3)
    until(lambda: shown(pins)["verdicts"]["unwrapped"] == 3)
    assert shown(pins)["addresses"][TARGETS[4]] == {"packets": 3, "bytes": 3 * 29}
    table = run("--show", "--pin", pins).stdout
    assert [TARGETS[4], "3", "87"] in [line.split() for line in table.splitlines()]
    assert run("--detach", "--pin", pins).returncode == 0
    assert not attached()
    again = run("--detach", "--pin", pins)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == f"Error: {pins}: no decapsulation is pinned there\n"


def shown(pins: str) -> dict[str, dict[str, object]]:
    """What --show prints as JSON."""
    found: dict[str, dict[str, object]] = json.loads(
        run("--show", "--pin", pins, "-o", "json").stdout
    )
    return found


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "a DEVICE and at least one --address are needed"),
        ([WIRE], 2, "a DEVICE and at least one --address are needed"),
        (["--detach", WIRE], 2, "--detach takes --pin only"),
        (["--show", "-a", TARGETS[4]], 2, "--show takes --pin only"),
        ([WIRE, *BOTH, "--mode", "fast"], 2, "'native'"),
        ([WIRE, *BOTH, "--priority", "5"], 2, "--priority is for --attach dispatcher only"),
        ([WIRE, *BOTH, "--priority", "-1"], 2, "0<=x<=2147483647"),
        (["--show", "--priority", "5"], 2, "--show takes --pin only"),
        (["tpdcz", *BOTH], 1, "no such device: tpdcz: there are: "),
        ([WIRE, "-a", "192.0.2.11/24"], 1, "'192.0.2.11/24': not an IPv4 or IPv6 address"),
        ([WIRE, *BOTH, "--pin", "/tmp/tpdc-pins"], 1, "not on a BPF file system"),  # noqa: S108
        (["lo", *BOTH, "--mode", "native"], 1, "to lo in native mode"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(
    arguments: list[str], code: int, message: str
) -> None:
    """Exit code 2 for wrong usage and 1 for a refusal; nothing is attached."""
    result = run(*arguments)
    last = result.stderr.splitlines()[-1]
    assert result.returncode == code, result.stderr
    assert last.startswith("Error: ")
    assert message in last
    assert not attached()


def test_its_help_costs_no_heavy_import() -> None:
    """Numbers, netlink and rich are loaded when something runs."""
    code = (
        "import sys, towpath.cli.decap; "
        "print([m for m in ('numpy', 'pyroute2', 'rich', 'yaml') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"


def test_a_device_that_comes_back_is_attached_to_again() -> None:
    """By the command that still runs, which says so on the way."""
    with in_netns(BACKEND):
        subprocess.run(
            ["ip", "link", "add", "tpdc9", "type", "veth", "peer", "name", "tpdc8"], check=True
        )
        command = [*TOWPATH, "tpdc9", *BOTH]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
            assert running.stderr
            try:
                assert running.stderr.readline().startswith("tpdc9: unwrapping for")
                subprocess.run(["ip", "link", "delete", "tpdc9"], check=True)
                assert running.stderr.readline().startswith("no such device: tpdc9")
                subprocess.run(
                    ["ip", "link", "add", "tpdc9", "type", "veth", "peer", "name", "tpdc8"],
                    check=True,
                )
                assert running.stderr.readline().startswith("tpdc9: unwrapping for")
                assert xdp_program_id(device_index("tpdc9"))
                running.terminate()
                assert running.wait(TIMEOUT) == 0
                assert not xdp_program_id(device_index("tpdc9"))
            finally:
                running.kill()
                subprocess.run(["ip", "link", "delete", "tpdc9"], check=False)
