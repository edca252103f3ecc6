# SPDX-License-Identifier: Apache-2.0
"""What the agent makes of checks that pass, fail, flap or can't be made."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.agent.harness_servers import HOST, OK, RESET, serving
from tests.unit.agent.samples import MemoryDatapath

from towpath.agent.errors import InvalidError
from towpath.agent.health import monitor
from towpath.agent.health.monitor import Monitor
from towpath.agent.health.registry import Id
from towpath.agent.health.target import Target
from towpath.agent.lb.controller import Controller
from towpath.agent.lb.store import Store
from towpath.agent.writer import Writer
from towpath.core.health import State, step
from towpath.datapath.errors import CapacityError
from towpath.datapath.health.asked import Asked
from towpath.kernel.errors import KernelError
from towpath.model import AllFailed, Backend, CheckType, Config, Device, Health, Service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
    from pathlib import Path

    from towpath.core.lb.plan import Transition
    from towpath.model import Address
    from towpath.model.service import Forwarding

FAST = Health(CheckType.HTTP, interval=0.1, timeout=5.0, rise=2, fall=2)
BACKENDS = tuple(ip_address(f"192.0.2.{number}") for number in (11, 12, 13))
SECONDS = 120.0


@dataclass
class Backends:
    """A server for all backends, and the way to it: each is known by where it is asked from."""

    ill: set[Address] = field(default_factory=set)
    asked: list[Address] = field(default_factory=list)
    opened: list[set[Address]] = field(default_factory=list)
    others: set[Address] = field(default_factory=set)
    under_way: int = 0
    most: int = 0
    slow: float = 0.0
    broken: Exception | None = None
    closed: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer as the backend would that is asked."""
        own = ip_address(writer.get_extra_info("peername")[0])
        backend = ip_address(f"192.0.2.{own.packed[-1]}")
        await reader.readuntil(b"\r\n\r\n")
        self.asked.append(backend)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(self.slow)
        writer.write(OK if backend not in self.ill else b"HTTP/1.1 503 Ill\r\n\r\n")
        await writer.drain()
        self.under_way -= 1

    def open(self, vips: Iterable[Address], others: Iterable[Address] = ()) -> None:
        """Note it."""
        if self.broken:
            raise self.broken
        self.opened.append(set(vips))
        self.others = set(others)

    def close(self) -> None:
        """Note it."""
        self.closed += 1

    def connection(self, asked: Asked) -> socket.socket:
        """A socket whose own address tells the backend."""
        if self.broken:
            raise self.broken
        assert asked == Asked(HOST, asked.backend)
        made = socket.socket()
        made.settimeout(0)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        made.bind((f"127.0.0.{asked.backend.packed[-1]}", 0))
        return made


