# SPDX-License-Identifier: Apache-2.0
"""A load balancer's devices go, come back, get other names and other programs."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import closing, contextmanager
from socket import AF_PACKET, SOCK_RAW, socket
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from tests.lab.harness_balancer import (
    DEVICE,
    FLOW,
    NETWORK,
    PEER,
    PINS,
    SECOND,
    SMALL,
    WEB,
    add_second,
    device,
    ip,
    programs,
    state,
)
from tests.lab.harness_files import no_more_files

from towpath import LoadBalancer
from towpath.datapath.errors import DatapathError
from towpath.datapath.program import attachment
from towpath.kernel.bpf import links, probe
from towpath.kernel.bpf.bpffs import remove_pins
from towpath.kernel.bpf.libbpf import lib
from towpath.kernel.bpf.links import attach_xdp, xdp_program_id
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.errors import KernelError
from towpath.kernel.net.interfaces import device_index, set_forwarding
from towpath.kernel.net.netns import in_netns
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

OTHER = "tp-other-node"
REMAKE = "\n".join(line for line in NETWORK.splitlines() if "lo up" not in line)


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    with device():
        yield
    remove_pins(PINS)


@pytest.fixture(params=[True, False], ids=["tcx", "filter"])
def _either_tc(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(probe, "tcx", lambda: False)


@pytest.fixture
def _other() -> Iterator[None]:
    """Another network namespace."""
    subprocess.run(["ip", "netns", "add", OTHER], check=True)
    yield
    subprocess.run(["ip", "netns", "delete", OTHER], check=True)


@contextmanager
def balancing(*devices: str, **options: Any) -> Iterator[LoadBalancer]:
    """A load balancer with one service."""
    with LoadBalancer(*(devices or (DEVICE,)), limits=SMALL, **options) as balancer:
        balancer.add_service("web", **WEB)
        yield balancer


def balances(balancer: LoadBalancer, peer: str = PEER) -> bool:
    """Whether a packet that comes in from the wire at ``peer`` is sent on to a backend."""
    frame = bytes(
        Ether(dst="02:00:00:00:00:01")
        / IP(src="198.51.100.7", dst=WEB["vip"])
        / TCP(dport=WEB["port"])
    )
    before = sent(balancer)
    with closing(socket(AF_PACKET, SOCK_RAW)) as wire:
        wire.bind((peer, 0))
        wire.send(frame)
    return sent(balancer) == before + 1


def sent(balancer: LoadBalancer) -> int:
    """Packets that were: by XDP, or by the kernel, where nobody runs NAPI behind a new device."""
    verdicts = balancer.counters().verdicts
    return verdicts["tx"] + verdicts["handoff"]


def on(name: str = DEVICE) -> int:
    """The program on a device."""
    return xdp_program_id(device_index(name))


# ---- Devices that go -----------------------------------------------------------------------------


@pytest.mark.usefixtures("_either_tc")
def test_a_device_that_goes_and_comes_back_is_attached_to_again() -> None:
    """By its name, whatever its index; meanwhile it is missing."""
    with balancing() as balancer:
        assert balances(balancer)
        (before,) = balancer.devices()
        assert (before.name, before.index, before.mode) == (DEVICE, device_index(DEVICE), "native")
        for _ in range(2):
            ip(f"link delete {DEVICE}")
            assert balancer.follow() == (f"device {DEVICE} is missing: it is gone",)
            (gone,) = balancer.devices()
            assert (gone.index, gone.mode) == (None, None)
            assert gone.trouble == f"device {DEVICE} is missing: it is gone"
            ip(REMAKE)
            assert balancer.follow() == ()
            assert on() in programs(balancer)
            (after,) = balancer.devices()
            assert (after.index, after.mode) == (device_index(DEVICE), "native")
            assert balances(balancer)
            assert state()[f"{DEVICE} ipv4 forwarding"] == "1"
        assert before.index != after.index
        made = state()
    assert state() == made | {f"{DEVICE} xdp": 0, f"{DEVICE} filter": 0} | {
        f"{DEVICE} ipv4 forwarding": "0"
    }


def test_run_follows_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """And ends as it always does."""
    with balancing() as balancer:
        ip(f"link delete {DEVICE}")
        ip(REMAKE)
        waiting = iter(range(100))

        def reap() -> bool:
            if on() in programs(balancer) or next(waiting) == 99:
                signal.raise_signal(signal.SIGINT)
            return False

        # It is called after every look.
        monkeypatch.setattr(balancer, "reap", reap)
        balancer.run()
        assert balances(balancer)


def test_a_method_that_changes_something_looks_too() -> None:
    """A script need not wait for anything."""
    with balancing() as balancer:
        ip(f"link delete {DEVICE}")
        ip(REMAKE)
        balancer.set_backend("web", "192.0.2.12", weight=3)
        assert balances(balancer)


def test_one_device_goes_and_the_other_balances_on() -> None:
    """A trace names the ones that are there."""
    add_second()
    with balancing(DEVICE, SECOND) as balancer:
        ip(f"link delete {SECOND}")
        assert balancer.follow() == (f"device {SECOND} is missing: it is gone",)
        assert balances(balancer)
        with pytest.raises(DatapathError, match=rf"not on device {SECOND}; on: {DEVICE}$"):
            balancer.trace(FLOW, device=SECOND)
        ip(f"link delete {DEVICE}")
        assert len(balancer.follow()) == 2
        with pytest.raises(DatapathError, match="not on device any: none is there"):
            balancer.trace(FLOW)


def test_an_index_that_another_device_gets_is_not_taken_for_the_first() -> None:
    """It isn't named, so it is left alone, settings and all."""
    with balancing() as balancer:
        index = device_index(DEVICE)
        ip(f"link delete {DEVICE}\nlink add tp-else index {index} type veth peer name tp-else1")
        set_forwarding("tp-else", "ipv4", on=True)
        assert balancer.follow() == (f"device {DEVICE} is missing: it is gone",)
        assert not on("tp-else")
    assert set_forwarding("tp-else", "ipv4", on=True) is True


