# SPDX-License-Identifier: Apache-2.0
"""Services at the socket as a part of an agent: configured, asked, killed, changed, removed."""

from __future__ import annotations

import errno
import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from tests.lab.harness_agent import PINS, Agent
from tests.listed import needs_lists
from tests.prog.kernel.harness_cgroups import new_cgroup
from tests.prog.socket.harness import BACKENDS, PORT, VIP, Child, Servers

from towpath.api.client import Client
from towpath.datapath.host import detach_pinned
from towpath.datapath.socket.balancer import detach
from towpath.kernel.bpf import links
from towpath.kernel.bpf.attach_types import AttachType
from towpath.kernel.bpf.attached import Inventory
from towpath.kernel.net.netns import new_netns
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONNECT4 = AttachType.CGROUP_INET4_CONNECT
SECONDS = 60


def backends(*addresses: str) -> list[dict[str, Any]]:
    """As the file has them."""
    return [{"address": each} for each in addresses]


TCP: dict[str, Any] = {"name": "web", "vip": VIP, "port": PORT, "table_size": 251}
UDP: dict[str, Any] = TCP | {"name": "dns", "protocol": "udp"}


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of the test's own, and a namespace with servers."""
    lines = ["link set lo up", *(f"addr add {each}/32 dev lo" for each in BACKENDS)]
    with new_netns(), new_cgroup() as path:
        subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
        with Servers(BACKENDS):
            yield path


@pytest.fixture
def agent(cgroup: Path, tmp_path: Path) -> Iterator[Agent]:
    """One that has no device."""
    section = {"cgroup": str(cgroup)}
    web, dns = backends(*BACKENDS[:3]), backends(BACKENDS[0])
    services = [TCP | {"backends": web}, UDP | {"backends": dns}]
    agent = Agent(tmp_path, {"socket": section, "services": services})
    del agent.config["devices"]
    agent.write()
    agent.start()
    yield agent
    agent.end()
    detach(PINS / "socket")
    detach_pinned(PINS)


@pytest.fixture
def child(cgroup: Path) -> Iterator[Child]:
    """A process in the cgroup."""
    with Child(cgroup) as made:
        yield made


@needs_lists
def test_it_is_told(agent: Agent, child: Child) -> None:
    """By the API, and by the commands."""
    assert child.run(f"tcp('{VIP}', {PORT})")[1] == [VIP, PORT]
    child.run("make('u', AF_INET, SOCK_DGRAM)")
    child.run(f"S['u'].connect(('{VIP}', {PORT}))")
    with Client(agent.socket) as client:
        found = client.socket()
        assert found.counters.verdicts["connect"]["balanced"] == 2
        assert {each.name for each in found.hooks} >= {"connect4", "recvmsg6", "getpeername4"}
        assert all(each.attached for each in found.hooks)
        (flow,) = client.socket_flows(protocol="udp").flows
        assert (flow.service, str(flow.vip), flow.port) == ("dns", VIP, PORT)
        assert (str(flow.backend), flow.connected) == (BACKENDS[0], True)
        assert client.socket_flows(service="web").flows == ()
        told = client.socket_trace(VIP, PORT, "udp")
        assert (told.verdict, str(told.backend), told.by) == ("balanced", BACKENDS[0], "maglev")
        assert client.socket_trace("192.0.2.99", PORT).verdict == "pass_no_service"
        balanced = 'towpath_socket_calls_total{hook="connect",verdict="balanced"} 2.0'
        assert balanced in client.metrics()
        assert "2 connects, 0 datagrams balanced" in str(client.status())
    listed = agent.command("socket", "list").stdout
    assert "connect4" in listed
    assert "balanced" in listed
    flows = json.loads(agent.command("socket", "flows", "-o", "json").stdout)
    assert [each["service"] for each in flows["flows"]] == ["dns"]
    traced = agent.command("socket", "trace", f"{VIP}:{PORT}/udp").stdout
    assert f"{BACKENDS[0]}:{PORT}" in traced


@needs_lists
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_live_trace_says_where_a_process_got(agent: Agent, cgroup: Path, protocol: str) -> None:
    """By a process in the cgroup; in another one no program runs."""
    with Client(agent.socket) as client:
        told = client.socket_trace(VIP, PORT, protocol, live=True).live or ""
        assert told.startswith(f"getpeername() says {VIP}:{PORT}, and it is connected to 10.77.0.")
        with new_cgroup() as other:
            told = client.socket_trace(VIP, PORT, protocol, live=True, cgroup=str(other)).live or ""
        assert "ENETUNREACH" in told
    assert not (cgroup / "cgroup.procs").read_text()


def test_a_killed_agent_costs_nothing(agent: Agent, child: Child) -> None:
    """The next one goes on with the same links."""
    before = _links()
    agent.kill()
    assert child.run(f"tcp('{VIP}', {PORT})")[1] == [VIP, PORT]
    agent.start()
    assert _links() == before
    assert child.run(f"tcp('{VIP}', {PORT})")[1] == [VIP, PORT]
    with Client(agent.socket) as client:
        assert client.socket().counters.verdicts["connect"]["balanced"] == 2


