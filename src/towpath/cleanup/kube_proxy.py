# SPDX-License-Identifier: Apache-2.0
"""Takes out what kube-proxy has left, so that no connection is lost and all of it can come back.

First it is only unhooked: nftables' tables sleep, and of iptables the jumps into its chains go.
Nothing is deleted before somebody has confirmed that all is well; if nobody does in time, a
process of its own hooks it in again. A table of ours keeps those connections translated that
kube-proxy's rules have begun, until they are over.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from towpath.children import python
from towpath.cleanup import record
from towpath.cleanup.errors import CleanupError
from towpath.cleanup.found import Found, find, old_connections
from towpath.cleanup.record import Record
from towpath.core.kube_proxy import iptables, nft
from towpath.kernel.errors import KernelError
from towpath.kernel.net import conntrack, xtables
from towpath.kernel.net import nft as kernel_nft

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from towpath.core.kube_proxy.served import Served

WATCHER = "towpath.cleanup.watch"


def unhook(directory: Path, found: Found, seconds: float) -> None:
    """Unhook all of it; it comes back after so many seconds unless that is confirmed.

    The order is what makes it safe: who puts it back is there before anything is changed, and
    connections are held before the first hook goes. CleanupError, KernelError: nothing has changed.
    """
    if record.read(directory) is not None:
        raise CleanupError("a clean-up has begun already; --confirm or --restore ends it")
    if found.processes:
        pids = ", ".join(map(str, found.processes))
        raise CleanupError(f"kube-proxy runs (process {pids}); end it first: it would not notice")
    begun = Record(
        "unhooked",
        record.now() + seconds,
        [each.family for each in found.tables if not each.dormant],
        {name: rules.jumps for name, rules in found.rules.items() if rules.jumps},
        found.served,
    )
    begun.write(directory)
    try:
        _start_watcher(directory)
        kernel_nft.change(nft.hold())
        _unhook(begun, found)
    except (OSError, KernelError):
        restore(directory)
        raise


def confirm(directory: Path) -> Found:
    """Delete what is unhooked, and return it; again, what is left. CleanupError, KernelError."""
    with _alone(directory):
        return _confirm(directory)


def _confirm(directory: Path) -> Found:
    begun = _begun(directory)
    found = find(begun.served)
    if found.works:
        raise CleanupError("kube-proxy's rules are hooked in again; --restore, and begin anew")
    # Noted first: whoever finds them half deleted doesn't take our table away by restoring.
    begun.phase = "confirmed"
    begun.write(directory)
    kernel_nft.change(nft.delete(found.tables))
    for program, rules in found.rules.items():
        xtables.change(program, iptables.delete(rules))
    return found


def restore(directory: Path) -> None:
    """Hook all of it in again, as it was. CleanupError: it is deleted, or nothing was unhooked."""
    with _alone(directory):
        _restore(directory)


def _restore(directory: Path) -> None:
    begun = _begun(directory)
    if begun.phase != "unhooked":
        raise CleanupError("it is deleted: kube-proxy makes its rules anew when it starts")
    found = find()
    asleep = [each for each in found.tables if each.dormant and each.family in begun.families]
    kernel_nft.change(nft.wake(asleep))
    for program, jumps in begun.jumps.items():
        rules = found.rules.get(program, iptables.Rules())
        there = {(each.table, each.chain, each.rule) for each in rules.jumps}
        chains = {(table, each) for table, of in rules.chains.items() for each in of}
        lost = [
            each
            for each in jumps
            if (each.table, each.chain, each.rule) not in there
            and (each.table, each.target) in chains
        ]
        xtables.change(program, iptables.hook(lost))
    _let_go(directory, begun, found)


def release(directory: Path, *, force: bool = False) -> int:
    """Take our own table away if nobody needs it; else how many connections do.

    A kube-proxy that is back keeps them translated by its own rules.

    ``force``: it goes all the same, and so does what is tracked of UDP: a sender that doesn't
    pause would be sent to a pod that is gone for ever.
    """
    with _alone(directory):
        return _release(directory, force=force)


def _release(directory: Path, *, force: bool) -> int:
    begun = _begun(directory)
    if begun.phase == "unhooked":
        raise CleanupError("it isn't confirmed yet")
    found = find()
    left = [] if found.works else old_connections(begun.served)
    if left and not force:
        return len(left)
    conntrack.forget(each for each in left if each.protocol == "udp")
    _let_go(directory, begun, found)
    return 0


def hold_again(directory: Path) -> bool:
    """Make our own table again if somebody else has deleted it (`nft flush ruleset`); whether.

    Connections that it keeps are translated again from then on. KernelError.
    """
    if any((each.family, each.name) == ("inet", nft.HOLD) for each in kernel_nft.tables()):
        return False
    # Read now: whoever lets go of it has said so before.
    begun = record.read(directory)
    if begun is None or begun.phase == "released":
        return False
    kernel_nft.change(nft.hold())
    return True


def until_confirmed(directory: Path) -> float | None:
    """Seconds until it is put back; None: nothing is to be."""
    begun = record.read(directory)
    if begun is None or begun.phase != "unhooked":
        return None
    return max(0.0, begun.deadline - record.now())


def unserved(found: Found, served: dict[tuple[object, int, str], bool]) -> list[tuple[Served, str]]:
    """Which of kube-proxy's addresses nobody would serve, and for whom.

    ``served``: Towpath's, and whether also for what comes in from outside.
    """
    ported = {(each[1], each[2]) for each in served}
    left = []
    for each in found.served:
        whom = served.get((each.address, each.port, each.protocol))
        if whom is None and each.node_port and (each.port, each.protocol) in ported:
            continue  # at the node's other addresses: told by `narrower`
        if whom is None:
            left.append((each, "everybody"))
        elif not whom:
            left.append((each, "clients outside of this node"))
    return left


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Be the only one who does something there: rules mustn't be hooked in twice."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        yield  # nothing has begun
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _begun(directory: Path) -> Record:
    begun = record.read(directory)
    if begun is None:
        raise CleanupError("nothing was unhooked; --remove does that")
    return begun


def _unhook(begun: Record, found: Found) -> None:
    awake = [each for each in found.tables if each.family in begun.families]
    kernel_nft.change(nft.put_to_sleep(awake))
    for program, jumps in begun.jumps.items():
        xtables.change(program, iptables.unhook(jumps))


def _let_go(directory: Path, begun: Record, found: Found) -> None:
    begun.phase = "released"
    begun.write(directory)
    if found.hold:
        kernel_nft.change(nft.release())
    record.remove(directory)


def _start_watcher(directory: Path) -> None:
    """It outlives whoever started it, and the terminal."""
    with (directory / "log").open("ab") as log, suppress(ProcessLookupError):
        subprocess.Popen(
            python(WATCHER, os.fspath(directory)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )
