# SPDX-License-Identifier: Apache-2.0
"""An agent's life: starts, changes of its file, deaths and successors."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import urlopen

import pytest
from tests.lab.harness_agent import (
    DEVICE,
    DNS,
    LIMITS,
    MAIL,
    PINS,
    WEB,
    Agent,
    device,
    names,
    put,
    running,
)

from towpath.api.client import Client
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """An agent that serves WEB from its file."""
    with running(tmp_path) as started:
        yield started


def test_others_can_open_neither_state_nor_pins(agent: Agent, tmp_path: Path) -> None:
    """Nor hold their lock; those of an agent before this one are closed."""
    for path in (tmp_path / "state", PINS):
        assert path.stat().st_mode & 0o777 == 0o700
        path.chmod(0o755)
    assert agent.end() == 0
    agent.start()
    for path in (tmp_path / "state", PINS):
        assert path.stat().st_mode & 0o777 == 0o700
        assert f"{path} has been closed to other users" in agent.log


def test_debug_is_about_towpath(tmp_path: Path) -> None:
    """Not what each device says to those who list them: a log can be read."""
    agent = Agent(tmp_path, {"services": [WEB | {"health": "tcp"}]})
    with device():
        agent.start("--log-level", "debug")
        try:
            # Rules and routes of checks have been made, and are removed.
            assert agent.end() == 0
        finally:
            if agent.process is not None and agent.process.poll() is None:
                agent.kill()
    assert "attached in" in agent.log
    assert "netlink" not in agent.log
    assert "NLMSG" not in agent.log


def programs() -> list[int]:
    """Ids of the XDP programs on the device."""
    shown = subprocess.run(
        ["ip", "-json", "link", "show", DEVICE], capture_output=True, check=True
    ).stdout
    (link,) = json.loads(shown)
    return [link["xdp"]["prog"]["id"]] if "xdp" in link else []


def test_a_clean_end_leaves_the_load_balancer_at_work(agent: Agent) -> None:
    """The program stays, the socket goes, and the next agent takes over what it finds."""
    put(agent, MAIL)
    before = programs()
    assert agent.end() == 0
    assert not agent.socket.exists()
    assert programs() == before != []
    agent.start()
    assert programs() != []
    assert names(agent) == {"web", "mail"}


def test_an_interrupt_is_a_clean_end(agent: Agent) -> None:
    """Ctrl-C in a terminal."""
    assert agent.process is not None
    agent.process.send_signal(signal.SIGINT)
    assert agent.process.wait(20) == 0


def test_what_was_answered_outlives_a_kill(agent: Agent) -> None:
    """Killed right after an answer, and again: nothing that was promised is lost."""
    for number in range(3):
        put(agent, MAIL | {"name": f"s{number}", "port": 1000 + number})
        agent.kill()
        agent.start()
    assert names(agent) == {"web", "s0", "s1", "s2"}
    put(agent, MAIL)


def test_a_start_undoes_what_nobody_wants(agent: Agent) -> None:
    """The file changed while no agent ran."""
    put(agent, MAIL)
    agent.kill()
    agent.write(services=[DNS])
    agent.start()
    assert names(agent) == {"mail", "dns"}


def test_detach_on_exit_leaves_nothing(tmp_path: Path) -> None:
    """No program, no pins."""
    agent = Agent(tmp_path)
    with device():
        agent.start("--detach-on-exit")
        assert programs() != []
        assert agent.end() == 0
        assert programs() == []
        assert not PINS.exists()


def catches(process: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    with suppress(FileNotFoundError):
        status = Path(f"/proc/{process}/status").read_text()
        return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> (number - 1) & 1)
    return False


@contextmanager
def signalled(agent: Agent, *numbers: int) -> Iterator[None]:
    """Signals come one by one, from the moment on in which it would end in an orderly way.

    Not more than the kernel's verifier is tried again after: it gives way to each.
    """
    over, left = threading.Event(), list(numbers)

    def send() -> None:
        while left and not over.wait(0.02):
            if agent.process is not None and catches(agent.process.pid, signal.SIGTERM):
                agent.process.send_signal(left.pop(0))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_hangups_at_any_moment_end_nothing(tmp_path: Path) -> None:
    """On the way up, while it serves, and on the way down, which other wishes don't cut short."""
    agent = Agent(tmp_path)
    with device():
        with signalled(agent, *[signal.SIGHUP] * 3):
            agent.start("--detach-on-exit")
            assert programs() != []
        with signalled(agent, *[signal.SIGTERM, signal.SIGHUP] * 20):
            # Whatever its last moment says: it had nothing to do any more.
            assert agent.end() in {0, -signal.SIGTERM}
        assert programs() == []
        assert not PINS.exists()


def test_a_second_agent_on_the_same_state_is_refused(agent: Agent, tmp_path: Path) -> None:
    """Exit code 1 and one line; the first goes on."""
    ran = agent.command("agent", "--config", str(agent.file))
    assert ran.returncode == 1
    assert agent.process is not None
    assert f"another agent runs on {tmp_path}/state, or somebody else" in ran.stderr
    assert f"process {agent.process.pid} has it (" in ran.stderr
    assert "towpath agent" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
    assert names(agent) == {"web"}


