# SPDX-License-Identifier: Apache-2.0
"""What an agent hands in of a cluster, and when, by an API server that does what a test says."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from tests.unit.agent.sources.kubernetes.harness_api import (
    NODES,
    SERVICES,
    SLICES,
    ApiServer,
    serving,
    until,
)

from towpath.agent.errors import ConflictError
from towpath.agent.parts import Shared
from towpath.agent.sources.intake import Intake, Surroundings, Update
from towpath.agent.sources.kubernetes import source as kubernetes
from towpath.agent.sources.kubernetes import truth, watch
from towpath.agent.sources.kubernetes.source import Source
from towpath.datapath.neigh.wanted import Wanted
from towpath.model import Problem, parse_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

    from towpath.model import Service

WEB = "default:web:http:cluster:10.96.0.10"
WEB6 = "default:web:http:cluster:fd96::10"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes seconds takes less."""
    monkeypatch.setattr(watch, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(watch, "PROOF_SECONDS", 0.2)
    monkeypatch.setattr(kubernetes, "AGAIN_SECONDS", 0.02)


class Node:
    """What outlives agents on a node: services in force, and what each agent has changed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.in_force: dict[str, Service] = {}
        self.updates: list[Update] = []
        self.refuse: Callable[[Update], None] = lambda _: None
        """Raises what a change is refused with."""

    async def take(self, update: Update) -> None:
        """Put it into force."""
        self.refuse(update)
        self.updates.append(update)
        for name in update.remove:
            del self.in_force[name]
        self.in_force |= {each.name: each for each in update.put}

    def backends(self, name: str = WEB) -> dict[str, int | None]:
        """Ports by address of those that get new connections."""
        found = self.in_force.get(name)
        return {
            str(each.address): each.port
            for each in (found.backends if found else ())
            if each.takes_flows
        }

    def least(self, name: str = WEB) -> int:
        """The least number of backends that a service had at any time since `updates` began."""
        return min(
            [
                len([backend for backend in each.backends if backend.takes_flows])
                for update in self.updates
                for each in update.put
                if each.name == name
            ]
            + [0 for update in self.updates if name in update.remove]
        )

    @asynccontextmanager
    async def agent(self, server: ApiServer, **options: Any) -> AsyncIterator[Source]:
        """An agent's source runs in the block; then it is dead, and the rest as it was."""
        at = self.directory / "kubeconfig"
        at.write_text(json.dumps(kubeconfig(server.url)))
        given = {"kubeconfig": str(at), "node": "n1", "events": False, "health_checks": False}
        state = {"directory": str(self.directory)}
        config = parse_config(
            json.dumps({"kubernetes": given | options, "state": state}), "towpath.yaml"
        )
        intake: Intake[Update] = Intake(
            "kubernetes",
            self.take,
            lambda: (self.updates,),
            Surroundings(
                config,
                lambda: tuple(self.in_force.values()),
                on_this_thread,
                Shared(),
                Wanted(),
                lambda *_: "no",
            ),
        )
        made = Source(config.sections["kubernetes"], intake)
        self.updates.clear()
        task = asyncio.ensure_future(made.run())
        try:
            yield made
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def on_this_thread(change: Callable[..., Any], *args: Any) -> Any:
    """There is no other."""
    return change(*args)


def kubeconfig(url: str) -> dict[str, Any]:
    """A file's content; JSON is YAML."""
    return {
        "clusters": [{"name": "c", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "c",
    }


def service(name: str = "web", number: int = 10, target: int | str = 8080) -> dict[str, Any]:
    """One of both families."""
    vips = [f"10.96.0.{number}", f"fd96::{number}"]
    port = {"name": "http", "port": 80, "targetPort": target, "protocol": "TCP"}
    return {
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"clusterIP": vips[0], "clusterIPs": vips, "ports": [port]},
    }


def slice_of(
    suffix: str, *listed: str | dict[str, Any], port: int = 8080, name: str = "web"
) -> dict[str, Any]:
    """One of the controller's. An endpoint is an address that is ready, or an object."""
    labels = {
        "kubernetes.io/service-name": name,
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
    }
    meta = {"name": f"{name}-{suffix}", "namespace": "default", "labels": labels}
    found = [each if isinstance(each, dict) else {"addresses": [each]} for each in listed]
    family = "IPv6" if any(":" in each["addresses"][0] for each in found) else "IPv4"
    return {
        "metadata": meta,
        "addressType": family,
        "endpoints": found,
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
    }


def terminating(address: str) -> dict[str, Any]:
    """One that is about to end, and serves."""
    conditions = {"ready": False, "serving": True, "terminating": True}
    return {"addresses": [address], "conditions": conditions}


def addresses(first: int, last: int) -> list[str]:
    """Some of them."""
    return [f"10.244.0.{each}" for each in range(first, last)]


def filled() -> ApiServer:
    """A Service with two slices of IPv4 and one of IPv6."""
    made = ApiServer()
    made.put(NODES, {"metadata": {"name": "n1"}})
    made.put(SERVICES, service())
    made.put(SLICES, slice_of("a", *addresses(1, 4)))
    made.put(SLICES, slice_of("b", *addresses(4, 7)))
    made.put(SLICES, slice_of("c", "fd44::1", "fd44::2"))
    return made


async def settled(source: Source, node: Node) -> None:
    """Wait until all is known and in force."""
    await until(lambda: source._intake.status.accepted is not None, "a first state")
    await until(lambda: source.lateness.behind == 0, "changes")
    assert set(node.in_force) == set(source.cluster.services())


def test_before_all_kinds_are_known_nothing_goes(tmp_path: Path) -> None:
    """Whichever is late: a restarted agent changes nothing before, and loses nothing then."""
    node = Node(tmp_path)

    async def run(late: str) -> None:
        async with serving(filled()) as server:
            async with node.agent(server) as source:
                await settled(source, node)
            before = dict(node.in_force)
            assert len(node.backends()) == 6
            assert len(node.backends(WEB6)) == 2
            server.silent = {late}
            async with node.agent(server) as source:
                others = {SERVICES, SLICES, NODES} - {late}
                await until(lambda: all(server.watches(each) for each in others), "watches")
                # A part of it, and an end that says nothing.
                server.put(
                    late, server.memory[next(key for key in server.memory if key[0] == late)]
                )
                await until(lambda: server.watches(late), "a watch")
                server.end_watches(late)
                await asyncio.sleep(0.1)
                assert not node.updates
                assert source.trouble
                server.silent = set()
                server.end_watches(late)
                await settled(source, node)
                assert node.in_force == before
                assert not any(update.put or update.remove for update in node.updates)

    for late in (SERVICES, SLICES, NODES):
        node.in_force.clear()
        asyncio.run(run(late))


def test_slices_come_one_after_another(tmp_path: Path) -> None:
    """All of a kind are taken over at once: no service is ever without those not heard of yet."""
    node = Node(tmp_path)

    async def run() -> None:
        async with serving(filled()) as server:
            async with node.agent(server) as source:
                await settled(source, node)
            # While no agent was there one slice has changed.
            server.put(SLICES, slice_of("b", *addresses(4, 8)))
            async with node.agent(server) as source:
                await settled(source, node)
                assert node.least() == 7
                assert [each.name for update in node.updates for each in update.put] == [WEB]

    asyncio.run(run())


def test_terminating_before_and_ready_after(tmp_path: Path) -> None:
    """An address gets connections again, though it was about to end when an agent ended."""
    node = Node(tmp_path)

    async def run() -> None:
        async with serving(filled()) as server:
            server.put(SLICES, slice_of("b", *addresses(4, 6), terminating("10.244.0.6")))
            async with node.agent(server) as source:
                await settled(source, node)
            assert "10.244.0.6" not in node.backends()
            assert len(node.in_force[WEB].backends) == 6
            server.put(SLICES, slice_of("b", *addresses(4, 7)))
            async with node.agent(server) as source:
                await settled(source, node)
            assert set(node.backends()) == set(addresses(1, 7))
            server.put(SLICES, slice_of("b", *addresses(4, 6), terminating("10.244.0.6")))
            async with node.agent(server) as source:
                await settled(source, node)
            assert set(node.backends()) == set(addresses(1, 6))

    asyncio.run(run())


def test_held_endpoints_survive_an_agent(tmp_path: Path) -> None:
    """Slices are being written anew when it ends, and are when the next one begins."""
    node = Node(tmp_path)

    async def run() -> None:
        async with serving(filled()) as server:
            async with node.agent(server) as source:
                await settled(source, node)
                server.put(SERVICES, service(target=9090))
                server.put(SLICES, slice_of("a", *addresses(3, 6), port=9090))
                await until(lambda: source.cluster.held() == 2, "endpoints to be held")
                await settled(source, node)
                assert set(node.backends()) == set(addresses(1, 7))
            before = node.backends()
            async with node.agent(server) as source:
                await settled(source, node)
                assert source.cluster.held() == 2
                assert node.backends() == before
                server.put(SLICES, slice_of("b", *addresses(1, 3), *addresses(6, 7), port=9090))
                await until(lambda: source.cluster.held() == 0, "the end of it")
                await settled(source, node)
                assert node.backends() == dict.fromkeys(addresses(1, 7), 9090)
                assert node.least() == 6

    asyncio.run(run())


def test_what_was_held_for_a_former_agent_is_not_held_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where slices may disagree for ever, and nobody says a word: after a time."""
    node = Node(tmp_path)
    monkeypatch.setattr("towpath.core.kubernetes.before.HOLD_SECONDS", 0.2)
    monkeypatch.setattr("towpath.core.kubernetes.endpoints.HOLD_SECONDS", 0.2)

    async def run() -> None:
        async with serving(filled()) as server:
            server.put(SERVICES, service(target="web"))
            server.put(SLICES, slice_of("a", *addresses(1, 4), port=9090))
            async with node.agent(server) as source:
                await settled(source, node)
            server.put(SLICES, slice_of("a", *addresses(2, 4), port=9090))
            async with node.agent(server) as source:
                await settled(source, node)
                assert set(node.backends()) == set(addresses(1, 7))
                await until(lambda: set(node.backends()) == set(addresses(2, 7)), "its end")

    asyncio.run(run())


def names(found: Iterable[str]) -> set[str]:
    """The Services that services are of."""
    return {each.split(":")[1] for each in found}


def test_a_large_loss_while_no_agent_was_there(tmp_path: Path) -> None:
    """It is withheld from the first list as from any other, until it is accepted."""
    node = Node(tmp_path)

    async def run() -> None:
        server = filled()
        for number in range(20, 30):
            server.put(SERVICES, service(f"s{number}", number))
        async with serving(server):
            async with node.agent(server) as source:
                await settled(source, node)
            before = dict(node.in_force)
            for number in range(20, 30):
                server.delete(SERVICES, f"s{number}")
            server.put(SERVICES, service("new", 40))
            async with node.agent(server) as source:
                await until(lambda: len(source.withheld) == 20, "the loss")
                assert before.items() <= node.in_force.items()
                assert "new" in names(node.in_force)
                # A watch is believed.
                server.put(SERVICES, service("s20", 20))
                server.delete(SERVICES, "s20")
                await until(lambda: "s20" not in names(node.in_force), "it to be gone")
                await source.accept()
                await until(lambda: names(node.in_force) == {"web", "new"}, "the rest")
                with pytest.raises(ConflictError, match="nothing is withheld"):
                    await source.accept()

    asyncio.run(run())


def test_another_cluster(tmp_path: Path) -> None:
    """Nothing is changed until it is accepted, by this agent or the next; then all at once."""
    node = Node(tmp_path)

    async def run() -> None:
        async with serving(filled()) as server:
            async with node.agent(server) as source:
                await settled(source, node)
                before = dict(node.in_force)
                other = ApiServer()
                other.cluster = "cluster-2"
                other.put(NODES, {"metadata": {"name": "n1"}})
                other.put(SERVICES, service("theirs", 50))
                server.cluster, server.version = other.cluster, other.version
                server.database = other.database
                server.restart()
                await until(lambda: "another cluster's" in str(source.trouble), "it to be told")
                assert node.in_force == before
            async with node.agent(server) as source:
                await until(lambda: "another cluster's" in str(source.trouble), "it to be told")
                assert not node.updates
                await source.accept()
                await until(lambda: names(node.in_force) == {"theirs"}, "the other's")
                await until(lambda: source.trouble is None, "no trouble")

    asyncio.run(run())


def test_an_untrue_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told, changes nothing, and is over when the server is restarted."""
    monkeypatch.setattr(truth, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(truth, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(truth, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(truth, "ANEW_SECONDS", 0.1)
    node = Node(tmp_path)

    async def run() -> None:
        async with serving(filled()) as server, node.agent(server) as source:
            await settled(source, node)
            before = dict(node.in_force)
            del server.database[SLICES, "default", "web-c"]
            await until(lambda: "EndpointSlice default/web-c" in str(source.trouble), "trouble")
            assert not source._is_believed()
            assert node.in_force == before
            server.restart()
            await until(lambda: source.trouble is None, "the truth")
            assert source._is_believed()
            assert not node.backends(WEB6)
            assert len(node.backends()) == 6

    asyncio.run(run())


def test_a_service_that_is_refused_keeps_no_other(tmp_path: Path) -> None:
    """It is told, and taken when it can be."""
    node = Node(tmp_path)
    refused = ["bad"]

    def refuse(update: Update) -> None:
        if names(each.name for each in update.put) & set(refused):
            raise ConflictError([Problem("the address is another's")])

    node.refuse = refuse

    async def run() -> None:
        server = filled()
        server.put(SERVICES, service("bad", 60))
        server.put(SERVICES, service("good", 61))
        async with serving(server), node.agent(server) as source:
            await settled_but(source, node, "bad")
            assert [each.reason for each in source.unserved] == ["AddressInUse", "AddressInUse"]
            refused.clear()
            node.updates = []  # something has changed
            await until(lambda: "bad" in names(node.in_force), "it to be taken")
            await until(lambda: not source.unserved, "nothing to be told")

    asyncio.run(run())


async def settled_but(source: Source, node: Node, name: str) -> None:
    """Wait until all others are in force, and this is told."""
    await until(lambda: source.unserved, "a refusal")
    assert names(node.in_force) == names(source.cluster.services()) - {name}
