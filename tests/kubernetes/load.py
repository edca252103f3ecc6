# SPDX-License-Identifier: Apache-2.0
"""Asks services without a pause until its input ends, then says how often it failed, and how.

    python3 -c "$(cat load.py)" HELD FRESH KIND:ADDRESS:PORT...   (ADDRESS in [] if it has colons)

HELD connections to each are made once and asked again and again; one that breaks is a failure, and
is made anew. FRESH at a time ask over connections of their own. Standard library only: it runs in
pods.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import threading
import time
from collections import Counter

_PAUSE = 0.02
_SECONDS = 5.0
_ended = threading.Event()
_lock = threading.Lock()
_counts: dict[str, Counter[str]] = {}


def _count(what: str, result: str) -> None:
    with _lock:
        _counts.setdefault(what, Counter())[result] += 1


def _failed(what: str, error: OSError, client: socket.socket | None, began: float) -> None:
    """Count it, and say when it began and ended, and from which address: captures have those."""
    _count(what, type(error).__name__)
    own = "" if client is None else f" from {client.getsockname()[:2]}"
    took = time.time() - began
    sys.stderr.write(
        f"{began:.3f}: {what}{own}: {error or type(error).__name__} after {took:.3f} s\n"
    )


def _connect(kind: str, address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    made = socket.socket(family, {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[kind])
    made.settimeout(_SECONDS)
    made.connect((address, port))
    return made


def _ask(client: socket.socket) -> None:
    client.send(b"?\n")
    if not client.recv(2048):
        raise ConnectionResetError


def _held(kind: str, address: str, port: int) -> None:
    what = f"held {kind} {address}"
    client = None
    while not _ended.is_set():
        began = time.time()
        try:
            client = client or _connect(kind, address, port)
            _ask(client)
            _count(what, "ok")
        except OSError as error:
            _failed(what, error, client, began)
            if client is not None:
                client.close()
            client = None
        time.sleep(_PAUSE)


def _fresh(kind: str, address: str, port: int) -> None:
    what = f"fresh {kind} {address}"
    while not _ended.is_set():
        began = time.time()
        client: socket.socket | None = None
        try:
            client = _connect(kind, address, port)
            _ask(client)
            _count(what, "ok")
        except OSError as error:
            _failed(what, error, client, began)
        if client is not None:
            client.close()
        time.sleep(_PAUSE)


def main() -> None:
    """As the command line says."""
    held, fresh, *targets = sys.argv[1:]
    threads = []
    for target in targets:
        kind, _, rest = target.partition(":")
        address, _, port = rest.rpartition(":")
        words = (kind, address.strip("[]"), int(port))
        threads += [threading.Thread(target=_held, args=words) for _ in range(int(held))]
        threads += [threading.Thread(target=_fresh, args=words) for _ in range(int(fresh))]
    for each in threads:
        each.start()
    select.select([sys.stdin], [], [])
    _ended.set()
    for each in threads:
        each.join()
    sys.stdout.write(json.dumps(_counts))


main()