@dataclass
class World:
    """An agent's parts, around a datapath in memory."""

    backends: Backends
    controller: Controller
    monitor: Monitor
    datapath: MemoryDatapath
    port: int
    doubted: list[Address]
    """Whose next hop was to be resolved anew, in order."""

    @property
    def service(self) -> Service:
        """The service, as it is in force."""
        return self.datapath.held["web"]

    @property
    def taking(self) -> list[int]:
        """1 for each of its backends that gets new flows, else 0."""
        return [int(backend.takes_flows) for backend in self.service.backends]

    def state(self, backend: Address = BACKENDS[0]) -> State | None:
        """Where a backend stands; None: it isn't known yet that it is to be checked."""
        found = {each.target.backend: each.standing for each in self.monitor.registry.records()}
        return found[backend].state if backend in found else None

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to come about."""
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < deadline, self.monitor.registry.records()
            await asyncio.sleep(0.01)

    def reload(self, *services: Service) -> None:
        """Change the configuration file."""
        self.controller.reload(replace(self.controller.config, services=services))


def web(port: int, health: Health | None = FAST) -> Service:
    """The service that is checked."""
    backends = tuple(map(Backend, BACKENDS))
    return Service("web", HOST, port, backends=backends, table_size=251, health=health)


@asynccontextmanager
async def running(
    directory: Path,
    backends: Backends,
    health: Health | None = FAST,
    *,
    concurrent: int = 16,
    foreign: bool = False,
) -> AsyncIterator[World]:
    """An agent that checks; `World.datapath` may hold something before."""
    datapath = MemoryDatapath()
    doubted: list[Address] = []
    async with serving(backends.serve) as port:
        config = Config(devices=(Device("eth0"),), services=(web(port, health),))
        with Store(directory / "db") as store, Writer() as writer:
            controller = Controller(config, store, datapath)
            controller.start()
            monitor = Monitor(
                controller,
                writer,
                backends,
                concurrent=concurrent,
                foreign=foreign,
                doubt=doubted.append,
            )
            task = asyncio.create_task(monitor.run())
            try:
                yield World(backends, controller, monitor, datapath, port, doubted)
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                assert task.cancelled()


def lived(life: Coroutine[None, None, None]) -> None:
    """Run a test to its end, and have nothing left behind."""

    async def run() -> None:
        await life
        assert not [task for task in asyncio.all_tasks() if "_watch" in repr(task)]

    asyncio.run(run())


def test_what_fails_gets_no_flows_until_it_passes_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The others keep theirs, and each change is told once."""
    caplog.set_level(logging.INFO)

    async def life() -> None:
        async with running(tmp_path, Backends()) as world:
            await world.until(lambda: all(world.state(b) is State.UP for b in BACKENDS))
            assert world.datapath.applied == 1
            world.backends.ill.add(BACKENDS[1])
            await world.until(lambda: world.taking == [1, 0, 1])
            asked = world.backends.asked.count(BACKENDS[1])
            await world.until(lambda: world.backends.asked.count(BACKENDS[1]) > asked + 3)
            world.backends.ill.clear()
            await world.until(lambda: world.taking == [1, 1, 1])
            assert world.datapath.applied == 3

    lived(life())
    told = [record.message for record in caplog.records if "backend" in record.message]
    assert told == [
        "service web: backend 192.0.2.12 is down: status 503; wanted: 200-399",
        "service web: backend 192.0.2.12 is up",
    ]


def test_who_does_not_answer_is_doubted_while_it_is_up(tmp_path: Path) -> None:
    """Perhaps its MAC address is another. Who answers that it is ill is there."""

    async def life() -> None:
        health = replace(FAST, timeout=0.5)
        async with running(tmp_path, Backends(), health) as world:
            await world.until(lambda: all(world.state(b) is State.UP for b in BACKENDS))
            world.backends.ill.add(BACKENDS[1])
            await world.until(lambda: world.taking == [1, 0, 1])
            assert not world.doubted
            world.backends.slow = SECONDS
            await world.until(lambda: world.state() is world.state(BACKENDS[2]) is State.DOWN)
            doubted = sorted(world.doubted)
            assert doubted == [BACKENDS[0]] * FAST.fall + [BACKENDS[2]] * FAST.fall
            await world.until(
                lambda: all(
                    each.standing.streak > FAST.fall + 2
                    for each in world.monitor.registry.records()
                    if each.target.backend != BACKENDS[1]
                )
            )
            assert sorted(world.doubted) == doubted

    lived(life())


@pytest.mark.parametrize(
    ("wish", "left"), [(AllFailed.OPEN, [1, 1, 1]), (AllFailed.CLOSED, [0, 0, 0])]
)
def test_all_down(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, wish: AllFailed, left: list[int]
) -> None:
    """As the service says, and told as what it is."""

    async def life() -> None:
        health = replace(FAST, on_all_failed=wish)
        async with running(tmp_path, Backends(ill=set(BACKENDS)), health) as world:
            await world.until(lambda: all(world.state(b) is State.DOWN for b in BACKENDS))
            # Noted before the writer's thread has done it.
            await world.until(lambda: len(world.controller.down.get(world.service.key, ())) == 3)
            await world.until(lambda: world.taking == left)
            world.backends.ill.remove(BACKENDS[2])
            await world.until(lambda: world.taking == [0, 0, 1])

    lived(life())
    told = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert told == [f"service web: no backend is up; on_all_failed: {wish}"]


