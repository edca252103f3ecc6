# SPDX-License-Identifier: Apache-2.0
"""An agent whose devices, programs and pins are taken away, and what it says of that."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from contextlib import closing
from pathlib import Path
from socket import AF_PACKET, SOCK_RAW, socket
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from tests.lab.harness_agent import DEVICE, MAIL, PEER, PINS, WEB, Agent, device, ip, put, running

from towpath.api.client import Client
from towpath.kernel.bpf import links
from towpath.kernel.bpf.links import xdp_program_id
from towpath.kernel.net.interfaces import device_index
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SECONDS = 60.0
MISSING = f"device {DEVICE} is missing: it is gone"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """An agent that serves WEB from its file."""
    with running(tmp_path) as started:
        yield started


def make_device() -> None:
    """The device that there was, once more."""
    ip("link", "add", DEVICE, "type", "veth", "peer", "name", PEER)
    ip("address", "add", "192.0.2.1/24", "dev", DEVICE)
    for name in (DEVICE, PEER):
        ip("link", "set", name, "up")


def health(agent: Agent) -> tuple[int, str]:
    """What the agent's health is, as whoever watches it sees it."""
    code, found = agent.request("GET", "/v1/health")
    return code, found["problems"][0]["message"] if code == 503 else found["status"]


def wait_for_health(agent: Agent, code: int, text: str) -> None:
    """Return when it is told to be so."""
    wait_until(
        lambda: health(agent) == (code, text),
        seconds=SECONDS,
        what=f"health {code}, {text}, and not {health(agent)}",
    )


def on_device() -> int:
    """The XDP program on the device."""
    return xdp_program_id(device_index(DEVICE))


def metric(agent: Agent, name: str) -> float:
    """One metric by its name with labels."""
    with Client(agent.socket) as client:
        lines = client.metrics().splitlines()
    (value,) = (line.rpartition(" ")[2] for line in lines if line.startswith(f"{name} "))
    return float(value)


def balances(agent: Agent) -> bool:
    """Whether a packet from the wire reaches the load balancer's program and gets a backend."""

    def counted() -> int:
        with Client(agent.socket) as client:
            return client.service_counters("web").packets

    before = counted()
    packet = IP(src="198.51.100.7", dst=WEB["vip"]) / TCP(dport=WEB["port"])
    with closing(socket(AF_PACKET, SOCK_RAW)) as wire:
        wire.bind((PEER, 0))
        wire.send(bytes(Ether(dst="02:00:00:00:00:01") / packet))
    return counted() == before + 1


def test_a_device_that_goes_is_told_and_attached_to_when_it_is_back(agent: Agent) -> None:
    """In health, status, metrics and log; by itself, without a restart or a reload."""
    attached = f'towpath_device_attached{{device="{DEVICE}"}}'
    assert balances(agent)
    assert metric(agent, attached) == 1
    assert metric(agent, f'towpath_device_native{{device="{DEVICE}"}}') == 1
    with Client(agent.socket) as client:
        assert "# TYPE towpath_refused_packets_total counter" in client.metrics()
    for _ in range(2):
        ip("link", "delete", DEVICE)
        wait_for_health(agent, 503, MISSING)
        assert metric(agent, attached) == 0
        with Client(agent.socket) as client:
            status = client.status()
        (one,) = status.device_status
        assert (one.name, one.index, one.mode, one.trouble) == (DEVICE, None, None, MISSING)
        assert status.trouble == MISSING
        assert status.capabilities["lb"] == "1 services on 0 of 1 devices"
        shown = agent.command("status").stdout
        assert f"{DEVICE} (not attached)" in shown
        make_device()
        wait_for_health(agent, 200, "ok")
        assert balances(agent)
        assert metric(agent, attached) == 1
        assert f"{DEVICE} (native)" in agent.command("status").stdout
    assert agent.log.count(MISSING) == 2
    assert f"{DEVICE}: attached in native mode, index {device_index(DEVICE)}" in agent.log


