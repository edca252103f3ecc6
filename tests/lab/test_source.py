# SPDX-License-Identifier: Apache-2.0
"""A source of services that is not Towpath's: a directory, registered by one line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml
from tests.lab.harness_agent import DNS, MAIL, WEB, Agent, device, names, put
from tests.lab.harness_examples import DIRECTORY, with_line

from towpath.api.client import ApiError, Client
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from towpath.api.documents import SourceStatus


@pytest.fixture
def services(tmp_path: Path) -> Path:
    """The directory."""
    made = tmp_path / "services"
    made.mkdir()
    return made


@pytest.fixture
def agent(tmp_path: Path, services: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Agent]:
    """An agent with WEB in its file and MAIL in the directory."""
    monkeypatch.setenv("PYTHONPATH", with_line(tmp_path / "overlay", DIRECTORY))
    write(services, MAIL)
    made = Agent(tmp_path, {"directory": {"path": str(services)}})
    with device():
        try:
            made.start()
            until(made, "web", "mail")
            yield made
        finally:
            if made.process is not None and made.process.poll() is None:
                made.kill()


def write(directory: Path, *services: dict[str, Any], name: str = "some.yaml") -> None:
    """Write a file with services, at once."""
    (directory / ".new").write_text(yaml.safe_dump({"services": list(services)}))
    (directory / ".new").rename(directory / name)


def until(agent: Agent, *expected: str) -> None:
    """Wait until these services are in force, and no others."""
    wait_until(lambda: names(agent) == set(expected), seconds=10, what=f"services {expected}")


def status(agent: Agent) -> SourceStatus:
    """What the agent says of the directory."""
    with Client(agent.socket) as client:
        return client.status().sources["directory"]


def until_refused(agent: Agent, message: str) -> None:
    """Wait until what the directory has is refused for this."""
    wait_until(
        lambda: any(message in problem.message for problem in status(agent).problems),
        seconds=10,
        what=f"refusal: {message}",
    )


def owners(agent: Agent) -> dict[str, str]:
    """Where the services come from."""
    with Client(agent.socket) as client:
        return {entry.service.name: entry.owner for entry in client.entries()}


def test_its_services_are_its_own(agent: Agent) -> None:
    """They can be changed there, and nowhere else."""
    assert owners(agent) == {"web": "file", "mail": "directory"}
    with (
        Client(agent.socket) as client,
        pytest.raises(ApiError, match="'mail' belongs to the directory; change it there"),
    ):
        client.remove_service("mail")
    put(agent, DNS, prune=True)
    assert owners(agent) == {"web": "file", "dns": "api", "mail": "directory"}
    with Client(agent.socket) as client:
        assert client.status().services == {"file": 1, "api": 1, "directory": 1}


def test_what_it_has_is_all_that_it_wishes_for(agent: Agent, services: Path) -> None:
    """What is no longer there goes."""
    write(services, DNS, name="other.yaml")
    until(agent, "web", "mail", "dns")
    (services / "some.yaml").unlink()
    until(agent, "web", "dns")


def test_what_contradicts_others_is_refused_whole(agent: Agent, services: Path) -> None:
    """Its services stay as they were, until the contradiction is gone."""
    write(services, DNS, WEB | {"port": 81})
    until_refused(agent, "'web' was also set through the configuration file; remove it there")
    assert names(agent) == {"web", "mail"}
    assert status(agent).accepted is not None
    assert "was also set through" in agent.command("status").stdout
    agent.write(services=[])
    until(agent, "web", "dns")
    assert owners(agent) == {"web": "directory", "dns": "directory"}
    assert status(agent).problems == ()


def test_what_makes_no_sense_is_refused_whole(agent: Agent, services: Path) -> None:
    """With file and line."""
    write(services, DNS | {"port": 0}, MAIL)
    until_refused(agent, "0 is out of range")
    assert status(agent).problems[0].file == str(services / "some.yaml")
    assert names(agent) == {"web", "mail"}


def test_the_file_is_refused_if_it_contradicts_it(agent: Agent, services: Path) -> None:
    """And taken over when the directory has the service no more."""
    agent.write(services=[WEB, MAIL])
    with Client(agent.socket) as client:
        wait_until(lambda: bool(client.status().file.problems), seconds=10, what="a refusal")
        (problem,) = client.status().file.problems
    assert problem.message == (
        "service 'mail' was also set through the directory; remove it there or here"
    )
    write(services)
    wait_until(
        lambda: owners(agent) == {"web": "file", "mail": "file"}, seconds=10, what="the file's"
    )


def test_its_services_outlive_it(agent: Agent, services: Path) -> None:
    """While it is away they are as they were, also for the next agent; then it comes back."""
    away = services.with_name("away")
    services.rename(away)
    with Client(agent.socket) as client:
        wait_until(lambda: bool(client.status().trouble), seconds=10, what="trouble")
        trouble = client.status().trouble
        assert trouble == f"source directory: {services}: No such file or directory"
        with pytest.raises(ApiError, match="No such file or directory"):
            client.health()
    assert names(agent) == {"web", "mail"}
    agent.kill()
    agent.start()
    assert owners(agent) == {"web": "file", "mail": "directory"}
    assert status(agent).accepted is None
    write(away, DNS)
    away.rename(services)
    until(agent, "web", "dns")
    with Client(agent.socket) as client:
        client.health()


def test_without_its_section_its_services_go(agent: Agent) -> None:
    """With the next agent; a running one refuses such a file, and one that has it changed."""
    agent.write(directory={"path": "/elsewhere"})
    with Client(agent.socket) as client:
        wait_until(lambda: bool(client.status().file.problems), seconds=10, what="a refusal")
        (problem,) = client.status().file.problems
    assert str(problem) == (
        "directory: can't change while the agent runs; restart it to take it over"
    )
    del agent.config["directory"]
    agent.write()
    with Client(agent.socket) as client:
        wait_until(lambda: bool(client.status().file.problems), seconds=10, what="a refusal")
        assert [each.field for each in client.status().file.problems] == ["directory"]
    agent.end()
    agent.start()
    assert owners(agent) == {"web": "file"}


def test_it_can_not_have_commands_run(agent: Agent, services: Path) -> None:
    """Who may write there is not who may run programs as the agent."""
    write(services, MAIL | {"health": {"type": "command", "command": ["/bin/true"]}})
    until_refused(agent, "command of service 'mail' can't be set through the directory")
