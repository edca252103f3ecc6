# SPDX-License-Identifier: Apache-2.0
"""Health checks of a running agent: what is broken is found, and clients don't notice."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_health import FAST, SECONDS, Checking, answers, shell, without_vip
from tests.lab.harness_transfer import PORT, asked, datagram_client, transfer_servers

from towpath.api.client import ApiError, Client
from towpath.lab import Lab
from towpath.lab.agent import WEB4, WEB6
from towpath.lab.topology import BALANCER, DEVICE, VIP4
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

UP = {"be1": "up", "be2": "up", "be3": "up"}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The lab with three backends: of the IPv4 VIP, the last is reached over IPv6."""
    with Lab.up(3) as lab:
        yield lab


@pytest.fixture
def agent(lab: Lab) -> Iterator[Checking]:
    """An agent that checks both services, all of whose backends are up."""
    made = Checking(lab)
    made.write()
    made.start()
    for name in (WEB4, WEB6):
        made.wait(name, **UP)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.kill()


def weights(agent: Checking) -> list[float]:
    """The shares of the IPv4 service's table, as the kernel has it: by tracing flows."""
    with Client(agent.socket) as client:
        chosen = [
            str(client.trace(f"198.51.100.77:{port} -> {VIP4}:80 tcp").backend)
            for port in range(2000, 2200)
        ]
    links = agent.lab.topology.backend_links
    addresses = [str(link.node4[0].ip) for link in links[:-1]] + [str(links[-1].node6[0].ip)]
    return [chosen.count(address) / len(chosen) for address in addresses]


def test_a_backend_that_answers_at_its_own_address_only_is_down(agent: Checking) -> None:
    """Its VIP is gone: no client gets there, until it is back."""
    own = agent.lab.topology.backend_links[1].node4[0].ip
    with without_vip(agent.lab, 1):
        agent.wait(WEB4, be2="down")
        assert shell(BALANCER, f"curl -s -m 2 http://{own}/") == "be2"
        assert agent.states(WEB6) == UP
        check = agent.checks(WEB4)["be2"]
        assert check.error == "no answer within 1 s"
        wait_until(lambda: weights(agent)[1] == 0, seconds=SECONDS, what="be2 to get no flows")
        found = answers(60)
        assert found.keys() == {"be1", "be3"}
        assert sum(found.values()) == 60
    agent.wait(WEB4, **UP)
    wait_until(lambda: weights(agent)[1] > 0, seconds=SECONDS, what="be2 to get flows")
    assert answers(60).keys() == {"be1", "be2", "be3"}


def test_a_backend_that_does_not_unwrap_is_down(agent: Checking) -> None:
    """An address of it that answers, but for which nobody takes packets out of the tunnel."""
    link = agent.lab.topology.backend_links[0]
    extra = ip_address("2001:db8:2:1::99")
    shell(link.node, f"ip address add {extra}/64 dev {DEVICE} nodad")
    try:
        wait_until(
            lambda: shell(BALANCER, f"curl -s -m 2 'http://[{extra}]/' || true") == "be1",
            seconds=SECONDS,
            what=f"{extra} to answer",
        )
        with Client(agent.socket) as client:
            client.add_service(
                "more", vip=str(VIP4), port=8080, backends=[extra], health=FAST | {"port": 80}
            )
            wait_until(
                lambda: [each.state for each in client.checks("more")] == ["down"],
                seconds=SECONDS,
                what="it to be down",
            )
            client.remove_service("more")
    finally:
        shell(link.node, f"ip address del {extra}/64 dev {DEVICE}")


def test_each_change_is_told_once(agent: Checking) -> None:
    """In the log, however many checks fail; and shown by the commands and the metrics."""
    address = agent.lab.topology.backend_links[0].node4[0].ip
    with without_vip(agent.lab, 0):
        agent.wait(WEB4, be1="down")
        failed = agent.checks(WEB4)["be1"].failed
        wait_until(
            lambda: agent.checks(WEB4)["be1"].failed > failed + 3,
            seconds=SECONDS,
            what="more checks",
        )
        with Client(agent.socket) as client:
            metrics = client.metrics()
        labels = f'backend="{address}",port="80",protocol="tcp",service="{WEB4}",vip="{VIP4}"'
        assert f"towpath_backend_health{{{labels}}} 0.0" in metrics
        assert agent.checks(WEB4)["be1"].failed > 3
    agent.wait(WEB4, **UP)
    agent.end()
    lines = [line for line in agent.log.splitlines() if "is down" in line or "is up" in line]
    assert [line.partition("service ")[2] for line in lines] == [
        f"{WEB4}: backend {address} is down: no answer within 1 s",
        f"{WEB4}: backend {address} is up",
    ]


