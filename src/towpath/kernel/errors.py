# SPDX-License-Identifier: Apache-2.0
"""What can go wrong between this process and the kernel."""

from __future__ import annotations

import errno as errnos
import os
from pathlib import Path

from towpath.errors import Error

# The kernel's own, not meant for programs: BPF returns it for "not supported" all the same.
ENOTSUPP = 524
# POSIX has two names for this number, and Linux goes by the other one.
_NAMES = {ENOTSUPP: "ENOTSUPP", errnos.EOPNOTSUPP: "EOPNOTSUPP"}

# Capability numbers of <linux/capability.h>, those that anything here asks for.
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2
CAP_NET_ADMIN = 12
CAP_SYS_ADMIN = 21
CAP_PERFMON = 38
CAP_BPF = 39
_CAPABILITY_NAMES = {
    CAP_DAC_OVERRIDE: "CAP_DAC_OVERRIDE",
    CAP_DAC_READ_SEARCH: "CAP_DAC_READ_SEARCH",
    CAP_NET_ADMIN: "CAP_NET_ADMIN",
    CAP_SYS_ADMIN: "CAP_SYS_ADMIN",
    CAP_PERFMON: "CAP_PERFMON",
    CAP_BPF: "CAP_BPF",
}

_EVERY_USER = ["0", "0", "4294967295"]  # how /proc/self/uid_map is in the first user namespace


class KernelError(Error):
    """The kernel, or the library that speaks to it, refused.

    ``what`` names the attempt and its object ("load lb.bpf.o"), ``errno`` is the positive error
    number, 0 when there is none.
    """

    def __init__(self, what: str, errno: int = 0, hint: str = "") -> None:
        self.what = what
        self.errno = errno
        self.hint = hint
        reason = f": {describe_errno(errno)}" if errno else ""
        super().__init__(f"{what}{reason}{': ' + hint if hint else ''}")


class VerifierError(KernelError):
    """The verifier refused a program. The message is one line, ``log`` everything it said."""

    def __init__(self, what: str, errno: int, summary: str, log: str) -> None:
        super().__init__(what, errno, summary)
        self.log = log


class LayoutError(KernelError):
    """An existing map doesn't have the layout that an object wants.

    ``differences`` has one line for each of them, all of which are in the message.
    """

    def __init__(self, what: str, differences: list[str]) -> None:
        super().__init__(what, 0, "; ".join(differences))
        self.differences = differences


def errno_name(number: int) -> str:
    """Name an error number: 1 is "EPERM"; one without a name comes back as digits."""
    return _NAMES.get(number) or errnos.errorcode.get(number, str(number))


def describe_errno(number: int) -> str:
    """Describe an error number: 1 is "Operation not permitted (EPERM)"."""
    text = "Operation not supported by this kernel" if number == ENOTSUPP else os.strerror(number)
    return f"{text} ({errno_name(number)})"


def effective_capabilities() -> int:
    """The calling thread's effective capability set, one bit for each capability."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


SHORT = frozenset((errnos.EMFILE, errnos.ENFILE, errnos.ENOMEM))
"""Numbers of errors by which nothing was found out: this process or machine has run short."""


def permission_hint(*needed: int) -> str:
    """Which of the capabilities ``needed`` this thread lacks, as the end of an EPERM message."""
    held = effective_capabilities()
    if held >> CAP_SYS_ADMIN & 1:
        # CAP_SYS_ADMIN stands in for the two of BPF.
        needed = tuple(number for number in needed if number not in (CAP_BPF, CAP_PERFMON))
    missing = [_CAPABILITY_NAMES[number] for number in needed if not held >> number & 1]
    if missing:
        return "needs " + " and ".join(missing)
    if Path("/proc/self/uid_map").read_text().split() != _EVERY_USER:
        return "those of a user namespace aren't enough"
    return "capabilities are there: a seccomp filter or a security module must have refused"
