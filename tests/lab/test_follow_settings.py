# SPDX-License-Identifier: Apache-2.0
"""What is switched on a host: no more than is needed, with nothing else lost, and set back."""

from __future__ import annotations

import json
import logging
import subprocess
from contextlib import closing
from pathlib import Path
from socket import AF_PACKET, SOCK_RAW, socket
from typing import TYPE_CHECKING, Any

import pytest
from scapy.layers.inet6 import ICMPv6ND_RA, ICMPv6NDOptPrefixInfo, IPv6
from scapy.layers.l2 import Ether
from tests.lab.harness_balancer import (
    DEVICE,
    PEER,
    PINS,
    SECOND,
    SMALL,
    WEB,
    add_second,
    device,
    ip,
    script,
    state,
)

from towpath import LoadBalancer
from towpath.kernel.bpf.bpffs import remove_pins
from towpath.kernel.net import sysctl
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SIX: dict[str, Any] = {
    "vip": "2001:db8:4::10",
    "port": 80,
    "backends": ["2001:db8:1::11"],
    "table_size": 251,
}
ROUTER = "fe80::5"


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    with device():
        add_second()
        yield
    remove_pins(PINS)


def balancer(*devices: str, **options: Any) -> LoadBalancer:
    """A load balancer on the first device unless others are named."""
    return LoadBalancer(*(devices or (DEVICE,)), limits=SMALL, **options)


def forwards(name: str = DEVICE) -> tuple[bool, bool]:
    """Whether a device forwards IPv4, and IPv6."""
    ipv4, ipv6 = (sysctl.FORWARDING[family].read(name) == "1" for family in sysctl.FAMILIES)
    return ipv4, ipv6


def settings() -> dict[str, str]:
    """Every setting of every device below /proc/sys/net/*/conf."""
    return {
        str(path): path.read_text()
        for family in ("ipv4", "ipv6")
        for path in sorted(Path(f"/proc/sys/net/{family}/conf").glob("*/*"))
        if path.is_file() and path.name not in {"stable_secret", "temp_prefered_lft"}
    }


# ---- Only what is needed -------------------------------------------------------------------------


def test_forwarding_is_switched_on_for_families_that_packets_are_sent_in() -> None:
    """A backend's, be it of a service of the other one; and back when there is none any more."""
    before = settings()
    with balancer() as lb:
        assert settings() == before
        lb.add_service("web", **WEB)
        assert forwards() == (True, False)
        lb.set_backend("web", "2001:db8:1::11")
        assert forwards() == (True, True)
        assert sysctl.ACCEPT_RA.read(DEVICE) == "2"
        lb.remove_backend("web", "2001:db8:1::11", force=True)
        lb.follow()
        assert forwards() == (True, False)
        assert sysctl.ACCEPT_RA.read(DEVICE) == "1"
        lb.remove_service("web")
        lb.add_service("six", **SIX)
        lb.follow()
        assert forwards() == (False, True)
    assert settings() == before


def test_a_host_that_forwards_already_is_left_as_it_is() -> None:
    """So are routers' advertisements, which it may ignore for a reason."""
    for family in sysctl.FAMILIES:
        sysctl.FORWARDING[family].write(DEVICE, "1")
    before = settings()
    with balancer() as lb:
        lb.add_service("six", **SIX)
        assert settings() == before
    assert settings() == before


def test_only_these_settings_are_changed() -> None:
    """Of all that there are, while it runs."""
    before = settings()
    with balancer() as lb:
        lb.add_service("web", **WEB)
        lb.add_service("six", **SIX)
        changed = {path for path, value in settings().items() if before[path] != value}
    assert changed == {
        f"/proc/sys/net/ipv4/conf/{DEVICE}/forwarding",
        f"/proc/sys/net/ipv6/conf/{DEVICE}/forwarding",
        f"/proc/sys/net/ipv6/conf/{DEVICE}/accept_ra",
    }


# ---- What else it would change -------------------------------------------------------------------


def advertise(peer: str, lifetime: int = 1800) -> None:
    """A router behind a device says that it is there."""
    made = (
        Ether(src="02:00:00:00:00:05", dst="33:33:00:00:00:01")
        / IPv6(src=ROUTER, dst="ff02::1", hlim=255)
        / ICMPv6ND_RA(routerlifetime=lifetime)
        / ICMPv6NDOptPrefixInfo(prefix="2001:db8:77::", prefixlen=64, L=1, A=0)
    )
    with closing(socket(AF_PACKET, SOCK_RAW)) as wire:
        wire.bind((peer, 0))
        wire.send(bytes(made))


def default_routes() -> set[str]:
    """The devices that a router has advertised a default route on."""
    shown = subprocess.run(
        ["ip", "-6", "-json", "route", "show", "default"], check=True, capture_output=True
    ).stdout
    return {each["dev"] for each in json.loads(shown or b"[]") if each["protocol"] == "ra"}


@pytest.fixture
def _routers() -> None:
    """On either device."""

    def heard() -> bool:
        advertise(PEER)
        advertise("tplb3")
        return default_routes() == {DEVICE, SECOND}

    wait_until(heard, seconds=60, what="routes by router advertisements")


