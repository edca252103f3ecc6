# SPDX-License-Identifier: Apache-2.0
"""Every test runs in a network and a mount namespace made for the test run.

Devices, named namespaces, pins, sockets and attached programs are then out of
reach of the machine, and the kernel removes them when pytest ends, however it
ends. `make test` adds a process namespace, which does the same for processes, and
runs several pytests side by side, each of them in namespaces of its own.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from tests import hangs
from tests.guests import IN_GUEST, NO_TIME, one_each, thinned, unmarked
from tests.outside import Watch

if TYPE_CHECKING:
    from collections.abc import Iterator

# From <sched.h> and <sys/mount.h>; os.unshare is there from Python 3.12 only.
CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
SIOCSIFFLAGS = 0x8914
PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
IFF_UP = 1

_BEGAN = time.monotonic()
_libc = ctypes.CDLL(None, use_errno=True)


watch = Watch()


def pytest_configure(config: pytest.Config) -> None:
    """Leave the machine's namespaces before any test module is imported."""
    if os.geteuid() != 0:
        pytest.exit("the tests load BPF programs and make network namespaces: run them as root", 1)
    # No deadline: how long an example takes on a busy machine says nothing of the code.
    unhurried = [HealthCheck.too_slow]
    settings.register_profile(
        "towpath", deadline=None, print_blob=True, suppress_health_check=unhurried
    )
    settings.load_profile("towpath")
    watch.begin()
    # Who began this in the background may have had it ignore Ctrl-C, as shells do, or that its
    # terminal goes, as nohup does. All that tests start would inherit that, and not end when they
    # tell it to.
    for number, usual in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
    # What a test has started and lost is this process's then, and no other pytest's. What a
    # worker leaves that ends is the controller's, which ends it.
    _check(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")
    _check(_libc.unshare(CLONE_NEWNS | CLONE_NEWNET), "unshare")
    _mount("none", "/", "", MS_REC | MS_PRIVATE)
    _mount("tmpfs", "/run", "tmpfs")
    _mount("bpf", "/sys/fs/bpf", "bpf")
    _set_loopback_up()
    hangs.watch(config)


@pytest.fixture(autouse=True)
def _declared() -> Iterator[None]:
    """Fail a test if it, or a fixture before it, has run a program that is not declared."""
    yield
    seen, watch.seen = watch.seen, []
    assert not seen, f"run, and not declared in src/towpath/doctor/outside.txt: {seen}"


def pytest_addoption(parser: pytest.Parser) -> None:
    """For guests that share the tests of programs among them; and for what hangs."""
    hangs.add_options(parser)
    parser.addoption(
        "--one-of", type=int, metavar="N", help="of each test's sets of parameters only the Nth"
    )
    parser.addoption(
        "--within",
        type=float,
        metavar="SECONDS",
        help="what has not begun by then is skipped, but for what is marked `always`",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In a guest, run fewer cases of what the host tries in many."""
    if not IN_GUEST:
        return
    kept, left = unmarked(items, "host")
    number = config.getoption("one_of")
    if number is None:
        kept, more = thinned(kept)
    else:
        kept, left_out = unmarked(kept, "thorough")
        kept, more = one_each(kept, number)
        left += left_out
    left += more
    # In the order that they came in: a module's tests share what it has loaded.
    gone = set(left)
    items[:] = [item for item in items if item not in gone]
    config.hook.pytest_deselected(items=left)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin nothing that there is no time for."""
    within = item.config.getoption("within")
    if within is None or item.get_closest_marker("always"):
        return
    if time.monotonic() - _BEGAN > within:
        pytest.skip(NO_TIME)


def _mount(source: str, target: str, kind: str, flags: int = 0) -> None:
    result = _libc.mount(source.encode(), target.encode(), kind.encode(), flags, None)
    _check(result, f"mount {kind or 'private'} at {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _set_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
