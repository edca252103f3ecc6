# SPDX-License-Identifier: Apache-2.0
"""Nobody's terminal or log gets escape sequences from a check's command or from a request."""

from __future__ import annotations

import json
import socket
import sys
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from tests.lab.harness_agent import WEB, Agent, running

from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HIDE = "\x1b[8m\x9b31m\u202e\x07"
SHOWN = "\\x1b[8m\\x9b31m\\u202e\\x07"
SAYS = f"import sys; print({f'bad{HIDE}news'!r}); sys.exit(3)"
CHECK = {"type": "command", "command": [sys.executable, "-c", SAYS], "interval": "200ms"}


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent whose checks say so."""
    services = [WEB | {"health": CHECK | {"timeout": "190ms"}}]
    with running(tmp_path_factory.mktemp("agent"), services=services) as started:
        yield started


def assert_clean(text: str) -> None:
    """Nothing in it does anything to a terminal."""
    assert not [each for each in text if not each.isprintable() and each != "\n"], repr(text)


def test_what_a_command_prints_is_shown(agent: Agent) -> None:
    """In the log, by commands and by the API."""
    wait_until(lambda: "is down" in agent.log, seconds=120, what="the checks")
    assert f"exit status 3: bad{SHOWN}" in agent.log
    assert_clean(agent.log)
    for verb in (("status",), ("service", "list"), ("backend", "list", "web")):
        for form in ("table", "json", "yaml"):
            shown = agent.command(*verb, "-o", form)
            assert shown.returncode == 0
            assert_clean(shown.stdout)
    assert SHOWN in agent.command("backend", "list", "web").stdout
    assert_clean(answer(agent, "GET", "/v1/checks"))


def answer(agent: Agent, method: str, path: str, body: str = "") -> str:
    """What is answered, as it is, but for its line ends."""
    content = body.encode()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(agent.socket))
        client.sendall(
            f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        received = b"".join(iter(lambda: client.recv(1 << 16), b""))
    return received.decode().replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/{}", ""),
        ("GET", "/v1/services/{}", ""),
        ("PUT", "/v1/services/{}", '{{"name": "x", "{}": 1}}'),
        ("DELETE", "/v1/services/web/backends/{}", ""),
        ("POST", "/v1/apply", '{{"services": [{{"name": "{}"}}], "{}": 1}}'),
        ("POST", "/v1/plan", '{{"services": [], "owner": "{}"}}'),
        ("POST", "/v1/captures", '{{"expr": "{}", "{}": 2}}'),
        ("GET", "/v1/trace?flow={}", ""),
        ("GET", "/v1/trace?flow=198.51.100.7:1%20-%3E%20203.0.113.10:80%20tcp&device={}", ""),
        ("GET", "/v1/checks?service={}", ""),
        ("GET", "/v1/flows?service={}", ""),
        ("GET", "/v1/flows?client={}", ""),
    ],
)
def test_names_in_requests_are_shown(agent: Agent, method: str, path: str, body: str) -> None:
    """In the answer, which a terminal may get, and in the log."""
    made = path.format(quote(HIDE))
    said = answer(agent, method, made, body.format(*[json.dumps(HIDE)[1:-1]] * 2))
    assert said.splitlines()[0].split()[1][0] in "24", said
    assert_clean(said)
    assert_clean(agent.log)


def test_a_command_line_s_errors_are_shown(agent: Agent, tmp_path: Path) -> None:
    """Of a name that is not there, and of a file that has such names."""
    file = tmp_path / "services.yaml"
    file.write_text('services:\n- name: "a\\e[31m"\n  "\\e[8m": 1\n')
    for verb in (
        ("service", "delete", HIDE),
        ("service", "apply", str(file)),
        ("trace", f"198.51.100.7:1 -> 203.0.113.10:80 {HIDE}"),
    ):
        shown = agent.command(*verb)
        assert shown.returncode != 0
        assert_clean(shown.stdout + shown.stderr)
