# SPDX-License-Identifier: Apache-2.0
"""`towpath record` from a real agent with real packets, and everything that can end it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from http.client import HTTPConnection
from ipaddress import ip_address
from socket import AF_UNIX
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from tests.lab.harness_agent import DEVICE, TOWPATH, Agent, put, running
from tests.lab.harness_record import (
    BACKENDS,
    accepted,
    captured,
    end,
    going,
    program_of_device,
    recording,
    resolve_backends,
    send,
    send_until_it_ends,
)
from tests.prog.lb.frames import flows, frame
from tests.read_pcapng import read

from towpath.api.client import Client
from towpath.cli.main import cli
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    """An agent with a service whose backends can be sent to."""
    with running(tmp_path_factory.mktemp("record")) as made:
        resolve_backends()
        yield made


# ---- As it should be -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_whole_file(agent: Agent, tmp_path: Path, number: int) -> None:
    """Packets from the wire, both sides; exit code 0; the program from before is attached again."""
    path = tmp_path / "x.pcapng"
    before = program_of_device()
    sent = list(flows(50))
    with recording(
        agent, path, "0.0.0.0/0 0 203.0.113.10/32 80 TCP", "--direction", "both"
    ) as process:
        assert program_of_device() != before
        send(*sent, frame(dport=81))
        captured(agent, 50)
        code, said = end(process, number)
    assert code == 0
    assert f"50 packets of 50 that match, 100 frames, 7.1 kB, 0 lost; to {path}" in said
    found = accepted(path)
    assert [each.data for each in found.packets if each.inbound] == sent
    assert {each.interface.name for each in found.packets} == {f"{DEVICE}-in", f"{DEVICE}-out"}
    assert {each.said["service"] for each in found.packets} == {"web"}
    assert {each.said["backend"] for each in found.packets} == set(BACKENDS)
    assert {each.said["verdict"] for each in found.packets} == {"tx"}
    assert {each.dropped for each in found.interfaces} == {0}
    assert program_of_device() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_file_is_begun_ends_a_whole_file(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The agent captures before this process knows it."""
    path, begin = tmp_path / "x.pcapng", Client.record

    def signalled(client: Client, capture: Any) -> Any:
        stream = begin(client, capture)
        send(*flows(5))
        captured(agent, 5)
        os.kill(os.getpid(), number)
        return stream

    monkeypatch.setattr(Client, "record", signalled)
    arguments = ["record", "-w", str(path), "--socket", str(agent.socket)]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert len(accepted(path).packets) == 5


def test_wireshark_shows_the_way(agent: Agent, tmp_path: Path) -> None:
    """Both sides of a packet are found by its id, a flow and a backend by the comment."""
    path = tmp_path / "x.pcapng"
    with recording(
        agent, path, "--service", "web", "--packets", "9", "--direction", "both"
    ) as process:
        send(*flows(20))
        process.communicate(timeout=120)
    first = accepted(path).packets[0]
    fields = ["-T", "fields", "-e", "frame.interface_name", "-e", "ip.dst"]
    for wanted in (
        f"frame.packet_id == {first.packet_id}",
        f'frame.comment contains "{first.said["flow"]}"',
        f'frame.comment contains "backend={first.said["backend"]}" && frame.number < 3',
    ):
        command = ["tshark", "-r", str(path), "-Y", wanted, *fields]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert shown.splitlines() == [
            f"{DEVICE}-in\t203.0.113.10",
            f"{DEVICE}-out\t{first.said['backend']},203.0.113.10",
        ]


def test_wireshark_takes_nothing_for_sent_again(agent: Agent, tmp_path: Path) -> None:
    """By default; with copies of what is sent on, each of them (docs/recorder.md)."""
    sent = list(flows(20))
    for option, again in ((), 0), (("--direction", "both"), len(sent)):
        path = tmp_path / f"{again}.pcapng"
        with recording(agent, path, "--service", "web", "--packets", "20", *option) as process:
            send(*sent)
            process.communicate(timeout=120)
        assert len(accepted(path).packets) == len(sent) + again
        command = ["tshark", "-r", str(path), "-Y", "tcp.analysis.flags", "-T", "fields"]
        shown = subprocess.run(
            [*command, "-e", "frame.number"], capture_output=True, text=True, check=True
        )
        assert len(shown.stdout.split()) == again


