# SPDX-License-Identifier: Apache-2.0
"""Puts back what nobody confirms, and lets go of what is over. A process of its own.

It also makes our own table again, at once, when somebody has deleted it.

python -m towpath.cleanup.watch DIRECTORY
"""

from __future__ import annotations

import logging
import sys
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
            try:
                if begun.phase != "unhooked":
                    if not kube_proxy.release(directory):
                        log.info("the last connection of kube-proxy's is over")
                        return
                elif record.now() >= begun.deadline:
                    log.warning("nobody has confirmed it in time: kube-proxy's rules are put back")
                    kube_proxy.restore(directory)
            except Error as error:  # tried again: nobody else would
                log.warning("%s", error)
            seconds = _UNCONFIRMED_SECONDS if begun.phase == "unhooked" else _CONFIRMED_SECONDS
            _hold(directory, changes, time.monotonic() + seconds)


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