def test_what_this_node_cannot_check_stays_as_it_is(tmp_path: Path) -> None:
    """Whatever fails on this side: no backend is blamed for it."""

    async def life() -> None:
        async with running(tmp_path, Backends()) as world:
            await world.until(lambda: all(world.state(b) is State.UP for b in BACKENDS))
            for broken in (OSError("no ports"), KernelError("map"), ValueError("a fault of ours")):
                world.backends.broken = broken
                before = sum(each.unmade for each in world.monitor.registry.records())
                await world.until(
                    lambda before=before: (  # type: ignore[misc]
                        sum(each.unmade for each in world.monitor.registry.records()) > before + 9
                    )
                )
                (first, *_) = world.monitor.registry.records()
                assert first.standing.error
                assert str(broken) in first.standing.error
                assert world.taking == [1, 1, 1]
            assert {world.state(backend) for backend in BACKENDS} == {State.UP}

    lived(life())


def test_the_way_is_there_for_checks_of_others(tmp_path: Path) -> None:
    """To all services, though none has a check of the agent's own; and it stays."""

    async def life() -> None:
        async with running(tmp_path, Backends(), None, foreign=True) as world:
            await world.until(lambda: world.backends.others == {HOST})
            world.reload()
            await world.until(lambda: not world.backends.others)
            assert world.backends.opened == [set(), set()]
            assert not world.backends.closed

    lived(life())


def test_a_way_that_cannot_be_opened_is_trouble(tmp_path: Path) -> None:
    """It is told, no backend is down by it, and it is tried again."""

    async def life() -> None:
        backends = Backends(broken=KernelError("attach"), ill=set(BACKENDS))
        async with running(tmp_path, backends) as world:
            await world.until(lambda: world.monitor.trouble is not None)
            assert "attach" in str(world.monitor.trouble)
            assert world.taking == [1, 1, 1]
            assert not world.monitor.registry.records()
            backends.broken = None
            world.monitor._news.set()
            await world.until(lambda: len(world.monitor.registry.records()) == 3)
            assert world.monitor.trouble is None

    lived(life())


def test_a_datapath_that_refuses_is_trouble(tmp_path: Path) -> None:
    """What was found is put into force as soon as that works."""

    async def life() -> None:
        async with running(tmp_path, Backends()) as world:
            await world.until(lambda: all(world.state(b) is State.UP for b in BACKENDS))
            world.datapath.broken = 2
            world.backends.ill.add(BACKENDS[0])
            await world.until(lambda: world.monitor.trouble is not None)
            assert world.controller.down == {}
            world.monitor._news.set()
            await world.until(lambda: world.taking == [0, 1, 1])
            await world.until(lambda: world.monitor.trouble is None)

    lived(life())