@pytest.mark.usefixtures("_routers")
def test_routes_that_routers_advertise_stay_and_are_kept_up() -> None:
    """On the device that forwards, and on others, of which nothing is needed."""
    before = settings()
    with balancer() as lb:
        lb.add_service("web", **WEB)
        assert default_routes() == {DEVICE, SECOND}
        lb.add_service("six", **SIX)
        assert forwards() == (True, True)
        assert default_routes() == {DEVICE, SECOND}
        assert sysctl.ACCEPT_RA.read(SECOND) == "1"

        def withdrawn() -> bool:
            advertise(PEER, lifetime=0)
            return default_routes() == {SECOND}

        # It still listens: to a router that goes, and to one that comes.
        wait_until(withdrawn, seconds=60, what="the router to be gone")

        def back() -> bool:
            advertise(PEER)
            return default_routes() == {DEVICE, SECOND}

        wait_until(back, seconds=60, what="the router to be back")
        lb.remove_service("six")
        lb.follow()
        assert forwards() == (True, False)
        assert default_routes() == {DEVICE, SECOND}
    assert default_routes() == {DEVICE, SECOND}
    assert settings() == before


@pytest.mark.usefixtures("_routers")
def test_who_does_not_listen_goes_on_not_to() -> None:
    """accept_ra 0 stays 0, and what is 2 already stays 2, also afterwards."""
    sysctl.ACCEPT_RA.write(DEVICE, "0")
    sysctl.ACCEPT_RA.write(SECOND, "2")
    before = settings()
    with balancer(DEVICE, SECOND) as lb:
        lb.add_service("six", **SIX)
        assert (sysctl.ACCEPT_RA.read(DEVICE), sysctl.ACCEPT_RA.read(SECOND)) == ("0", "2")
        assert SECOND in default_routes()
    assert settings() == before


# ---- By index ------------------------------------------------------------------------------------


def test_a_device_that_was_renamed_gets_its_own_settings_back() -> None:
    """And one that has its name by now keeps those that it has."""
    with balancer() as lb:
        lb.add_service("web", **WEB)
        lb.add_service("six", **SIX)
        ip(f"link set {DEVICE} down\nlink set {DEVICE} name tp-new")
        ip(f"link set {SECOND} down\nlink set {SECOND} name {DEVICE}")
        for family in sysctl.FAMILIES:
            sysctl.FORWARDING[family].write(DEVICE, "1")
        assert forwards("tp-new") == forwards(DEVICE) == (True, True)
    assert forwards("tp-new") == (False, False)
    assert sysctl.ACCEPT_RA.read("tp-new") == "1"
    assert forwards(DEVICE) == (True, True)


def test_what_others_switch_off_is_switched_on_again(caplog: pytest.LogCaptureFixture) -> None:
    """As long as it is needed; and told, as what is switched is."""
    caplog.set_level(logging.INFO)
    with balancer() as lb:
        lb.add_service("web", **WEB)
        lb.add_service("six", **SIX)
        told = f"net.ipv4.conf.*.forwarding of {DEVICE}: 1, was 0"
        assert told in caplog.messages
        for family in sysctl.FAMILIES:
            sysctl.FORWARDING[family].write(DEVICE, "0")
        sysctl.ACCEPT_RA.write(DEVICE, "1")
        assert lb.follow() == ()
        assert forwards() == (True, True)
        assert sysctl.ACCEPT_RA.read(DEVICE) == "2"
        again = [each for each in caplog.messages if "somebody else" in each]
        assert len(again) == 3, again
        lb.follow()
        assert [each for each in caplog.messages if "somebody else" in each] == again


def test_what_can_not_be_switched_on_is_told() -> None:
    """A container may see /proc/sys only to read. It is tried again."""
    subprocess.run(["mount", "--bind", "/proc/sys", "/proc/sys"], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", "/proc/sys"], check=True)
    try:
        with balancer() as lb:
            lb.add_service("web", **WEB)
            (trouble,) = lb.follow()
            assert f"set net.ipv4.conf.{DEVICE}.forwarding: Read-only file system" in trouble
            assert "packets that come in there are dropped" in trouble
            assert lb.trace("198.51.100.7:40000 -> 203.0.113.10:80").verdict == "drop_no_forwarding"
            subprocess.run(["umount", "/proc/sys"], check=True)
            assert lb.follow() == ()
            assert forwards() == (True, False)
    finally:
        subprocess.run(["umount", "-q", "/proc/sys"], check=False)


# ---- The next process ----------------------------------------------------------------------------

HOLDS = f"""
import signal
from pathlib import Path
from tests.lab.harness_balancer import SMALL, WEB
from tests.lab.test_follow_settings import SIX
from towpath import LoadBalancer
lb = LoadBalancer("{DEVICE}", limits=SMALL, pins=Path("{PINS}"))
lb.add_service("web", **WEB)
lb.add_service("six", **SIX)
print("ready", flush=True)
signal.pause()
"""


def test_what_a_process_that_was_killed_has_set_is_set_back_by_its_heir() -> None:
    """When that is detached; or before, if it is needed no longer."""
    before = settings()
    with script(HOLDS) as running:
        running.kill()
        running.wait()
    assert forwards() == (True, True)
    with balancer(pins=PINS) as heir:
        assert forwards() == (True, True)
        heir.remove_service("tcp-2001:db8:4::10-80")
        heir.follow()
        assert forwards() == (True, False)
    assert forwards() == (True, False)
    with balancer(pins=PINS) as heir:
        heir.detach()
    assert settings() == before
    assert not PINS.exists()


def test_a_start_that_fails_leaves_what_an_earlier_process_has_set() -> None:
    """Which still balances."""
    with balancer(pins=PINS) as lb:
        lb.add_service("web", **WEB)
    before = state(DEVICE, SECOND)
    with pytest.raises(Exception, match="no such device"):
        balancer(DEVICE, SECOND, "tp-typo", pins=PINS)
    after = state(DEVICE, SECOND)
    # It has put its own programs there.
    for kind in ("xdp", "filter"):
        assert bool(after.pop(f"{DEVICE} {kind}")) == bool(before.pop(f"{DEVICE} {kind}"))
    assert after == before
    with balancer(pins=PINS) as heir:
        heir.detach()
    assert forwards() == (False, False)