# ---- Names ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_either_tc")
def test_a_device_that_is_renamed_keeps_its_program() -> None:
    """It is told as missing by its old name, and is well again once it has that as another one."""
    with balancing() as balancer:
        number = on()
        rename(DEVICE, "tp-new")
        (trouble,) = balancer.follow()
        assert trouble.startswith(
            f"device {DEVICE} is missing: it is called tp-new now, and balanced"
        )
        assert on("tp-new") == number
        assert balances(balancer)
        (status,) = balancer.devices()
        assert (status.called, status.index) == ("tp-new", device_index("tp-new"))
        ip(f"link property add dev tp-new altname {DEVICE}")
        assert balancer.follow() == ()
        assert balances(balancer)
        ip(f"link property del dev tp-new altname {DEVICE}")
        assert balancer.follow() == (trouble,)
    assert not on("tp-new")
    assert state("tp-new")["tp-new ipv4 forwarding"] == "0"


def test_another_device_that_gets_the_name_is_attached_to_instead() -> None:
    """The configuration names it. The first is then as it was before."""
    with balancing() as balancer:
        rename(DEVICE, "tp-new")
        balancer.follow()
        ip(f"link add {DEVICE} type veth peer name tp-peer2")
        assert balancer.follow() == ()
        assert on() in programs(balancer)
        assert not on("tp-new")
        assert state("tp-new")["tp-new ipv4 forwarding"] == "0"
        assert state()[f"{DEVICE} ipv4 forwarding"] == "1"


def test_two_devices_may_exchange_their_names() -> None:
    """Each keeps its program; also where one gets the other's and that one a third."""
    add_second()
    with balancing(DEVICE, SECOND, pins=PINS) as balancer:
        first, second = device_index(DEVICE), device_index(SECOND)
        number = on()
        for name, new in ((DEVICE, "tp-third"), (SECOND, DEVICE), ("tp-third", SECOND)):
            ip(f"link set {name} down\nlink set {name} name {new}\nlink set {new} up")
        assert balancer.follow() == ()
        assert [each.index for each in balancer.devices()] == [second, first]
        assert on() == on(SECOND) == number
        assert balancer._balancer.followed.programs == 0
        ip(f"link set {DEVICE} down\nlink set {DEVICE} name tp-third\nlink set tp-third up")
        ip(f"link set {SECOND} down\nlink set {SECOND} name {DEVICE}\nlink set {DEVICE} up")
        (trouble,) = balancer.follow()
        assert trouble.startswith(f"device {SECOND} is missing: it is called tp-third now")
        assert [each.index for each in balancer.devices()] == [first, second]
        assert on() == on("tp-third") == number
    with balancing(DEVICE, SECOND, pins=PINS) as heir:
        assert heir.follow() == (trouble,)
        assert [each.index for each in heir.devices()] == [first, second]
        heir.detach()


def test_a_device_may_be_named_by_another_name_of_its() -> None:
    """Which outlasts what udev calls it."""
    ip(f"link property add dev {DEVICE} altname tp-alt")
    with balancing("tp-alt") as balancer:
        assert balances(balancer)
        assert balancer.follow() == ()
        (status,) = balancer.devices()
        assert (status.name, status.called) == ("tp-alt", DEVICE)
    with pytest.raises(KernelError, match=f"attach to {DEVICE}: .* is named by another name too"):
        LoadBalancer("tp-alt", DEVICE, limits=SMALL)
    assert not on()