@pytest.mark.parametrize("error", [ZeroDivisionError("never"), asyncio.CancelledError()])
def test_checks_of_a_backend_that_end_are_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Told until then; those of the other backends go on."""
    left = [1]

    def fails(*given: Any) -> Any:
        if left:
            left.pop()
            raise error
        return step(*given)

    monkeypatch.setattr(monitor, "step", fails)
    monkeypatch.setattr(monitor, "AGAIN_SECONDS", 0.5)

    async def life() -> None:
        async with running(tmp_path, Backends()) as world:
            await world.until(lambda: world.monitor.trouble is not None)
            assert f"for {world.service.key} have ended" in str(world.monitor.trouble)
            await world.until(lambda: world.monitor.trouble is None)
            await world.until(lambda: all(world.state(b) is State.UP for b in BACKENDS))

    lived(life())


def test_an_unexpected_error_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """However often it comes: thousands of checks write no thousands of tracebacks."""

    async def fails(*_: object) -> None:
        raise OSError("no files")

    monkeypatch.setattr(monitor, "check", fails)

    async def life() -> None:
        async with running(tmp_path, Backends()) as world:
            records = world.monitor.registry.records
            await world.until(lambda: min((each.unmade for each in records()), default=0) > 3)
            assert {each.standing.error for each in records()} == {"OSError: no files"}

    lived(life())
    assert [each.getMessage()[:8] for each in caplog.records if each.levelname == "ERROR"] == [
        "check of"
    ] * len(BACKENDS)


def test_changes_of_what_is_desired_are_followed(tmp_path: Path) -> None:
    """Backends that come and go, another check, none at all."""

    async def life() -> None:
        async with running(tmp_path, Backends(ill={BACKENDS[0]})) as world:
            service = web(world.port)
            await world.until(lambda: world.taking == [0, 1, 1])
            world.reload(replace(service, backends=service.backends[:2]))
            assert world.taking == [0, 1, 0]  # what was removed has its flows still
            await world.until(lambda: len(world.monitor.registry.records()) == 2)
            assert world.state() is State.DOWN
            await world.until(lambda: world.controller.desired is world.monitor._seen)
            asked = world.backends.asked.count(BACKENDS[2])
            world.reload(replace(service, health=replace(FAST, status="503")))
            await world.until(lambda: world.taking == [1, 0, 0])
            assert world.backends.asked.count(BACKENDS[2]) > asked
            world.reload(replace(service, health=None))
            assert world.taking == [1, 1, 1]
            await world.until(lambda: not world.monitor.registry.records())
            assert world.backends.closed == 1
            assert world.backends.opened[0] == {HOST}
            world.reload()
            await world.until(lambda: world.controller.desired is world.monitor._seen)
            assert not world.monitor._tasks

    lived(life())


def test_another_vip_gives_no_flows_to_what_is_down(tmp_path: Path) -> None:
    """Not for a moment, until its first result there decides."""

    async def life() -> None:
        backends = Backends(ill={BACKENDS[0]})
        async with running(tmp_path, backends, replace(FAST, interval=1.0)) as world:
            service = world.service
            health = replace(FAST, interval=1.0, port=world.port)
            await world.until(lambda: world.taking == [0, 1, 1])
            took = Taking(world.datapath)
            for port in (8080, 8081):
                # Where packets come in is another place. Checks ask the same one as before.
                world.reload(replace(service, backends=web(0).backends, port=port, health=health))
                assert world.controller.down == {world.service.key: {BACKENDS[0]}}
                here = Id(world.service.key, BACKENDS[0])
                await world.until(lambda here=here: here in world.monitor._tasks)  # type: ignore[misc]
                await world.until(lambda: world.state() is State.DOWN)
            assert took.ever == [False, True, True]
            # One pass, and it is up, however many it takes where it was seen to go down.
            backends.ill.clear()
            health = replace(health, rise=100)
            world.reload(replace(service, backends=web(0).backends, port=8082, health=health))
            await world.until(lambda: world.taking == [1, 1, 1])

    lived(life())


class Taking:
    """Notes which backends of the service ever get new flows."""

    def __init__(self, datapath: MemoryDatapath) -> None:
        self.ever = [False] * len(BACKENDS)
        self._apply = datapath.apply
        datapath.apply = self._noted  # type: ignore[method-assign]

    def _noted(self, services: Iterable[Service]) -> Transition:
        services = tuple(services)
        for service in services:
            for at, backend in enumerate(service.backends):
                self.ever[at] |= backend.takes_flows
        return self._apply(services)


def test_services_that_change_places_take_along_what_is_known(tmp_path: Path) -> None:
    """Records, too, are the service's, and not those of the address where it was."""
    datapath = MemoryDatapath()
    first = web(80)
    second = replace(first, name="other", port=81)
    with Store(tmp_path / "db") as store, Writer() as writer:
        config = Config(devices=(Device("eth0"),), services=(first, second))
        controller = Controller(config, store, datapath)
        controller.start()
        monitor = Monitor(controller, writer, Backends(), concurrent=1)

        async def life() -> None:
            await monitor._follow()
            controller.set_down({first.key: {BACKENDS[0]}, second.key: {BACKENDS[2]}})
            for key in ((first, 0), (second, 2)):
                place = Id(key[0].key, BACKENDS[key[1]])
                record = monitor.registry.get(place)
                down = replace(record.standing, state=State.DOWN)
                monitor.registry.put(place, replace(record, standing=down))
            swapped = (replace(first, port=81), replace(second, port=80))
            controller.reload(replace(config, services=swapped))
            expected = {second.key: {BACKENDS[0]}, first.key: {BACKENDS[2]}}
            assert controller.down == expected
            # What was found before the change is put into force after it.
            controller.set_down(monitor.registry.down(), monitor._seen)
            assert controller.down == expected
            await monitor._follow()
            assert monitor.registry.down() == expected
            assert monitor.registry.get(Id(second.key, BACKENDS[0])).standing.state is State.HELD
            assert monitor.registry.get(Id(second.key, BACKENDS[2])).standing.state is State.UNKNOWN
            await monitor._stop(list(monitor._tasks))

        asyncio.run(life())