def test_times_are_right(agent: Agent, tmp_path: Path) -> None:
    """Between before and after, in order, and in nanoseconds."""
    path = tmp_path / "x.pcapng"
    with recording(agent, path, "--packets", "20", "--service", "web") as process:
        before = time.time_ns()
        send(*flows(20))
        process.communicate(timeout=120)
        after = time.time_ns()
    times = [each.time for each in accepted(path).packets]
    assert times == sorted(times)
    # The offset between the clocks is read once; they are slewed apart by far less.
    assert before - 1_000_000 <= times[0] < times[-1] <= after + 1_000_000


def test_limits_end_it(agent: Agent, tmp_path: Path) -> None:
    """By packets or time, by itself."""
    path = tmp_path / "x.pcapng"
    with recording(
        agent, path, "--packets", "5", "--snaplen", "60", "--direction", "both"
    ) as process:
        send(*flows(30))
        _, said = process.communicate(timeout=120)
    assert "ended: so many packets" in said
    assert len(accepted(path).packets) == 10
    with recording(agent, path, "--time", "1", "--sample", "1/3") as process:
        _, said = process.communicate(timeout=120)
    assert (process.returncode, "ended: so much time" in said) == (0, True)
    assert len(accepted(path).packets) <= 2


def test_stdout_is_a_file(agent: Agent) -> None:
    """For a pipe to Wireshark: the file comes while it is captured."""
    with piped(agent, "--service", "web") as (process, out):
        found = os.read(out, 65536)
        send(*flows(3))
        while len(read(found).packets) < 3:
            found += os.read(out, 65536)
        process.send_signal(signal.SIGINT)
        while more := os.read(out, 65536):
            found += more
        assert process.wait(20) == 0
    assert len(read(found).packets) == 3


def test_a_pipe_that_breaks_ends_it(agent: Agent) -> None:
    """With a message, when the reader of the pipe goes."""
    with piped(agent) as (process, out):
        os.read(out, 65536)
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        send_until_it_ends(process)
        assert process.wait(20) == 1
        assert b"whoever read from the pipe has gone" in process.stderr.read()


