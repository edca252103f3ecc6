# SPDX-License-Identifier: Apache-2.0
"""Cgroups of a test's own, processes in them, and programs attached to them in the older way."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Self

from towpath.kernel.bpf.libbpf import _shared_object
from towpath.kernel.bpf.object import BpfObject
from towpath.kernel.cgroup import mount_point, opened
from towpath.lab.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from towpath.kernel.bpf.programs import Program

PREFIX = "towpath-test-"
SECONDS = 120


# ---- Cgroups -------------------------------------------------------------------------------------


@contextmanager
def new_cgroup(within: Path | None = None) -> Iterator[Path]:
    """Make a cgroup for the block, below the root or another one."""
    root = mount_point() if within is None else within
    if within is None:
        _remove_forgotten(root)
    path = _free(root)
    path.mkdir()
    with opened(path) as fd:
        # For as long as there is a lock on it, there is a test that has it.
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            yield path
        finally:
            remove(path)


def _free(root: Path) -> Path:
    number = 0
    while (path := root / f"{PREFIX}{os.getpid()}-{number}").exists():
        number += 1
    return path


def _remove_forgotten(root: Path) -> None:
    """Remove what tests have left that were killed."""
    for path in root.glob(f"{PREFIX}*"):
        with suppress(OSError), opened(path) as fd:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(path)


def remove(path: Path) -> None:
    """Remove a cgroup with all below it. Twice is once."""
    for below in sorted(path.glob("**/"), reverse=True):
        wait_until(partial(_removed, below), seconds=SECONDS, what=f"{below} to go")


def _removed(path: Path) -> bool:
    """Whether it could be removed: the last process may still be on its way out."""
    try:
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


# ---- Processes -----------------------------------------------------------------------------------

# Reads commands, one a line, and answers each with a line.
_INSIDE = """
import collections, json, select, socket, sys

def connect(port):
    with socket.create_connection(("127.0.0.1", port)) as client:
        return client.recv(1).decode()

def connects(port):
    "Connections, until there is another command: how many came to whom, or failed, and how."
    came = collections.Counter()
    while not select.select([sys.stdin], [], [], 0)[0]:
        try:
            came[connect(port)] += 1
        except OSError as error:
            came[type(error).__name__] += 1
    return json.dumps(came)

def stop():
    return "stopped"

def hooks():
    "Everything that has a hook, over both families."
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as listener, socket.socket(family) as client:
            listener.bind((host, 0))
            listener.listen()
            client.connect(listener.getsockname())
            accepted, _ = listener.accept()
            client.getpeername()
            client.send(b"x")
            accepted.recv(1)
            accepted.close()
        kind = family, socket.SOCK_DGRAM
        with socket.socket(*kind) as receiver, socket.socket(*kind) as sender:
            receiver.bind((host, 0))
            sender.sendto(b"x", receiver.getsockname())
            receiver.recvfrom(1)
    return "done"

kept = []

def keep():
    "A socket that stays open, but connected to nothing."
    kept.append(socket.socket())
    return "kept"

for line in sys.stdin:
    name, *arguments = line.split()
    try:
        print(globals()[name](*map(int, arguments)), flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""


class Inside:
    """A process in a cgroup, which is told what to do with sockets. A context manager."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-u", "-c", _INSIDE]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.move(path)

    def move(self, path: Path) -> None:
        """Put it into another cgroup; its sockets stay where they were made."""
        (path / "cgroup.procs").write_text(str(self.process.pid))

    def ask(self, command: str) -> str:
        """Have it do something; what came of it."""
        self._tell(command)
        return self._answer()

    def _tell(self, command: str) -> None:
        assert self.process.stdin is not None
        print(command, file=self.process.stdin, flush=True)

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def connect(self, port: int) -> str:
        """What the listener said that a connection to that port of 127.0.0.1 has got."""
        return self.ask(f"connect {port}")

    @contextmanager
    def connecting(self, port: int) -> Iterator[dict[str, int]]:
        """Have it connect all the time of the block.

        What it gives has afterwards how many connections each listener got, and how many failed.
        """
        came: dict[str, int] = {}
        self._tell(f"connects {port}")
        try:
            yield came
        finally:
            self._tell("stop")
            came |= json.loads(self._answer())
            assert self._answer() == "stopped"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


class Listener:
    """Says its name to each who connects. A context manager."""

    def __init__(self, name: str) -> None:
        self._name = name.encode()
        self.served = 0
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            with client, suppress(OSError):
                client.send(self._name)
            self.served += 1

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # accept() in the thread returns
        self._thread.join()
        self._socket.close()


def dead_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as gone:
        return int(gone.getsockname()[1])


def loaded(objects: Path, instead: int = 0) -> BpfObject:
    """Load a program for each hook; connections over IPv4 go to port ``instead``, 0: as they want.

    Each time with maps of their own.
    """
    made = BpfObject(objects / "cgroups.bpf.o")
    made.rodata["instead"] = instead
    made.load()
    return made


# ---- Without links -------------------------------------------------------------------------------

NONE, OVERRIDE, MULTI = 0, 1, 2  # BPF_F_ALLOW_*


@contextmanager
def attached_legacy(program: Program, path: Path, attach_type: int, flags: int) -> Iterator[None]:
    """Attach in the way from before there were links, for the block."""
    libbpf = _shared_object()
    with opened(path) as fd:
        result = libbpf.bpf_prog_attach(program.fd, fd, attach_type, ctypes.c_uint(flags))
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        try:
            yield
        finally:
            libbpf.bpf_prog_detach2(program.fd, fd, attach_type)