def test_what_is_found_while_the_vip_changes(tmp_path: Path) -> None:
    """Is of the service as it was seen, and holds for what it is by then."""
    datapath = MemoryDatapath()
    service = replace(web(80), vip=ip_address("203.0.113.8"))
    with Store(tmp_path / "db") as store:
        config = Config(devices=(Device("eth0"),), services=(service,))
        controller = Controller(config, store, datapath)
        controller.start()
        seen = controller.desired
        moved = replace(service, vip=ip_address("203.0.113.9"))
        controller.reload(replace(config, services=(moved,)))
        controller.set_down({service.key: frozenset({BACKENDS[1]})}, seen)
        assert controller.down == {moved.key: {BACKENDS[1]}}
        assert [each.takes_flows for each in datapath.held["web"].backends] == [True, False, True]
        planned = controller.plan((replace(moved, port=90),), owner="file")
        assert [change.backends_restated for change in planned.changes] == [()]
        # A change that is refused leaves what is known, too.
        datapath.room = 0
        with pytest.raises(CapacityError):
            controller.reload(replace(config, services=(replace(moved, port=91),)))
        assert controller.down == {moved.key: {BACKENDS[1]}}
        with pytest.raises(CapacityError):
            controller.set_down({}, controller.desired)
        assert controller.down == {moved.key: {BACKENDS[1]}}


def test_a_drained_backend_is_checked_too(tmp_path: Path) -> None:
    """So that it is known how it is before it gets flows again."""

    async def life() -> None:
        async with running(tmp_path, Backends(ill={BACKENDS[0]})) as world:
            service = web(world.port)
            drained = (Backend(BACKENDS[0], 0), *service.backends[1:])
            world.reload(replace(service, backends=drained))
            await world.until(lambda: bool(world.controller.down))
            assert world.state() is State.DOWN
            assert world.taking == [0, 1, 1]
            world.reload(service)
            assert world.taking == [0, 1, 1]

    lived(life())


def test_only_so_many_at_a_time(tmp_path: Path) -> None:
    """The others wait, and their turn comes."""

    async def life() -> None:
        backends = Backends(slow=0.05)
        health = replace(FAST, timeout=60.0)
        async with running(tmp_path, backends, health, concurrent=2) as world:
            await world.until(lambda: len(backends.asked) > 30)
            assert backends.most == 2
            counts = [backends.asked.count(backend) for backend in BACKENDS]
            assert max(counts) - min(counts) <= 3
            assert all(world.state(backend) is State.UP for backend in BACKENDS)

    lived(life())


