# SPDX-License-Identifier: Apache-2.0
"""Tells systemd when the agent serves, reloads and stops (sd_notify(3)).

The protocol is one datagram to the socket in NOTIFY_SOCKET: shorter to write
than a dependency to keep.
"""

from __future__ import annotations

import logging
import os
import socket
import time

log = logging.getLogger(__name__)


def notify(*assignments: str) -> None:
    """Send assignments such as ``READY=1``; nothing when systemd did not ask.

    What it isn't told, as there are no files left, stops nothing here.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract socket
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto("\n".join(assignments).encode(), address)
    except OSError as error:
        log.warning("systemd could not be told %s: %s", assignments[0], error)


def ready(status: str) -> None:
    """The agent serves."""
    notify("READY=1", f"STATUS={status}")


def reloading() -> None:
    """The agent reads its file again; ready() ends it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """The agent is on its way out."""
    notify("STOPPING=1")
