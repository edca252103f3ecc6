# SPDX-License-Identifier: Apache-2.0
"""Pins that somebody removes are made again: the end of a process goes on costing nothing."""

from __future__ import annotations

import logging
import shutil
import subprocess
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_balancer import (
    BPFFS,
    DEVICE,
    FLOW,
    PINS,
    SMALL,
    WEB,
    device,
    programs,
    script,
)

from towpath import LoadBalancer
from towpath.datapath.maps.pins import held
from towpath.kernel.bpf import links, probe
from towpath.kernel.bpf.bpffs import remove_pins
from towpath.kernel.bpf.links import xdp_program_id
from towpath.kernel.errors import KernelError
from towpath.kernel.net.interfaces import device_index
from towpath.model import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    before = len(mounts())
    with device():
        yield
    remove_pins(PINS)
    for _ in mounts()[before:]:
        subprocess.run(["umount", "--lazy", str(BPFFS)], check=True)
    remove_pins(PINS)


def mounts() -> list[str]:
    """What is mounted where pins are, one on the other."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line for line in lines if line.split()[4] == str(BPFFS)]


@pytest.fixture(params=[True, False], ids=["tcx", "filter"])
def _either_tc(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(probe, "tcx", lambda: False)


@contextmanager
def pinned(limits: Limits = SMALL) -> Iterator[LoadBalancer]:
    """A load balancer that is to outlive the block."""
    with LoadBalancer(DEVICE, limits=limits, pins=PINS) as balancer:
        balancer.add_service("web", **WEB)
        yield balancer


def listed(directory: Path) -> list[str]:
    """All that is in there, by its path."""
    return sorted(str(each.relative_to(directory)) for each in directory.rglob("*"))


REMOVALS: dict[str, Callable[[], object]] = {
    "everything": lambda: shutil.rmtree(PINS),
    "the tables": lambda: shutil.rmtree(PINS / "maps"),
    "one table": (PINS / "maps" / "backends").unlink,
    "the types": (PINS / "maps" / "types").unlink,
    "the links": lambda: shutil.rmtree(PINS / "links"),
    "one link": lambda: next((PINS / "links").glob("xdp-*")).unlink(),
    "the notes": lambda: [*map(shutil.rmtree, (PINS / "devices", PINS / "host"))],
    # What is below the tests' own file system is the machine's: another one is put over both.
    "the file system": lambda: subprocess.run(
        ["mount", "-t", "tmpfs", "none", str(BPFFS)], check=True
    ),
}


@pytest.mark.usefixtures("_either_tc")
@pytest.mark.parametrize("removed", REMOVALS)
def test_what_was_removed_is_pinned_again(removed: str, caplog: pytest.LogCaptureFixture) -> None:
    """All of it and as it was: the next process takes over, and packets go where they went."""
    with pinned() as balancer:
        before, decided = listed(PINS), balancer.trace(FLOW).backend
        REMOVALS[removed]()
        assert listed(PINS) != before
        assert balancer.follow() == ()
        assert listed(PINS) == before
        assert balancer._balancer.followed.pins == 1
        (told,) = [each for each in caplog.messages if "pins were removed" in each]
        assert told.endswith("pinned again")
        balancer.follow()
        assert balancer._balancer.followed.pins == 1
        numbers = programs(balancer)
    assert xdp_program_id(device_index(DEVICE)) in numbers
    with LoadBalancer(DEVICE, limits=SMALL, pins=PINS) as heir:
        assert heir._balancer._maps.adopted
        (service,) = heir.services()
        assert [str(each.address) for each in service.backends] == WEB["backends"]
        assert heir.trace(FLOW).backend == decided
        assert xdp_program_id(device_index(DEVICE)) in programs(heir)
        heir.detach()
    assert not PINS.exists()


def test_tables_that_have_taken_others_places_are_pinned_again_where_they_are() -> None:
    """Not where they were beside the others."""
    with pinned():
        pass
    with pinned(Limits(services=9, backends=32, flows=1024, table_slots=8192)) as heir:
        before = listed(PINS)
        shutil.rmtree(PINS / "maps")
        assert heir.follow() == ()
        assert listed(PINS) == before
        heir.detach()


TAKES = f"""
import signal
from pathlib import Path
from towpath.datapath.maps.pins import held
with held(Path("{PINS}")):
    print("ready", flush=True)
    signal.pause()
"""


def test_a_directory_that_was_made_again_is_held_again() -> None:
    """Nobody else may have it, as before; and where somebody has, that is told until it is over."""
    with pinned() as balancer:
        shutil.rmtree(PINS)
        with script(TAKES) as other:
            (trouble,) = balancer.follow()
            assert trouble.startswith(
                f"pins: lock {PINS}: Resource temporarily unavailable (EAGAIN): "
                f"process {other.pid} has it ("
            )
            assert balancer.follow() == (trouble,)
            assert balancer.trace(FLOW).verdict == "tx"
        assert balancer.follow() == ()
        assert (PINS / "maps" / "types").exists()
        with (
            pytest.raises(KernelError, match=r"process .* has it"),
            held(PINS),
        ):
            pass


def test_pins_of_a_device_that_comes_back_are_those_of_that_device(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Those of the one that went are gone, and not missed."""
    caplog.set_level(logging.WARNING)
    with pinned() as balancer:
        subprocess.run(["ip", "link", "delete", DEVICE], check=True)
        balancer.follow()
        assert not (PINS / "links").exists() or not list((PINS / "links").iterdir())
        subprocess.run(
            ["ip", "link", "add", DEVICE, "type", "veth", "peer", "name", "tplb1"], check=True
        )
        assert balancer.follow() == ()
        index = device_index(DEVICE)
        assert listed(PINS / "links") == [f"tc-{index}", f"xdp-{index}"]
        assert [each.readlink() for each in (PINS / "devices").iterdir()] == [
            Path(f"{index} {DEVICE}")
        ]
        with closing(links.from_pin(PINS / "links" / f"xdp-{index}")) as link:
            assert link.ifindex == index
        assert not [each for each in caplog.messages if "pins were removed" in each]
