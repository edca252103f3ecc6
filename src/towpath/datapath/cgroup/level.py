# SPDX-License-Identifier: Apache-2.0
"""The node's cgroup, found and held open."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from towpath.closeable import Closeable
from towpath.core.cgroup import Mount, View, choose
from towpath.kernel import cgroup
from towpath.kernel.cgroup_mounts import (
    ROOT_ID,
    Directory,
    cgroup_of,
    mounted,
    namespace,
    opened_at,
)
from towpath.kernel.errors import SHORT, KernelError


def view() -> View:
    """What this process sees of the hierarchy."""
    points = ((root, point, Path(point).stat().st_ino) for root, point in cgroup.mounts())
    return View(
        mounts=tuple(Mount(*each) for each in points),
        namespace=namespace(),
        inits_namespace=namespace(1),
        inits_cgroup=cgroup_of(1),
    )


class Level(Closeable):
    """The cgroup whose processes programs are meant for: the node's, or the one that is configured.

    KernelError: what is configured is no cgroup, or none can be had.
    """

    def __init__(self, configured: Path | None = None) -> None:
        with ExitStack() as undo:
            self.path, self.name, self.why = self._found(configured, undo)
            self.id = cgroup.cgroup_id(self.path)
            self._undo = undo.pop_all()

    @staticmethod
    def _found(configured: Path | None, undo: ExitStack) -> tuple[Path, str, str]:
        """Where it is, what people call it, and why it is that one."""
        if configured is not None:
            return configured, str(configured), "configured"
        choice = choose(view())
        if choice.mount is not None:
            path = Path(choice.mount.point, choice.below)
            return path, str(path), choice.why
        try:
            mount = undo.enter_context(mounted(of_init=choice.private == "init"))
        except KernelError as error:
            advice = "mount -t cgroup2 none /sys/fs/cgroup/unified, or name one by cgroup.path"
            hint = f"{error}; {advice}"
            raise KernelError("find the cgroups of version 2", hint=hint) from error
        return mount.path, "a private mount", choice.why

    @property
    def is_root(self) -> bool:
        """Whether it is the machine's root, with all that there is on it."""
        return self.id == ROOT_ID

    @property
    def there(self) -> bool:
        """Whether it is still that one, and wasn't removed. KernelError: nobody tells."""
        try:
            return (
                cgroup.cgroup_id(self.path) == self.id and self.path.joinpath(_PROCESSES).exists()
            )
        except (KernelError, OSError) as error:
            if error.errno in SHORT:
                raise
            return False

    def machines_root(self) -> Directory:
        """The machine's root, which others of the machine are below as well. KernelError."""
        for _, point in cgroup.mounts():
            if Path(point).stat().st_ino == ROOT_ID:
                return opened_at(point)
        with opened_at(self.path) as here:
            return here.by_id(ROOT_ID)

    def close(self) -> None:
        """Let go of it. Twice is once."""
        self._undo.close()


_PROCESSES = "cgroup.procs"
