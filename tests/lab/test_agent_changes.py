# SPDX-License-Identifier: Apache-2.0
"""A running agent: changes of its file, and what undoes itself."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_agent import DNS, MAIL, WEB, Agent, names, put, running

from towpath.api.client import Client
from towpath.errors import NotFoundError
from towpath.lab.waiting import wait_until
from towpath.model import parse_service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from towpath.api.documents import FileStatus


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """One agent for the module."""
    with running(tmp_path_factory.mktemp("agent")) as started:
        yield started


@pytest.fixture
def agent(shared: Agent) -> Agent:
    """The agent with WEB in its file and nothing else."""
    put(shared, prune=True)
    shared.write(services=[WEB])
    hang_up(shared)
    in_force(shared, "web")
    return shared


def hang_up(agent: Agent) -> None:
    """SIGHUP."""
    assert agent.process is not None
    agent.process.send_signal(signal.SIGHUP)


def file_status(agent: Agent) -> FileStatus:
    """What became of the file."""
    with Client(agent.socket) as client:
        return client.status().file


def file_problems(agent: Agent) -> list[str]:
    """Wait until a content of the file has been refused; why."""
    wait_until(
        lambda: file_status(agent).refused is not None, seconds=120, what="the file to be refused"
    )
    return [str(problem) for problem in file_status(agent).problems]


def in_force(agent: Agent, *expected: str) -> None:
    """Wait until exactly these services are in force, and the file with them."""
    wait_until(
        lambda: names(agent) == set(expected) and file_status(agent).refused is None,
        seconds=120,
        what=f"services {expected}",
    )


# Changes of the file


def test_a_changed_file_is_taken_over(agent: Agent) -> None:
    """By itself, and the API's services stay."""
    put(agent, MAIL)
    agent.write(services=[WEB, DNS])
    in_force(agent, "web", "mail", "dns")
    agent.write(services=[])
    in_force(agent, "mail")


def test_a_wrong_file_changes_nothing_and_is_shown(agent: Agent) -> None:
    """In the status and in the log, until it is right again."""
    agent.write(services=[WEB | {"port": 70000}, DNS])
    (problem,) = file_problems(agent)
    assert problem.startswith(f"{agent.file}:")
    assert "services[0].port: 70000 is out of range; allowed: 1 to 65535" in problem
    assert names(agent) == {"web"}
    assert problem in agent.log
    assert problem in agent.command("status").stdout.replace("\n", "")
    agent.write(services=[WEB, DNS])
    in_force(agent, "web", "dns")


def test_a_file_that_is_not_yaml_changes_nothing(agent: Agent) -> None:
    """Nor does one that isn't text."""
    agent.file.write_text("devices: [")
    assert "not YAML" in file_problems(agent)[0]
    assert names(agent) == {"web"}


def test_a_change_that_needs_a_restart_is_refused(agent: Agent) -> None:
    """Whole: the services beside it too."""
    limits = agent.config["limits"]
    agent.write(limits=limits | {"flows": 2048}, services=[WEB, DNS])
    agent.config["limits"] = limits
    (problem,) = file_problems(agent)
    assert problem == "limits: can't change while the agent runs; restart it to take it over"
    assert names(agent) == {"web"}


def test_a_service_of_the_api_is_not_taken_over_by_the_file(agent: Agent) -> None:
    """A conflict, with both ways out of it; it ends when one of them is taken."""
    put(agent, MAIL)
    agent.write(services=[WEB, MAIL | {"port": 26}])
    (problem,) = file_problems(agent)
    assert "'mail' was also set through the API; remove it there" in problem
    assert "towpath service delete mail" in problem
    assert agent.command("service", "delete", "mail").returncode == 0
    in_force(agent, "web", "mail")


def test_a_file_that_does_not_fit_is_refused(agent: Agent) -> None:
    """The limits leave room for it, the services of the API don't."""
    put(agent, *(MAIL | {"name": f"s{i}", "port": 1000 + i, "table_size": 65537} for i in (1, 2)))
    agent.write(services=[WEB, DNS | {"table_size": 131071}])
    assert "limits.table_slots" in file_problems(agent)[0]
    assert names(agent) == {"web", "s1", "s2"}


def test_a_hangup_reads_the_file_at_once(agent: Agent) -> None:
    """Also when it says that the file is gone."""
    agent.file.unlink()
    hang_up(agent)
    assert "can't be read: No such file or directory" in file_problems(agent)[0]
    assert names(agent) == {"web"}


# What undoes itself


def test_temporary_services_are_gone_afterwards(agent: Agent) -> None:
    """And one that was there is as it was, also when the block fails."""
    put(agent, MAIL)
    mail = parse_service(MAIL)
    changed, dns = parse_service(MAIL | {"backends": []}), parse_service(DNS)
    with Client(agent.socket) as client:
        with client.temporary(changed, dns):
            assert client.service("mail") == changed
            assert client.service("dns") == dns
        assert client.service("mail") == mail
        assert names(agent) == {"web", "mail"}
        with pytest.raises(KeyError), client.temporary(changed, dns):
            raise KeyError
        assert client.service("mail") == mail
        assert names(agent) == {"web", "mail"}


def test_a_temporary_service_may_be_removed_meanwhile(agent: Agent) -> None:
    """Then there is nothing left to undo."""
    with Client(agent.socket) as client:
        with client.temporary(parse_service(DNS)):
            client.remove_service("dns")
        assert names(agent) == {"web"}


def test_a_drained_backend_is_as_it_was_afterwards(agent: Agent) -> None:
    """And gets no new flows in between."""
    put(agent, MAIL | {"backends": [{"address": "192.0.2.21", "weight": 7}, "192.0.2.22"]})
    with Client(agent.socket) as client:
        with client.drained("mail", "192.0.2.21"):
            assert [each.weight for each in client.backends("mail")] == [7, 1]
            assert [str(each.state) for each in client.backends("mail")] == ["draining", "active"]
            for port in range(1, 50):
                trace = client.trace(f"198.51.100.7:{port} -> 203.0.113.11:25 tcp")
                assert str(trace.backend) == "192.0.2.22"
        assert [each.weight for each in client.backends("mail")] == [7, 1]
        assert {str(each.state) for each in client.backends("mail")} == {"active"}
        with pytest.raises(NotFoundError, match=r"has no backend 192\.0\.2\.99"):
            client.drained("mail", "192.0.2.99").__enter__()