def rename(name: str, new: str) -> None:
    """Give a device another name, for which it has to be down."""
    ip(f"link set {name} down\nlink set {name} name {new}\nlink set {new} up")
    ip("\n".join(line.replace(DEVICE, new) for line in REMAKE.splitlines() if "neighbour" in line))


# ---- Other namespaces ----------------------------------------------------------------------------


@pytest.mark.usefixtures("_other")
def test_a_device_that_is_moved_elsewhere_is_let_go_there() -> None:
    """Others' packets come in by it now. When it is back, so is the program."""
    with balancing() as balancer:
        index = device_index(DEVICE)
        ip(f"link set {DEVICE} netns {OTHER}")
        moved = "it was moved to another network namespace"
        assert balancer.follow() == (f"device {DEVICE} is missing: {moved}",)
        with in_netns(OTHER):
            assert device_index(DEVICE) == index
            assert not on()
        subprocess.run(
            ["ip", "-n", OTHER, "link", "set", DEVICE, "netns", str(os.getpid())], check=True
        )
        ip(REMAKE.partition("\n")[2].partition("\n")[2])
        assert balancer.follow() == ()
        assert balances(balancer)


@pytest.mark.usefixtures("_other")
def test_a_device_that_was_moved_while_nobody_looked_is_let_go_by_the_next_process() -> None:
    """Its pinned link still works, but elsewhere; here is another device of its name and index."""
    with balancing(pins=PINS):
        index = device_index(DEVICE)
    ip(f"link set {DEVICE} netns {OTHER}\nlink add {DEVICE} index {index} type veth peer name tp-p")
    with balancing(pins=PINS) as heir:
        assert on() in programs(heir)
        with in_netns(OTHER):
            assert not on()
        heir.detach()


# ---- What others do ------------------------------------------------------------------------------


def detach(link: links.Attachment) -> None:
    """End an attachment as `bpftool link detach` does: those who hold it have a dead one then."""
    if isinstance(link, links.Link):
        assert lib.bpf_link_detach(link.fd) == 0
    else:
        link.detach()


@pytest.mark.usefixtures("_either_tc")
@pytest.mark.parametrize("kind", ["xdp-", "tc-"])
def test_what_somebody_has_detached_is_put_back(kind: str) -> None:
    """Either program; and it is counted."""
    with balancing() as balancer:
        inner = balancer._balancer
        place = inner._attachment._places.get(f"{kind}{device_index(DEVICE)}")
        assert place is not None
        detach(place.link)
        assert not place.link.attached
        assert balancer.follow() == ()
        assert inner.followed.programs == 1
        assert balances(balancer)
        place = inner._attachment._places.get(f"{kind}{device_index(DEVICE)}")
        assert place is not None
        assert place.link.attached
        balancer.follow()
        assert inner.followed.programs == 1


@pytest.mark.usefixtures("_either_tc")
def test_what_can_not_be_asked_for_is_not_taken_for_detached() -> None:
    """It is told, and no program is attached anew, which many a card takes its link down for."""
    with balancing() as balancer:
        followed = balancer._balancer.followed
        with no_more_files():
            troubles = balancer.follow()
        assert any("Too many open files" in each for each in troubles)
        assert balancer._balancer.followed.programs == followed.programs
        assert balancer.follow() == ()
        assert balances(balancer)


def test_a_program_that_somebody_has_put_in_its_place_is_replaced() -> None:
    """By way of the pinned link: there is no other while it is attached."""
    with balancing(pins=PINS) as balancer, BpfObject.packaged("lab_pass") as other:
        other.load()
        with closing(links.from_pin(PINS / "links" / f"xdp-{device_index(DEVICE)}")) as link:
            link.update(other.programs["pass"])
        assert on() == other.programs["pass"].id
        assert balancer.follow() == ()
        assert on() in programs(balancer)
        assert balances(balancer)
        balancer.detach()