def _links() -> list[int]:
    found = []
    for path in sorted((PINS / "socket" / "links").iterdir()):
        link = links.from_pin(path)
        assert isinstance(link, links.Link)
        found.append(link.id)
        link.close()
    return found


@needs_lists
def test_sockets_move_when_their_backend_goes(agent: Agent, child: Child) -> None:
    """Removed from the file: by itself, and soon."""
    child.run("make('u', AF_INET, SOCK_DGRAM)")
    child.run(f"S['u'].connect(('{VIP}', {PORT}))")
    assert child.run("ask('u')") == BACKENDS[0]
    with Client(agent.socket) as client:
        agent.write(services=[UDP | {"backends": backends(BACKENDS[1])}], drain={"timeout": "0s"})
        wait_until(lambda: client.socket().stale.ended == 1, seconds=SECONDS, what="its end")
    assert child.run("S['u'].getsockopt(SOL_SOCKET, SO_ERROR)") == errno.ECONNABORTED
    child.run(f"S['u'].connect(('{VIP}', {PORT}))")
    assert child.run("ask('u')") == BACKENDS[1]


def test_cgroups_can_be_excluded_while_it_runs(agent: Agent, child: Child, cgroup: Path) -> None:
    """The cgroup itself can't be another one."""
    section = agent.config["socket"]
    agent.write(socket=section | {"exclude": [str(cgroup)]})
    with Client(agent.socket) as client:
        wait_until(lambda: client.socket().excluded != (), seconds=SECONDS, what="the change")
        assert "errno" in child.run(f"tcp('{VIP}', {PORT})")
        agent.write(socket=section | {"cgroup": "/sys/fs/cgroup"})
        wait_until(lambda: client.status().file.refused is not None, seconds=SECONDS, what="no")
        (problem,) = client.status().file.problems
        assert str(problem).startswith("socket.cgroup: can't change while the agent runs")


def test_without_its_section_it_is_taken_out(agent: Agent, child: Child, cgroup: Path) -> None:
    """By the next agent."""
    agent.end()
    del agent.config["socket"]
    agent.write(services=[])
    agent.start()
    assert Inventory().cgroup(cgroup, CONNECT4) == []
    assert not (PINS / "socket").exists()
    assert "errno" in child.run(f"tcp('{VIP}', {PORT})")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"cgroup": "app"}, "socket.cgroup: 'app' is not an absolute path"),
        ({"no_backend": "drop"}, "socket.no_backend: 'drop' "),
        ({"what": 1}, "socket.what: unknown key"),
    ],
)
def test_bad_input_is_told(tmp_path: Path, section: dict[str, Any], message: str) -> None:
    """And nothing is left."""
    agent = Agent(tmp_path, {"socket": section, "services": []})
    del agent.config["devices"]
    agent.write()
    assert message in agent.start_in_vain()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"cgroup": "/proc"}, "/proc"),
        ({"cgroup": "/sys/fs/cgroup/none"}, "/sys/fs/cgroup/none: No such file"),
        ({"exclude": ["/proc"]}, "open cgroup /proc: "),
    ],
)
def test_what_is_in_the_way_is_told_and_nothing_else_suffers(
    tmp_path: Path, section: dict[str, Any], message: str
) -> None:
    """The agent is there, and says why nothing is balanced at sockets."""
    agent = Agent(tmp_path, {"socket": section, "services": []})
    del agent.config["devices"]
    agent.write()
    agent.start()
    with Client(agent.socket) as client:
        assert message in (client.status().trouble or "")
    assert message in agent.command("status").stdout
    assert message in agent.command("socket", "list").stderr
    agent.end()
    detach_pinned(PINS)


def test_a_cgroup_that_comes_later_and_goes_is_followed(tmp_path: Path) -> None:
    """Sockets are balanced from then on, each time."""
    lines = ["link set lo up", *(f"addr add {each}/32 dev lo" for each in BACKENDS)]
    with new_netns(), new_cgroup() as above:
        subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)
        cgroup = above / "later"
        services = [TCP | {"backends": backends(*BACKENDS[:3])}]
        agent = Agent(tmp_path, {"socket": {"cgroup": str(cgroup)}, "services": services})
        del agent.config["devices"]
        agent.write()
        agent.start()
        with Servers(BACKENDS), Client(agent.socket) as client:
            for _ in range(2):
                wait_until(
                    lambda: bool(client.status().trouble), seconds=SECONDS, what="it to be missed"
                )
                cgroup.mkdir()
                wait_until(
                    lambda: not client.status().trouble, seconds=SECONDS, what="programs to run"
                )
                assert client.get("socket")["proven"]
                with Child(cgroup) as child:
                    assert "errno" not in child.run(f"tcp('{VIP}', {PORT})")
                cgroup.rmdir()
        agent.end()
        detach(PINS / "socket")
        detach_pinned(PINS)