@contextmanager
def piped(agent: Agent, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The command as it writes to a pipe, and the pipe; killed at the end if it still runs."""
    command = [*TOWPATH, "record", "-w", "-", *arguments]
    environment = os.environ | {"TOWPATH_SOCKET": str(agent.socket)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.fileno()
        finally:
            process.kill()


def test_others_list_and_stop_it(agent: Agent, tmp_path: Path) -> None:
    """`recorder list` shows it, `recorder stop` ends it; an unknown number is refused."""
    path = tmp_path / "x.pcapng"
    with recording(agent, path, "--service", "web") as process:
        (entry,) = [
            each
            for each in json.loads(agent.command("recorder", "list", "-o", "json").stdout)
            if not each["ended"]
        ]
        assert entry["capture"]["services"] == ["web"]
        assert "service web" in agent.command("recorder", "list").stdout
        assert agent.command("recorder", "stop", str(entry["id"])).returncode == 0
        _, said = process.communicate(timeout=120)
    assert (process.returncode, "ended: it was stopped" in said) == (0, True)
    accepted(path)
    refused = agent.command("recorder", "stop", "999")
    assert refused.returncode == 1
    assert "no capture 999; there are: " in refused.stderr


def test_changes_go_on_meanwhile(agent: Agent, tmp_path: Path) -> None:
    """A service that comes while it captures is in the file by its name."""
    path = tmp_path / "x.pcapng"
    new = {
        "name": "new",
        "vip": "203.0.113.77",
        "port": 80,
        "table_size": 251,
        "backends": [{"address": BACKENDS[0]}],
    }
    with recording(agent, path) as process:
        put(agent, new)
        send(frame(vip=ip_address("203.0.113.77")))
        captured(agent, 1)
        end(process)
    put(agent, prune=True)
    assert {each.said.get("service") for each in accepted(path).packets} >= {"new"}


# ---- Wrong usage ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["10.0.0.1/8 0 0 0 0"], "filters: source: '10.0.0.1/8' has host bits set; allowed: 10.0"),
        (["0 0 0 90-80 tcp"], "filters: destination port: '90-80' ends before it begins"),
        (["--service", "nope"], "services: no service 'nope'; there are: web"),
        (["--snaplen", "0"], "snaplen: 0 is out of range; allowed: 1 to 65535"),
        (["-w", "/nowhere/x"], "/nowhere/x: No such file or directory"),
    ],
)
def test_wrong_usage_is_refused(agent: Agent, arguments: list[str], message: str) -> None:
    """One line that says what, where and what is allowed; nothing is captured."""
    refused = agent.command("record", *arguments)
    assert refused.returncode == 1
    assert message in refused.stderr
    wait_until(lambda: not going(agent), seconds=120, what="no capture")


# ---- Faults --------------------------------------------------------------------------------------


def test_a_full_disk_ends_it(agent: Agent, tmp_path: Path) -> None:
    """With a message; what is in the file are whole blocks."""
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(mount)], check=True)
    try:
        path = mount / "x.pcapng"
        with recording(agent, path) as process:
            send_until_it_ends(process)
            _, said = process.communicate(timeout=120)
        assert process.returncode == 1
        assert f"{path}: No space left on device; what was written before is there" in said
        found = accepted(path)
        assert len(found.packets) > 100
        assert 60_000 < path.stat().st_size <= 65536
    finally:
        subprocess.run(["umount", str(mount)], check=True)
    wait_until(lambda: not going(agent), seconds=120, what="the capture to end")


def test_a_file_that_vanishes_ends_it(agent: Agent, tmp_path: Path) -> None:
    """With a message."""
    path = tmp_path / "x.pcapng"
    with recording(agent, path) as process:
        # The agent has the capture before the command has the file.
        wait_until(path.exists, seconds=120, what="the file")
        path.unlink()
        send_until_it_ends(process)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert f"{path} was deleted while it was written to" in said
    wait_until(lambda: not going(agent), seconds=120, what="the capture to end")


def test_a_killed_reader_leaves_nothing(agent: Agent, tmp_path: Path) -> None:
    """The capture ends, and the program from before is attached again."""
    before = program_of_device()
    with recording(agent, tmp_path / "x.pcapng") as process:
        assert program_of_device() != before
        process.kill()
        wait_until(lambda: not going(agent), seconds=120, what="the capture to end")
    assert program_of_device() == before


def test_a_reader_that_stops_loses_packets_and_no_more(agent: Agent) -> None:
    """Packets go on; when it goes on too, the file is whole and says how many were lost."""
    connection = HTTPConnection("localhost")
    connection.sock = socket.socket(AF_UNIX)
    connection.sock.connect(str(agent.socket))
    body = json.dumps({"direction": "in", "services": ["web"]})
    connection.request("POST", "/v1/captures", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    number = int(answer.headers["Towpath-Capture"])
    big = frame(payload=b"x" * 1400)
    total = 0
    with Client(agent.socket) as client:
        before = client.counters().verdicts["tx"]
        deadline = time.monotonic() + 120
        while not client.capture(number).lost:
            assert time.monotonic() < deadline
            send(*[big] * 2000)
            total += 2000
        assert client.counters().verdicts["tx"] == before + total
        client.stop_capture(number)
        found = read(answer.read())
        entry = client.capture(number)
    answer.close()
    connection.close()
    assert entry.ended
    (interface,) = found.interfaces
    assert interface.received == total
    assert (interface.dropped or 0) == entry.lost == total - len(found.packets) > 0


def test_two_clients_at_once(agent: Agent, tmp_path: Path) -> None:
    """Each gets its own."""
    tcp, udp = tmp_path / "tcp.pcapng", tmp_path / "udp.pcapng"
    with (
        recording(agent, tcp, "0 0 0 80 tcp") as first,
        recording(agent, udp, "0 0 0 80 udp") as second,
    ):
        send(*[frame(), frame(protocol=17)] * 10)
        captured(agent, 10)
        assert end(first)[0] == 0
        send(frame(protocol=17))
        captured(agent, 11)
        assert end(second)[0] == 0
    assert len(accepted(tcp).packets) == 10
    assert len(accepted(udp).packets) == 11
