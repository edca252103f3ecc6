# SPDX-License-Identifier: Apache-2.0
"""Tables of nftables, and what is done to them, of the calling process's network namespace."""

from __future__ import annotations

import errno
import json
import select
import shutil
import socket
import subprocess
from contextlib import suppress
from socket import AF_INET, AF_INET6
from struct import Struct
from typing import Any, NamedTuple

from towpath.closeable import Closeable
from towpath.kernel.errors import KernelError
from towpath.kernel.net.messages import DUMP, Netlink, attributes

NETFILTER = 12  # NETLINK_NETFILTER
# <linux/netfilter/nf_tables.h>
_GET_TABLE = 10 << 8 | 1  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE
_NAME, _FLAGS = 1, 2  # NFTA_TABLE_*
_DORMANT = 0x1  # NFT_TABLE_F_DORMANT
_INET = 1  # NFPROTO_INET
_HEADER = Struct("=BBH")  # struct nfgenmsg
_FAMILIES = {AF_INET: "ip", AF_INET6: "ip6", _INET: "inet"}
_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP = 270, 1, 7  # NFNLGRP_NFTABLES
_MOST = 1 << 16
_SECONDS = 60.0
_PATH = "/usr/sbin:/sbin:/usr/bin:/bin"


class Changes(Closeable):
    """Tells when tables have changed. OSError: the kernel has no nftables."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER)
        try:
            self._socket.setblocking(False)  # noqa: FBT003 -- its only argument
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP)
        except BaseException:
            self._socket.close()
            raise

    def wait(self, seconds: float) -> None:
        """Return when something has changed since the last call, or after that time."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        poll.poll(max(0.0, seconds) * 1000)
        with suppress(BlockingIOError):
            while True:
                self._drop()

    def _drop(self) -> None:
        """One message. What was lost has changed, too."""
        try:
            self._socket.recv(_MOST)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise

    def close(self) -> None:
        """Listen no longer."""
        self._socket.close()


class Table(NamedTuple):
    """A table of IPv4, IPv6 or both."""

    family: str
    """ip, ip6 or inet."""
    name: str
    dormant: bool


def tables() -> list[Table]:
    """All of them. KernelError: there is no nftables, or it may not be asked.

    Not by nft: where a table has flags the JSON of 1.0.6 is garbage.
    """
    try:
        with Netlink(NETFILTER) as netlink:
            answers = netlink.ask(_GET_TABLE, _HEADER.pack(0, 0, 0), DUMP)
    except OSError as error:
        raise KernelError("list tables of nftables", error.errno or 0) from error
    return [_table(each) for each in answers if each[0] in _FAMILIES]


def _table(body: bytes) -> Table:
    found = attributes(body[_HEADER.size :])
    flags = int.from_bytes(found.get(_FLAGS, b""), "big")
    name = found[_NAME].rstrip(b"\0").decode()
    return Table(_FAMILIES[body[0]], name, bool(flags & _DORMANT))


def listed(table: Table) -> list[dict[str, Any]]:
    """What ``nft -j list table`` lists; nothing of one that is dormant (see above). KernelError."""
    if table.dormant:
        return []
    said = _nft("-j", "list", "table", table.family, table.name)
    found: list[dict[str, Any]] = json.loads(said)["nftables"]
    return found


def change(batch: str) -> None:
    """Carry out commands, all or none. KernelError: none was."""
    if batch:
        _nft("-f", "-", given=batch)


def _nft(*words: str, given: str | None = None) -> str:
    nft = shutil.which("nft", path=_PATH)
    if nft is None:
        raise KernelError("nft isn't there", hint="install nftables")
    try:
        done = subprocess.run(
            [nft, *words],
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise KernelError(
            f"nft {' '.join(words)}", hint=f"no end after {_SECONDS:.0f} s"
        ) from error
    if done.returncode:
        raise KernelError(f"nft {' '.join(words)}", hint=done.stderr.strip())
    return done.stdout