def test_a_second_agent_on_the_same_socket_is_refused(agent: Agent, tmp_path: Path) -> None:
    """Although its state is another; the first goes on."""
    other = tmp_path / "other"
    other.mkdir()
    second = Agent(other, {"api": {"socket": str(agent.socket)}})
    ran = second.command("agent", "--config", str(second.file))
    assert ran.returncode == 1
    assert f"another agent answers at {agent.socket}" in ran.stderr
    assert names(agent) == {"web"}


# Without devices


def without_devices(agent: Agent) -> None:
    """Take what the load balancer needs out of the file."""
    agent.config = {key: agent.config[key] for key in ("api", "state")}
    agent.write()


def test_an_agent_needs_no_device(tmp_path: Path) -> None:
    """It serves its API, and says what it does: nothing."""
    agent = Agent(tmp_path)
    without_devices(agent)
    agent.start()
    with Client(agent.socket) as client:
        client.health()
        status = client.status()
        assert "towpath_agent_info" in client.metrics()
    assert status.devices == ()
    assert status.capabilities == {}
    assert agent.command("status").returncode == 0
    assert agent.command("status", "--counters").returncode == 0
    refused = agent.command("service", "list")
    assert refused.returncode == 1
    assert "not configured here: devices" in refused.stderr
    agent.write(devices=[DEVICE])
    with Client(agent.socket) as client:
        wait_until(lambda: bool(client.status().file.problems), seconds=10, what="a refusal")
        assert [each.field for each in client.status().file.problems] == ["devices"]
    assert agent.end() == 0
    assert not PINS.exists()


def test_a_load_balancer_that_is_no_longer_configured_is_detached(agent: Agent) -> None:
    """By the next agent, unless the API has services that it would then forget."""
    put(agent, MAIL)
    agent.end()
    without_devices(agent)
    error = refused_start(agent)
    assert "devices is missing, but services were set through the API: mail;" in error
    assert programs() != []
    agent.write(devices=[DEVICE], limits=LIMITS)
    agent.start()
    with Client(agent.socket) as client:
        client.remove_service("mail")
    agent.end()
    without_devices(agent)
    agent.start()
    assert programs() == []
    assert agent.end() == 0
    assert not PINS.exists()


# Starts that are refused


def refused_start(agent: Agent) -> str:
    """The error of a start that fails."""
    ran = agent.command("agent", "--config", str(agent.file))
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    return ran.stderr


def test_a_wrong_file_is_refused_with_every_problem(tmp_path: Path) -> None:
    """File, line, field, what was wrong and what is allowed."""
    agent = Agent(tmp_path, {"services": [WEB | {"port": 0}, MAIL | {"table_size": 252}]})
    error = refused_start(agent)
    assert f"{agent.file}:" in error
    assert "services[0].port: 0 is out of range; allowed: 1 to 65535" in error
    assert "services[1].table_size: 252 is not a prime" in error


def test_a_device_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    """Naming those that do."""
    agent = Agent(tmp_path, {"devices": ["tpnone"]})
    with device():
        error = refused_start(agent)
    assert "no such device: tpnone" in error
    assert DEVICE in error


def test_sources_that_contradict_each_other_are_refused(agent: Agent) -> None:
    """The file got a service that the API has; the load balancer works on."""
    put(agent, MAIL)
    agent.end()
    before = programs()
    agent.write(services=[WEB, MAIL | {"port": 26}])
    assert "service 'mail' belongs to the configuration file" in refused_start(agent)
    assert programs() == before != []
    agent.write(services=[WEB])
    agent.start()
    assert names(agent) == {"web", "mail"}


def test_a_state_directory_that_can_not_be_made_is_refused(tmp_path: Path) -> None:
    """With its path."""
    (tmp_path / "file").write_text("")
    state = {"directory": str(tmp_path / "file" / "state"), "pins": str(PINS)}
    assert f"{tmp_path}/file" in refused_start(Agent(tmp_path, {"state": state}))


def test_a_client_outlives_its_agent(agent: Agent) -> None:
    """A connection that the agent's end has cut is made anew."""
    with Client(agent.socket) as client:
        client.health()
        agent.end()
        agent.start()
        client.health()


# Metrics


def test_metrics_have_an_address_of_their_own(tmp_path: Path) -> None:
    """Which serves nothing else: the API is for those who may open its socket."""
    with running(tmp_path, metrics={"listen": "127.0.0.1:19464"}):
        with urlopen("http://127.0.0.1:19464/metrics", timeout=60) as answer:
            text = answer.read().decode()
        labels = 'backend="192.0.2.11",port="80",protocol="tcp",service="web",vip="203.0.113.10"'
        assert f"towpath_backend_packets_total{{{labels}}} 0.0" in text
        with urlopen("http://127.0.0.1:19464/v1/services", timeout=60) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