def test_checks_are_spread_over_the_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds that begin together don't all begin at once, nor later than the interval."""
    drawn: list[tuple[float, float]] = []

    def draw(least: float, most: float) -> float:
        drawn.append((least, most))
        return most * (len(drawn) % 200) / 200

    async def life() -> None:
        backends = Backends()
        health = replace(FAST, interval=1.0, timeout=60.0, type=CheckType.TCP)
        many = tuple(Backend(ip_address(f"192.0.2.{number}")) for number in range(1, 201))
        async with running(tmp_path, backends, health) as world:
            await world.until(lambda: all(world.state(b) is State.UP for b in BACKENDS))
            monkeypatch.setattr("towpath.agent.health.monitor.random.uniform", draw)
            world.reload(replace(web(world.port, health), backends=many))
            await world.until(
                lambda: sum(each.passed > 0 for each in world.monitor.registry.records()) == 200
            )
        # Each draws once when it begins to be checked, out of 5 ms for every one that does.
        new = 200 - len(BACKENDS)
        assert [least for least, _ in drawn] == [0] * new
        assert [most for _, most in drawn] == pytest.approx([0.005 * new] * new)

    lived(life())


def test_what_the_kernel_had_down_is_held(tmp_path: Path) -> None:
    """A start leaves it without flows; the first result decides."""
    datapath = MemoryDatapath()
    service = web(80)
    idle = tuple(replace(b, weight=int(b.address != BACKENDS[1])) for b in service.backends)
    datapath.held = {"tcp-127.0.0.1-80": replace(service, name="x", backends=idle, health=None)}
    with Store(tmp_path / "db") as store:
        config = Config(devices=(Device("eth0"),), services=(service,))
        controller = Controller(config, store, datapath)
        controller.start()
    assert [backend.takes_flows for backend in datapath.held["web"].backends] == [True, False, True]
    assert controller.down == {service.key: {BACKENDS[1]}}
    with Writer() as writer:
        monitor = Monitor(controller, writer, Backends(), concurrent=1)

        async def life() -> None:
            await monitor._follow()
            state = monitor.registry.get(Id(service.key, BACKENDS[1])).standing.state
            assert state is State.HELD
            assert monitor.registry.down() == controller.down
            await monitor._stop(list(monitor._tasks))

        asyncio.run(life())


def test_a_target_goes_the_way_of_its_service() -> None:
    """And is asked for the VIP, unless its packets are for the backend's own address and port."""
    service, backend = web(80), Backend(BACKENDS[0])
    ways: list[tuple[Forwarding, Address]]
    ways = [("dsr", HOST), ("l2", HOST), ("snat", BACKENDS[0])]
    for forwarding, to in ways:
        target = Target.of(replace(service, forwarding=forwarding), backend)
        assert (target.forwarding, target.to, target.port) == (forwarding, to, 80)
    translated = replace(service, forwarding="snat")
    for port, asked, expected in ((8080, None, 8080), (8080, 9090, 9090)):
        assert service.health is not None
        made = replace(translated, health=replace(service.health, port=asked))
        assert Target.of(made, replace(backend, port=port)).port == expected


def test_a_command_is_for_the_file_only(tmp_path: Path) -> None:
    """Whoever may use the API may not have programs run."""
    command = Health(CheckType.COMMAND, command=("/bin/true",))
    service = replace(web(80), vip=ip_address("203.0.113.10"), health=command)
    datapath = MemoryDatapath()
    with Store(tmp_path / "db") as store:
        config = Config(devices=(Device("eth0"),), services=(service,))
        controller = Controller(config, store, datapath)
        controller.start()
        other = replace(service, name="other", port=81)
        for refused in (controller.put, controller.plan):
            with pytest.raises(InvalidError) as caught:
                refused([other])
            (problem,) = caught.value.problems
            assert problem.field == "health.type"
            assert "allowed: in the configuration file" in problem.message
        assert set(datapath.held) == {"web"}