def test_when_none_is_up_all_get_flows(agent: Checking) -> None:
    """By default: a check that is wrong itself does no harm."""
    before = weights(agent)
    agent.write(FAST | {"path": "/missing"})
    agent.wait(WEB4, be1="down", be2="down", be3="down")
    wait_until(lambda: "no backend is up" in agent.log, seconds=SECONDS, what="the log")
    assert weights(agent) == before
    assert set(answers(30)) == {"be1", "be2", "be3"}
    assert agent.checks(WEB4)["be1"].error == "status 404; wanted: 200-399"
    agent.write()
    agent.wait(WEB4, **UP)


def test_when_none_is_up_none_gets_flows_if_so_asked(agent: Checking) -> None:
    """Packets are dropped and counted, and nothing else is."""
    agent.write(FAST | {"path": "/missing", "on_all_failed": "closed"})
    agent.wait(WEB4, be1="down", be2="down", be3="down")

    def empty() -> bool:
        with Client(agent.socket) as client:
            trace = client.trace(f"198.51.100.77:1 -> {VIP4}:80 tcp")
        return trace.verdict == "drop_no_backend"

    wait_until(empty, seconds=SECONDS, what="the table to be empty")
    with Client(agent.socket) as client:
        before = client.counters().verdicts
        assert answers(3, seconds=1) == {"": 3}
        after = client.counters().verdicts
    moved = {name for name in after if after[name] != before[name]}
    assert "drop_no_backend" in moved
    assert not {"tx", "redirect", "handoff"} & moved
    agent.write()
    agent.wait(WEB4, **UP)


def test_a_restart_moves_no_flows(agent: Checking) -> None:
    """What was down when the agent was killed gets none until it is known to be up."""
    with without_vip(agent.lab, 1):
        agent.wait(WEB4, be2="down")
        wait_until(lambda: weights(agent)[1] == 0, seconds=SECONDS, what="be2 to get no flows")
        before = weights(agent)
        agent.kill()
        slow = FAST | {"interval": "60s"}  # so that the first results are the only ones
        agent.write(slow)
        agent.start()
        assert weights(agent) == before
        wait_until(
            lambda: agent.states(WEB4) == {"be1": "up", "be2": "down", "be3": "up"},
            seconds=SECONDS,
            what="the first results",
        )
        assert weights(agent) == before
    agent.write()
    agent.wait(WEB4, **UP)
    wait_until(lambda: weights(agent)[1] > 0, seconds=SECONDS, what="be2 to get flows")


@pytest.mark.parametrize("wish", [None, "move", "keep"])
def test_flows_of_udp_whose_backend_is_down(agent: Checking, wish: str | None) -> None:
    """A client that goes on sending from one port is answered by another, or waits, as wished."""
    links = agent.lab.topology.backend_links
    health = FAST | {"port": 80} | ({"on_down": wish} if wish else {})
    with (
        transfer_servers(agent.lab, VIP4),
        Client(agent.socket) as client,
        datagram_client(VIP4) as sock,
    ):
        backends = [link.node4[0].ip for link in links]
        client.add_service(
            "datagrams", vip=str(VIP4), port=PORT, protocol="udp", backends=backends, health=health
        )
        agent.wait("datagrams", **UP)
        had = asked(sock)
        source, port = sock.getsockname()
        flow = f"{source}:{port} -> {VIP4}:{PORT} udp"
        number = [link.port for link in links].index(had)
        with without_vip(agent.lab, number):
            state = "quarantined" if wish == "keep" else "down"

            def found() -> str:
                return str(client.backend_status("datagrams")[number].state)

            wait_until(lambda: found() == state, seconds=SECONDS, what=f"{had} to be {state}")
            traced = client.trace(flow)
            if wish == "keep":
                assert (traced.backend, traced.flow_hit) == (backends[number], True)
            else:
                assert (traced.backend != backends[number], traced.flow_hit) == (True, False)
                now = asked(sock)
                assert now != had
                assert asked(sock) == now
        agent.wait("datagrams", **UP)
        assert asked(sock) == (had if wish == "keep" else now)
        client.remove_service("datagrams")


