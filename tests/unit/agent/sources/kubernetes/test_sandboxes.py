# SPDX-License-Identifier: Apache-2.0
"""Addresses of pods as container runtimes keep what CNI plugins have answered."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from towpath.agent.sources.kubernetes.sandboxes import Sandboxes, read

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from towpath.model.kinds import Address

UID, OTHER = "9f7c0f4e-0c53-4d4b-8a6a-0d6a3a1f6a01", "9f7c0f4e-0c53-4d4b-8a6a-0d6a3a1f6a02"


def cached(uid: str = UID, container: str = "c1", *addresses: str, **more: Any) -> str:
    """A file of libcni's cache, as containerd with the bridge plugin leaves it."""
    given = addresses or ("10.244.0.5/24", "fd00:244::5/64")
    return json.dumps(
        {
            "kind": "cniCacheV1",
            "containerId": container,
            "config": "eyJjbmlWZXJzaW9uIjoiMS4wLjAifQ==",
            "ifName": "eth0",
            "networkName": "pods",
            "cniArgs": [
                ["IgnoreUnknown", "1"],
                ["K8S_POD_NAMESPACE", "default"],
                ["K8S_POD_NAME", "web"],
                ["K8S_POD_INFRA_CONTAINER_ID", container],
                ["K8S_POD_UID", uid],
            ],
            "capabilityArgs": {"bandwidth": {"egressRate": 10000000}},
            "result": {
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "cni0"}, {"name": "veth0"}, {"name": "eth0"}],
                "ips": [{"address": each, "interface": 2} for each in given],
                "dns": {},
            },
        }
        | more
    )


def test_what_containerd_leaves() -> None:
    """The pod by its UID, both families."""
    found = read(cached().encode())
    assert found is not None
    assert (found.uid, found.container) == (UID, "c1")
    assert list(map(str, found.addresses)) == ["10.244.0.5", "fd00:244::5"]


def test_results_of_old_plugins() -> None:
    """Of CNI 0.2."""
    result = {"ip4": {"ip": "10.244.0.7/24"}, "ip6": {"ip": "fd00:244::7/64"}}
    found = read(cached(result=result).encode())
    assert found is not None
    assert list(map(str, found.addresses)) == ["10.244.0.7", "fd00:244::7"]


@pytest.mark.parametrize("more", [{"cniArgs": None}, {"cniArgs": [["A"]]}, {"result": None}])
def test_what_is_of_no_pod(more: dict[str, Any]) -> None:
    """Others use libcni as well."""
    assert read(cached(**more).encode()) is None


def test_what_is_something_else() -> None:
    """Half of a file, or another one."""
    for text in (cached()[:100], "", "[]"):
        with pytest.raises(msgspec.MsgspecError):
            read(text.encode())


class Directory:
    """Looks at a directory, and notes what is told."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: list[dict[str, tuple[str, ...]]] = []
        self.heard = asyncio.Event()
        self.sandboxes = Sandboxes(path, self._hear)

    def _hear(self, found: Mapping[str, tuple[Address, ...]]) -> None:
        self.told.append({uid: tuple(map(str, each)) for uid, each in found.items()})
        self.heard.set()

    def write(self, name: str, text: str, at: int) -> None:
        """A file, written at a time."""
        (self.path / name).write_text(text)
        os.utime(self.path / name, (at, at))

    def look(self) -> dict[str, tuple[str, ...]]:
        """What was told last."""
        self.sandboxes.look()
        return self.told[-1]


def test_an_address_is_the_last_files(tmp_path: Path) -> None:
    """A sandbox that ended badly leaves its file."""
    found = Directory(tmp_path)
    found.write("a", cached(UID, "c1", "10.244.0.5/24"), 100)
    assert found.look() == {UID: ("10.244.0.5",)}
    found.write("b", cached(OTHER, "c2", "10.244.0.5/24"), 200)
    assert found.look() == {UID: (), OTHER: ("10.244.0.5",)}


def test_a_pods_last_sandbox_counts(tmp_path: Path) -> None:
    """With all its networks."""
    found = Directory(tmp_path)
    found.write("a", cached(UID, "c1", "10.244.0.5/24"), 100)
    found.write("b", cached(UID, "c2", "10.244.0.6/24"), 200)
    found.write("c", cached(UID, "c2", "192.168.7.6/24"), 201)
    assert found.look() == {UID: ("10.244.0.6", "192.168.7.6")}
    (tmp_path / "b").unlink()
    assert found.look() == {UID: ("192.168.7.6",)}


def test_nothing_is_told_twice(tmp_path: Path) -> None:
    """And a file that makes no sense is looked at again, until it does."""
    found = Directory(tmp_path)
    found.write("a", cached(UID, "c1", "10.244.0.5/24"), 100)
    found.write("b", "{", 100)
    found.look()
    found.look()
    assert len(found.told) == 1
    found.write("b", cached(OTHER, "c2", "10.244.0.6/24"), 100)
    assert found.look() == {UID: ("10.244.0.5",), OTHER: ("10.244.0.6",)}


def test_a_directory_that_comes_later(tmp_path: Path) -> None:
    """The runtime makes it for the first pod: it is told without waiting for the next look."""
    found = Directory(tmp_path / "cni" / "results")

    async def scenario() -> None:
        task = asyncio.create_task(found.sandboxes.run())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert "No such file" in (found.sandboxes.trouble or "")
        found.path.mkdir(parents=True)
        (found.path / "a").write_text(cached(UID, "c1", "10.244.0.5/24"))
        async with asyncio.timeout(4):
            await found.heard.wait()
        assert found.sandboxes.trouble is None
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert found.told[-1] == {UID: ("10.244.0.5",)}
