# SPDX-License-Identifier: Apache-2.0
"""Scripts with a load balancer: how they wait, how they end, and what is left then."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from tests.lab.harness_balancer import DEVICE, SMALL, device, script, state, wait_for_run

from towpath import LoadBalancer
from towpath.kernel.bpf.links import xdp_program_id
from towpath.kernel.net.interfaces import device_index
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

OPENED = f"""
import os, signal, sys, threading, time
from towpath import LoadBalancer
from towpath.model import Limits
limits = Limits(services=8, backends=32, flows=1024, table_slots=8192)
lb = LoadBalancer("{DEVICE}", limits=limits)
backends = ["192.0.2.11", "2001:db8::11"]
lb.add_service("web", vip="203.0.113.10", port=80, backends=backends, table_size=251)
def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
before = handlers()
"""

RUN = """
with lb:
    print("ready", flush=True)
    lb.run()
    assert handlers() == before
"""

IDLE_THREAD = """
threading.Thread(target=threading.Event().wait, daemon=True).start()
"""

# Python's own handlers run in the main thread, whichever thread the kernel has chosen.
CHOSEN_THREAD = """
def get_it():
    while handlers() == before:
        time.sleep(0.001)
    signal.pthread_kill(threading.get_ident(), signal.SIGINT)
threading.Thread(target=get_it).start()
"""

INTERRUPTED_BEFORE = """
with lb:
    print("ready", flush=True)
    signal.raise_signal(signal.SIGINT)
    lb.run()
"""

NOT_CLOSED = """
print("ready", flush=True)
"""

FORKS = """
if os.fork() == 0:
    sys.exit()
os.wait()
print("ready", flush=True)
signal.pause()
"""


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    with device():
        yield


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("threads", ["", IDLE_THREAD], ids=["alone", "with-a-thread"])
def test_run_ends_when_the_process_is_asked_to(number: signal.Signals, threads: str) -> None:
    """Exit code 0, not a word, nothing left."""
    before = state()
    with script(OPENED + threads + RUN) as running:
        assert state() != before
        wait_for_run(running)
        running.send_signal(number)
        _, errors = running.communicate(timeout=120)
    assert (running.returncode, errors) == (0, "")
    assert state() == before


def test_run_sees_a_signal_that_another_thread_gets() -> None:
    """A script may have threads that were there before it waits."""
    before = state()
    with script(OPENED + CHOSEN_THREAD + RUN) as running:
        _, errors = running.communicate(timeout=120)
    assert (running.returncode, errors) == (0, "")
    assert state() == before


def test_an_interrupt_before_run_is_an_exception_like_any_other() -> None:
    """The process ends by the signal, and nothing is left."""
    before = state()
    with script(OPENED + INTERRUPTED_BEFORE) as running:
        _, errors = running.communicate(timeout=120)
    assert running.returncode == -signal.SIGINT
    assert errors.endswith("KeyboardInterrupt\n")
    assert state() == before


def test_a_script_may_end_without_closing() -> None:
    """Nothing is left all the same."""
    before = state()
    with script(OPENED + NOT_CLOSED) as running:
        _, errors = running.communicate(timeout=120)
    assert (running.returncode, errors) == (0, "")
    assert state() == before


def test_a_forked_child_leaves_its_parents_load_balancer_alone() -> None:
    """It ends before the parent, which balances on."""
    before = state()
    with script(OPENED + FORKS) as running:
        found = state()
        assert xdp_program_id(device_index(DEVICE))
        assert found[f"{DEVICE} ipv4 forwarding"] == found[f"{DEVICE} ipv6 forwarding"] == "1"
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=120)
    assert state() == before


def test_a_script_that_is_killed_takes_its_program_along() -> None:
    """Only the kernel is there to clean up: it has the links, but settings stay as they are."""
    before = state()
    with script(OPENED + RUN) as running:
        running.kill()
        running.communicate(timeout=120)
    wait_until(lambda: not xdp_program_id(device_index(DEVICE)), seconds=120, what="XDP to go")
    left = {name: value for name, value in state().items() if value != before[name]}
    assert left == {
        f"{DEVICE} ipv4 forwarding": "1",
        f"{DEVICE} ipv6 forwarding": "1",
        f"{DEVICE} accept_ra": "2",
    }


def test_run_is_for_the_main_thread() -> None:
    """Elsewhere it says so, and disturbs no handler."""
    handler = signal.getsignal(signal.SIGINT)
    with LoadBalancer(DEVICE, limits=SMALL) as balancer, ThreadPoolExecutor() as pool:
        ran = pool.submit(balancer.run)
        assert "main thread" in str(ran.exception())
    assert signal.getsignal(signal.SIGINT) is handler