def test_another_vip_gives_no_flows_to_what_is_down(agent: Checking) -> None:
    """Nor while nobody knows how it is under the new one."""
    other = ip_address("203.0.113.200")
    links = agent.lab.topology.backend_links
    backends = [link.node4[0].ip for link in links]
    for link in (links[0], links[2]):
        shell(link.node, f"ip address add {other}/32 dev lo")
    try:
        with without_vip(agent.lab, 1), Client(agent.socket) as client:
            slow = FAST | {"port": 80, "interval": "2s"}
            client.add_service(
                "moving", vip=str(VIP4), port=81, backends=backends, table_size=251, health=slow
            )
            agent.wait("moving", be1="up", be2="down", be3="up")
            wait_until(
                lambda: str(client.backend_status("moving")[1].state) == "quarantined",
                seconds=SECONDS,
                what="be2 to get no flows",
            )
            client.put_service(replace(client.service("moving"), vip=other))
            chosen = {
                client.trace(f"198.51.100.77:{port} -> {other}:81 tcp").backend
                for port in range(2000, 2060)
            }
            assert chosen == {backends[0], backends[2]}
            agent.wait("moving", be1="up", be2="down", be3="up")
            assert str(client.backend_status("moving")[1].state) == "quarantined"
            client.remove_service("moving")
    finally:
        for link in (links[0], links[2]):
            shell(link.node, f"ip address del {other}/32 dev lo")


def test_nothing_of_the_checks_is_left(agent: Checking) -> None:
    """No rule, route or program when it ends; not even checks when no service has any."""
    state = "ip rule; ip -6 rule; ip route show table 29808; ip -6 route show table 29808; true"
    assert "fwmark 0x74" in shell(BALANCER, state)
    agent.write(None)
    wait_until(
        lambda: "fwmark 0x74" not in shell(BALANCER, state), seconds=SECONDS, what="the rule to go"
    )
    wait_until(lambda: agent.states(WEB4) == {}, seconds=SECONDS, what="the checks to go")
    agent.write()
    agent.wait(WEB4, **UP)
    assert "fwmark 0x74" in shell(BALANCER, state)
    agent.end()
    assert "fwmark 0x74" not in shell(BALANCER, state)


def test_a_command_is_run_for_each_backend(agent: Checking) -> None:
    """From the file only, and told what it is about."""
    script = (
        'test "$TOWPATH_SERVICE" = web4 && curl -sf -m 1 -o /dev/null "http://$TOWPATH_BACKEND"'
    )
    command = ["/bin/sh", "-c", script]
    agent.write(FAST | {"type": "command", "timeout": "2s", "command": command})
    agent.wait(WEB4, be1="up", be2="up")
    agent.wait(WEB6, be1="down")
    assert agent.checks(WEB6)["be1"].error == "exit status 1"
    with Client(agent.socket) as client, pytest.raises(ApiError) as caught:
        client.add_service(
            "other", vip="203.0.113.99", port=1, health={"type": "command", "command": ["/bin/id"]}
        )
    assert "health.type: command of service 'other' can't be set through the API" in str(
        caught.value
    )


def test_what_the_commands_show(agent: Checking) -> None:
    """Who is up, and why the others aren't."""
    with without_vip(agent.lab, 0):
        agent.wait(WEB4, be1="down")
        address = str(agent.lab.topology.backend_links[0].node4[0].ip)
        status = agent.command("status")
        assert "5 up, 1 down" in status, status
        assert any(
            WEB4 in line and address in line and "no answer within 1 s" in line
            for line in status.splitlines()
        )
        listed = [line.split() for line in agent.command("service", "list").splitlines()]
        assert "2/3" in next(line for line in listed if line[:1] == [WEB4])
        assert "3/3" in next(line for line in listed if line[:1] == [WEB6])
        backends = agent.command("backend", "list", WEB4).splitlines()
        assert "down" in next(line for line in backends if address in line)
        assert "no answer within 1 s" in agent.command("service", "get", WEB4)
