# SPDX-License-Identifier: Apache-2.0
"""iptables and ip6tables by either backend, of the calling process's network namespace."""

from __future__ import annotations

import shutil
import subprocess

from towpath.kernel.errors import KernelError

_SECONDS = 120.0
_BACKENDS = ("legacy", "nft")


def programs() -> list[str]:
    """Those that are there, each once: ``iptables-legacy``, ``ip6tables-nft``.

    Where nobody says which backend it is, just ``iptables``.
    """
    found = []
    for family in ("iptables", "ip6tables"):
        named = [f"{family}-{each}" for each in _BACKENDS if shutil.which(f"{family}-{each}-save")]
        found += named or ([family] if shutil.which(f"{family}-save") else [])
    return found


def save(program: str) -> str:
    """All rules, as ``PROGRAM-save`` says them; none: the kernel doesn't have it. KernelError."""
    return _run([f"{program}-save"])


def change(program: str, batch: str) -> None:
    """Carry out commands; each table's all or none. KernelError."""
    if batch:
        _run([f"{program}-restore", "--noflush", "--wait"], batch)


def _run(command: list[str], given: str | None = None) -> str:
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, check=False, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise KernelError(command[0], hint=f"no end after {_SECONDS:.0f} s") from error
    if done.returncode:
        raise KernelError(command[0], hint=done.stderr.strip())
    return done.stdout