def test_a_reload_tells_the_truth(agent: Agent) -> None:
    """The file is in force, and the device is missing all the same."""
    ip("link", "delete", DEVICE)
    wait_for_health(agent, 503, MISSING)
    assert agent.process is not None
    agent.process.send_signal(signal.SIGHUP)
    said = f"{agent.file}: but {MISSING}"
    wait_until(lambda: said in agent.log, seconds=SECONDS, what="the truth in the log")
    make_device()
    agent.process.send_signal(signal.SIGHUP)
    wait_for_health(agent, 200, "ok")
    assert balances(agent)
    assert agent.log.count(said) == 1


def test_services_can_be_changed_while_a_device_is_missing(agent: Agent) -> None:
    """And hold from the moment on that it is back."""
    ip("link", "delete", DEVICE)
    wait_for_health(agent, 503, MISSING)
    put(agent, MAIL)
    agent.write(services=[WEB | {"backends": [{"address": "192.0.2.77"}]}])
    with Client(agent.socket) as client:
        wait_until(
            lambda: (
                [str(each.address) for each in client.service("web").backends] == ["192.0.2.77"]
            ),
            seconds=SECONDS,
            what="the file to be in force",
        )
        make_device()
        wait_for_health(agent, 200, "ok")
        found = client.trace(f"198.51.100.7:40000 -> {WEB['vip']}:{WEB['port']}")
    assert str(found.backend) == "192.0.2.77"
    assert balances(agent)


def test_a_program_that_somebody_detaches_is_put_back(agent: Agent) -> None:
    """And counted; health is well, since it is put right."""
    repairs = 'towpath_repairs_total{what="programs"}'
    assert metric(agent, repairs) == 0
    pin = PINS / "links" / f"xdp-{device_index(DEVICE)}"
    with links.from_pin(pin):
        pass  # which detaches at its end
    wait_until(lambda: metric(agent, repairs) == 1, seconds=SECONDS, what="it to be put back")
    assert on_device()
    assert balances(agent)
    assert health(agent) == (200, "ok")
    assert f"{DEVICE}: its program was detached by somebody else; it is put back" in agent.log


def test_pins_that_somebody_removes_are_there_again_when_the_agent_dies(agent: Agent) -> None:
    """So the kernel balances on, and the next agent takes over what it finds."""
    before, pin = on_device(), PINS / "links" / f"xdp-{device_index(DEVICE)}"
    # All in one moment: it makes again what it misses while others are still removed. If it is just
    # looking, what it has looked at before is found missing by its next look.
    shutil.rmtree(PINS.rename(PINS.with_name(f"{PINS.name}-removed")))
    wait_until(
        lambda: pin.exists() and metric(agent, 'towpath_repairs_total{what="pins"}') >= 1,
        seconds=SECONDS,
        what="the pins to be there again",
    )
    assert "pins were removed by somebody else" in agent.log
    agent.kill()
    assert on_device() == before
    agent.start()
    assert balances(agent)
    assert "copied" not in agent.log  # the tables fit: nothing had to be moved


def test_pins_that_can_not_be_made_again_are_told(agent: Agent, tmp_path: Path) -> None:
    """For as long as it is so: here another file system is mounted over them, to read only."""
    other, root = tmp_path / "other", str(PINS.parent)
    other.mkdir()
    mount("-t", "bpf", "bpf", str(other))
    mount("-o", "remount,ro", str(other))
    mount("--bind", str(other), root)
    try:
        wait_for_health(agent, 503, f"pins: make {PINS}: Read-only file system (EROFS)")
        assert balances(agent)
    finally:
        for each in (root, str(other)):
            subprocess.run(["umount", each], check=True)
    wait_for_health(agent, 200, "ok")
    assert (PINS / "maps" / "backends").exists()


def mount(*arguments: str) -> None:
    """Run the mount command, in the mount namespace of all tests."""
    subprocess.run(["mount", *arguments], check=True)


def test_an_agent_that_dies_while_its_device_is_missing_starts_again(agent: Agent) -> None:
    """It tells so, as the one before, and attaches when the device is there."""
    ip("link", "delete", DEVICE)
    wait_for_health(agent, 503, MISSING)
    agent.kill()
    agent.start()
    wait_for_health(agent, 503, MISSING)
    make_device()
    wait_for_health(agent, 200, "ok")
    assert balances(agent)


