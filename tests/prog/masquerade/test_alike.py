# SPDX-License-Identifier: Apache-2.0
"""What the programs are told of rules and routes that tell flows apart."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from tests.prog.masquerade.harness import LIMIT, Rig

from towpath.datapath.masquerade.alike import Alike

if TYPE_CHECKING:
    from collections.abc import Iterator

ALL, NO_FLOWS_OF_4, NO_SOURCES_OF_4, NO_SOURCES_OF_6 = 15, 10, 11, 7


@pytest.fixture
def alike(masq: Rig) -> Iterator[Alike]:
    """What keeps the programs told."""
    with Alike(masq.program) as made:
        yield made


def told(masq: Rig) -> int:
    """Bits of enum masquerade_alike."""
    return int(masq.program.maps["masq_states"].lookup(0)["alike"])


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("rule {} ipproto tcp lookup 100", NO_FLOWS_OF_4),
        ("rule {} from 10.244.0.3 lookup 100", NO_SOURCES_OF_4),
        ("-6 rule {} from fd00:1::3 lookup 100", NO_SOURCES_OF_6),
        ("-6 route {} 2001:db8:5::/48 from fd00:1::/64 dev wan", NO_SOURCES_OF_6),
        ("route {} 10.6.0.0/16 nexthop via 10.0.0.100 nexthop via 192.168.0.254", NO_FLOWS_OF_4),
        ("route {} 10.6.0.0/16 via 10.0.0.100", ALL),
    ],
)
def test_what_tells_flows_apart(masq: Rig, alike: Alike, what: str, expected: int) -> None:
    """Of its family only; what is read anew counts, though its messages come later."""
    alike.sync()
    assert told(masq) == ALL
    ip_command(what.format("add"))
    alike.read()
    assert told(masq) == (ALL if expected == ALL else 0)  # until all is read anew
    alike.sync()
    assert told(masq) == expected
    ip_command(what.format("del"))
    alike.sync()
    assert told(masq) == ALL
    alike.close()
    assert told(masq) == 0


def ip_command(command: str) -> None:
    """Run iproute2's command."""
    subprocess.run(["ip", *command.split()], check=True, timeout=LIMIT)
