# SPDX-License-Identifier: Apache-2.0
"""QUIC at a service of UDP: datagrams of sockets that aren't connected."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_socket import WEB_SERVICES, Lab, web_lab
from tests.lab.quic import PORT
from tests.listed import needs_lists
from tests.prog.socket.harness import BACKENDS, BACKENDS6, OTHER_VIP, OTHER_VIP6, service

if TYPE_CHECKING:
    from collections.abc import Iterator

END = str(Path(__file__).with_name("quic.py"))
SIZE, STREAMS = 64 << 10, 3


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A cgroup."""
    with web_lab(tmp_path_factory.mktemp("nginx")) as made:
        yield made


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate and its key."""
    directory = tmp_path_factory.mktemp("certificate")
    at, key = directory / "cert.pem", directory / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=service"]
    subprocess.run([*command, "-keyout", key, "-out", at], capture_output=True, check=True)
    return str(at), str(key)


@contextmanager
def serving(at: str, certificate: tuple[str, str], told: list[str]) -> Iterator[None]:
    """A server; from where datagrams have come to it is told in the end."""
    server = subprocess.Popen(
        [sys.executable, END, "server", at, *certificate], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield
    finally:
        server.kill()
        told.append(server.communicate()[0])


@needs_lists
@pytest.mark.parametrize(
    ("vip", "seen", "backends"),
    [(OTHER_VIP, f"::ffff:{OTHER_VIP}", BACKENDS[:2]), (OTHER_VIP6, OTHER_VIP6, BACKENDS6[:2])],
)
def test_a_connection_stays_with_its_backend(
    lab: Lab, certificate: tuple[str, str], vip: str, seen: str, backends: tuple[str, ...]
) -> None:
    """Every byte comes back, from one of two servers; and all of it from the service."""
    lab.apply(*WEB_SERVICES, service(vip, backends, port=PORT, protocol="udp"))
    told: list[str] = []
    before = lab.sockets.counters().verdicts
    with ExitStack() as undo:
        for each in backends:
            undo.enter_context(serving(each, certificate, told))
        answered = lab.run(sys.executable, END, "client", vip, str(SIZE), str(STREAMS))
    after = lab.sockets.counters().verdicts
    assert answered == f"{seen}\n"
    assert sorted(map(bool, told)) == [False, True]
    sent, received = (
        {name: number - before[hook][name] for name, number in after[hook].items()}
        for hook in ("sendmsg", "recvmsg")
    )
    assert sent.pop("balanced") > SIZE * STREAMS / 1500
    assert received.pop("restored") > SIZE * STREAMS / 1500
    assert not any(sent.values()), sent
    assert not any(received.values()), received
    lab.apply(*WEB_SERVICES)
