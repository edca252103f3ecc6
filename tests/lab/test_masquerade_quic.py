# SPDX-License-Identifier: Apache-2.0
"""QUIC from a pod."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_masquerade import FAR, LIMIT, NEAR6, PINS, SECTION, Lab, lab, moved

from towpath.datapath.masquerade.follower import Follower
from towpath.kernel.net.netns import in_netns

if TYPE_CHECKING:
    from collections.abc import Iterator

END = str(Path(__file__).with_name("quic.py"))
STREAMS = 3


@pytest.fixture
def net() -> Iterator[Lab]:
    """A pod, a node, a world."""
    with lab() as made:
        yield made


@pytest.fixture
def masq(net: Lab) -> Iterator[Follower]:
    """Masquerade on the node."""
    assert net
    made = Follower(SECTION, PINS)
    yield made
    made.detach()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str]:
    """A certificate and its key."""
    at, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=world"]
    subprocess.run([*command, "-keyout", key, "-out", at], capture_output=True, check=True)
    return str(at), str(key)


@pytest.mark.parametrize(("at", "seen"), [(FAR, "10.0.0.1"), (NEAR6, "2001:db8:1::1")])
def test_streams_come_back(
    net: Lab, masq: Follower, certificate: tuple[str, str], at: str, seen: str
) -> None:
    """One connection is one flow, of which nothing is dropped."""
    since = moved(masq)
    with in_netns(net.world):
        server = subprocess.Popen(
            [sys.executable, END, "server", at, *certificate], stdout=subprocess.PIPE, text=True
        )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        with in_netns(net.pod):
            subprocess.run(
                [sys.executable, END, "client", at, str(4 << 20), str(STREAMS)],
                check=True,
                timeout=5 * LIMIT,
            )
    finally:
        server.kill()
        told, _ = server.communicate()
    assert told == f"{seen}\n"
    counted = since()
    assert counted["from_pod.bound"] == 1
    assert not any("drop" in name for name in counted), counted