def test_a_device_that_somebody_else_has_is_told_until_it_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is tried again, and what was switched on there stays as it was needed."""
    monkeypatch.setattr(attachment, "AGAIN_SECONDS", 0.0)
    with balancing() as balancer, BpfObject.packaged("lab_pass") as other:
        other.load()
        ip(f"link delete {DEVICE}")
        balancer.follow()
        ip(REMAKE)
        with attach_xdp(other.programs["pass"], device_index(DEVICE)):
            for _ in range(2):
                (trouble,) = balancer.follow()
                assert f"device {DEVICE}: attach XDP program towpath_lb to {DEVICE}" in trouble
                assert f"program {other.programs['pass'].id} is attached" in trouble
            (status,) = balancer.devices()
            assert (status.index, status.trouble) == (None, trouble)
        assert balancer.follow() == ()
        assert balances(balancer)


def test_another_device_is_not_kept_waiting_for_one_that_refused() -> None:
    """Of its name: the first is gone, and so is what was in the way."""
    with balancing() as balancer, BpfObject.packaged("lab_pass") as other:
        other.load()
        ip(f"link delete {DEVICE}")
        balancer.follow()
        ip(REMAKE)
        with attach_xdp(other.programs["pass"], device_index(DEVICE)):
            assert len(balancer.follow()) == 1
            ip(f"link delete {DEVICE}")
            ip(REMAKE)
            assert balancer.follow() == ()
        assert balances(balancer)


def test_a_capture_goes_on_on_a_device_that_has_come_back() -> None:
    """The program that records is put there, not the one that doesn't; at its end the other."""
    with balancing() as balancer:
        with balancer.record({"expression": "tcp"}) as capture:
            ip(f"link delete {DEVICE}")
            balancer.follow()
            ip(REMAKE)
            assert balancer.follow() == ()
            assert on() == capture.program.id
            assert balances(balancer)
            wait_until(
                lambda: capture.progress().matched == 1, seconds=60, what="the capture to have it"
            )
        assert balancer.follow() == ()
        assert on() in programs(balancer)
        assert balances(balancer)
        assert balancer._balancer.followed.programs == 0


# ---- The next process ----------------------------------------------------------------------------


def test_the_next_process_starts_without_a_device_that_has_gone() -> None:
    """It was there once, so it is no typing error; others are balanced, and it may come back."""
    add_second()
    with balancing(DEVICE, SECOND, pins=PINS):
        pass
    ip(f"link delete {SECOND}")
    with balancing(DEVICE, SECOND, pins=PINS) as heir:
        assert balances(heir)
        assert heir.follow() == (f"device {SECOND} is missing: it is gone",)
    ip(f"link delete {DEVICE}")
    with balancing(DEVICE, SECOND, pins=PINS) as heir:
        assert len(heir.follow()) == 2
        ip(REMAKE)
        add_second()
        assert heir.follow() == ()
        assert balances(heir)
    with pytest.raises(KernelError, match="no such device: tp-typo"):
        LoadBalancer(DEVICE, "tp-typo", limits=SMALL, pins=PINS)
    with balancing(DEVICE, SECOND, pins=PINS) as heir:
        assert heir.follow() == ()
        heir.detach()


def test_the_next_process_keeps_a_device_that_was_renamed() -> None:
    """And tells it as the one before did. One that it isn't to have is let go."""
    with balancing(pins=PINS):
        number = on()
        rename(DEVICE, "tp-new")
    assert on("tp-new") == number
    with balancing(pins=PINS) as heir:
        (trouble,) = heir.follow()
        assert trouble.startswith(f"device {DEVICE} is missing: it is called tp-new now")
        assert on("tp-new") in programs(heir)
        assert balances(heir)
    with balancing("tp-new", pins=PINS) as heir:
        assert heir.follow() == ()
        assert balances(heir)
        heir.detach()
    assert not on("tp-new")


def test_a_device_that_nobody_ever_had_is_refused_at_the_start() -> None:
    """Nothing is pinned then."""
    with pytest.raises(KernelError, match=rf"no such device: tp-typo: there are: .*{DEVICE}"):
        LoadBalancer(DEVICE, "tp-typo", limits=SMALL, pins=PINS)
    assert not PINS.exists()
    assert not on()


@pytest.mark.usefixtures("_other")
def test_it_stays_in_the_namespace_that_it_was_made_in() -> None:
    """Wherever the thread is that uses it: another device there has its name and index."""
    with LoadBalancer(DEVICE, limits=SMALL) as balancer:
        index = device_index(DEVICE)
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        with closing(os.fdopen(here, closefd=True)), in_netns(OTHER):
            ip(f"link add {DEVICE} index {index} type veth peer name {PEER}")
            balancer.add_service("web", **WEB)
            with in_netns(here):
                ip(f"link delete {DEVICE}")
                ip(REMAKE)
            assert balancer.follow() == ()
            assert not on()
            assert state()[f"{DEVICE} ipv4 forwarding"] == "0"
            with in_netns(here):
                assert on() in programs(balancer)
                assert balances(balancer)
                assert state()[f"{DEVICE} ipv4 forwarding"] == "1"
            set_forwarding(DEVICE, "ipv4", on=True)
            balancer.close()
            assert state()[f"{DEVICE} ipv4 forwarding"] == "1"
    assert not on()
    assert state()[f"{DEVICE} ipv4 forwarding"] == "0"