def test_a_storm_of_devices_holds_nothing_up(agent: Agent) -> None:
    """Hundreds come and go, the balanced one among them; what is asked for meanwhile is done."""
    lines = [f"link add tps{n} type veth peer name tpq{n}" for n in range(150)]
    lines += [f"link delete {DEVICE}", f"link add {DEVICE} type veth peer name {PEER}"]
    lines += [
        f"link set {DEVICE} up",
        f"link set {PEER} up",
        f"address add 192.0.2.1/24 dev {DEVICE}",
    ]
    lines += [f"link delete tps{n}" for n in range(150)]
    batch = subprocess.Popen(["ip", "-batch", "-"], stdin=subprocess.PIPE, text=True)
    assert batch.stdin is not None
    batch.stdin.write("\n".join(lines) + "\n")
    batch.stdin.close()
    for number in range(10):
        put(agent, MAIL | {"name": f"s{number}", "port": 1000 + number})
    assert batch.wait(120) == 0
    wait_for_health(agent, 200, "ok")
    wait_until(lambda: bool(on_device()), seconds=SECONDS, what="the device to be attached to")
    assert balances(agent)


def test_what_was_switched_is_set_back_by_whoever_detaches(agent: Agent) -> None:
    """Also by an agent that has no devices any more, of one that was killed."""

    def forwards() -> list[str]:
        return [
            Path(f"/proc/sys/net/{family}/conf/{DEVICE}/forwarding").read_text().strip()
            for family in ("ipv4", "ipv6")
        ]

    assert forwards() == ["1", "0"]
    agent.kill()
    agent.config = {key: agent.config[key] for key in ("api", "state")}
    agent.write()
    agent.start()
    assert forwards() == ["0", "0"]
    assert not on_device()
    assert agent.end() == 0
    assert not PINS.exists()


def test_the_log_tells_what_is_switched(agent: Agent) -> None:
    """What it was, and what it is now."""
    assert f"net.ipv4.conf.*.forwarding of {DEVICE}: 1, was 0" in agent.log


def test_a_second_device_that_is_missing_stops_nobody(tmp_path: Path) -> None:
    """The other one is balanced, by the next agent as well."""
    with device():
        ip("link", "add", "tpagent2", "type", "veth", "peer", "name", "tpagent3")
        agent = Agent(tmp_path, {"devices": [DEVICE, "tpagent2"]})
        agent.start()
        try:
            ip("link", "delete", "tpagent2")
            wait_for_health(agent, 503, "device tpagent2 is missing: it is gone")
            assert balances(agent)
            assert agent.end() == 0
            agent.start()
            wait_for_health(agent, 503, "device tpagent2 is missing: it is gone")
            assert balances(agent)
            with Client(agent.socket) as client:
                assert [each.index is None for each in client.status().device_status] == [
                    False,
                    True,
                ]
            states = json.loads(agent.command("status", "-o", "json").stdout)["status"]
            assert [each["name"] for each in states["device_status"]] == [DEVICE, "tpagent2"]
        finally:
            agent.kill()


def test_a_socket_and_a_database_that_are_removed_are_told(tmp_path: Path) -> None:
    """Where it can still be told: at the address of the metrics, in health, in the log."""
    with running(tmp_path, metrics={"listen": "127.0.0.1:19465"}) as agent:
        database = tmp_path / "state" / "state.db"
        database.unlink()
        wait_until(lambda: health(agent)[0] == 503, seconds=SECONDS, what="it to be told")
        assert health(agent)[1].startswith(f"{database} was removed or replaced: what sources")
        agent.socket.unlink()
        told = f"{agent.socket} was removed or replaced: nobody can reach its API there"
        wait_until(lambda: told in agent.log, seconds=SECONDS, what="it to be told in the log")
        assert agent.end() == 0
        agent.start()
        assert health(agent) == (200, "ok")
