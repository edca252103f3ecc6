# SPDX-License-Identifier: Apache-2.0
"""Puts back what nobody confirms, and lets go of what is over. A process of its own.

It also makes our own table again, at once, when somebody has deleted it.

python -m towpath.cleanup.watch DIRECTORY
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from pathlib import Path

from towpath.cleanup import kube_proxy, record
from towpath.errors import Error
from towpath.kernel.net.nft import Changes

log = logging.getLogger("towpath.cleanup")
_UNCONFIRMED_SECONDS, _CONFIRMED_SECONDS = 0.5, 5.0
"""Between two looks."""


def watch(directory: Path) -> None:
    """Return when there is nothing left to do."""
    with Changes() as changes:
        while (begun := record.read(directory)) is not None:
            _look(directory, begun)
            seconds = _UNCONFIRMED_SECONDS if begun.phase == "unhooked" else _CONFIRMED_SECONDS
            _hold(directory, changes, time.monotonic() + seconds)


def stay(directory: Path) -> None:
    """Do the same for each clean-up that begins there, until SIGTERM or SIGINT.

    What isn't confirmed by then is put back: nobody would do so later.
    """
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with Changes() as changes:
        while not ended.is_set():
            begun = record.read(directory)
            if begun is not None:
                _look(directory, begun)
            _hold(directory, changes, time.monotonic() + _UNCONFIRMED_SECONDS)
    if kube_proxy.until_confirmed(directory) is not None:
        log.warning("ended before it was confirmed: kube-proxy's rules are put back")
        kube_proxy.restore(directory)


def _look(directory: Path, begun: record.Record) -> None:
    """Do what is due."""
    try:
        if begun.phase != "unhooked":
            if not kube_proxy.release(directory):
                log.info("the last connection of kube-proxy's is over")
        elif record.now() >= begun.deadline:
            log.warning("nobody has confirmed it in time: kube-proxy's rules are put back")
            kube_proxy.restore(directory)
    except Error as error:  # tried again: nobody else would
        log.warning("%s", error)


def _hold(directory: Path, changes: Changes, until: float) -> None:
    """Until then, have our own table whatever others do."""
    while True:
        try:
            if kube_proxy.hold_again(directory):
                log.warning(
                    "table inet towpath-kube-proxy was deleted by somebody else; made again"
                )
        except Error as error:
            log.warning("%s", error)
        left = until - time.monotonic()
        if left <= 0:
            return
        changes.wait(left)


def main() -> None:
    """Do what the command line says."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s: %(message)s")
    watch(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
