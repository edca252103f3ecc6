# SPDX-License-Identifier: Apache-2.0
"""`towpath record --flight`: what was last, written when something has happened."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from tests.lab.harness_agent import Agent, put, running
from tests.lab.harness_record import accepted, end, going, recording, resolve_backends, send
from tests.prog.lb.frames import flows

from towpath.api.client import Client
from towpath.cli.main import cli
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SENT = list(flows(40))
SICK = {
    "name": "sick",
    "vip": "203.0.113.77",
    "port": 80,
    "backends": [{"address": "192.0.2.11"}],
    "health": {"type": "tcp", "interval": 0.2, "timeout": 0.1, "fall": 1},
}


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent with a service whose backends can be sent to, though none answers."""
    with running(tmp_path_factory.mktemp("flight")) as made:
        resolve_backends()
        yield made


def test_stopped_by_another_and_begun_again(agent: Agent, tmp_path: Path) -> None:
    """A file for each time, with what was before it. Ctrl-C ends for good."""
    name = tmp_path / "%F-%H%M%S.pcapng"
    with recording(agent, name, "--flight", "1M", "--again", "--direction", "in") as process:
        (first,) = going(agent)
        send(*SENT)
        with Client(agent.socket) as client:
            wait_until(lambda: client.capture(first).matched == len(SENT), seconds=60, what="all")
            client.stop_capture(first)
            wait_until(lambda: len(list(tmp_path.iterdir())) == 2, seconds=60, what="another one")
        code, said = end(process)
    assert code == 0
    assert said.count("keeps the last 1.0 MB") == said.count("ended: it was stopped") == 2
    # Of one moment, or of two.
    written = re.findall(rf"to ({tmp_path}/\d{{4}}-\d\d-\d\d-\d{{6}}(?:-2)?.pcapng)", said)
    files = [accepted(Path(each)) for each in written]
    assert [[each.data for each in file.packets] for file in files] == [SENT, []]


def test_a_backend_that_is_found_down_ends_it(agent: Agent, tmp_path: Path) -> None:
    """One of its services, if it is for some."""
    arguments = ("--flight", "1M", "--on-down", "--direction", "in")
    with (
        recording(agent, tmp_path / "all", *arguments) as every,
        recording(agent, tmp_path / "web", *arguments, "--service", "web") as web,
    ):
        send(*SENT)
        put(agent, SICK)
        _, said = every.communicate(timeout=120)
        assert "ended: backend 192.0.2.11 of service sick was found down" in said
        assert web.poll() is None
        assert end(web)[0] == 0
    assert [each.data for each in accepted(tmp_path / "web").packets] == SENT


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--again"], "--again is for a capture that keeps what was last: with --flight"),
        (["--flight", "1M", "--again", "-w", "x"], "-w x needs a time, such as %T"),
        (["--flight", "1X"], "'1X'; allowed: bytes, or with k, M or G, such as 64M"),
        (["--flight", "1k"], "keep: 1024 is out of range; allowed: 131072 to 1073741824, or 0"),
        (["--on-down"], "on_down: is for a capture that keeps what was last"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str) -> None:
    """Before anything is captured, or a file made."""
    result = CliRunner().invoke(cli, ["record", *arguments])
    assert result.exit_code != 0
    assert message in re.sub(r"\s+", " ", result.output)
