# SPDX-License-Identifier: Apache-2.0
"""A kernel thread of its own for a device's packets, so that it is known who takes them.

Otherwise whoever sends to a veth also does the work of receiving, on its own CPU.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from towpath.kernel import _libc
from towpath.kernel.errors import CAP_SYS_ADMIN, KernelError, errno_name, permission_hint
from towpath.kernel.net.netns import in_netns, unshare

# CPUCLOCK_SCHED of linux/posix-timers.h: with it and a process id one has a clock's id.
_SCHEDULED = 2


def in_threads(namespace: int, device: str) -> tuple[int, ...]:
    """Have a kernel thread for each receive queue take a device's packets (5.12).

    ``namespace`` is an open file that stands for the device's network namespace. Returns the
    process ids; none where this process's PID namespace doesn't show kernel threads. KernelError:
    the device has no NAPI, or it isn't allowed.
    """
    before = _threads(device)
    # sysfs shows the network namespace that it was mounted from, so it takes a mount of one's own.
    # That can't be left again, but with the thread that has it.
    with ThreadPoolExecutor(1) as other:
        try:
            other.submit(_switch, namespace, device).result()
        except OSError as error:
            number = error.errno or 0
            hint = permission_hint(CAP_SYS_ADMIN) if errno_name(number) == "EPERM" else ""
            raise KernelError(f"give {device} threads for its packets", number, hint) from error
    return tuple(sorted(_threads(device) - before))


def _switch(namespace: int, device: str) -> None:
    with in_netns(namespace):
        unshare(mounts=True)
        _libc.mount("sysfs", "/sys", "sysfs", 0)
        Path("/sys/class/net", device, "threaded").write_text("1")


def _threads(device: str) -> set[int]:
    """The threads of all devices of that name, in whatever namespace."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "comm").read_text()
        except OSError:  # it has ended meanwhile
            continue
        if name.startswith(f"napi/{device}-"):
            found.add(int(process.name))
    return found


def cpu_seconds(process: int) -> float:
    """The CPU time that a process has had. OSError: there is none."""
    return time.clock_gettime(~process << 3 | _SCHEDULED)
