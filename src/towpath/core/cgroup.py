# SPDX-License-Identifier: Apache-2.0
"""Which cgroup is the node's: the one that all its processes are in, and no other node's.

On a machine it is the hierarchy's root. A node that is a container (KIND) is one of several on its
machine: its own root is a cgroup within the machine's. And who looks for it may be in a container
of that node, whose root is no more than itself.

Cgroups are named as the kernel names them to a process: relative to the root of its cgroup
namespace, with ``/..`` for what that is in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

_INIT_SCOPE = "init.scope"  # where systemd, as process 1, puts itself below its root
_USUAL = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
_ROOT_ID = 1


class Mount(NamedTuple):
    """A mount of the hierarchy, or of a part of it."""

    root: str
    """The cgroup that it begins with."""
    point: str
    """Where it is."""
    id: int
    """The number of that cgroup; the machine's root has 1."""


@dataclass(frozen=True, slots=True)
class View:
    """What a process sees of the hierarchy."""

    mounts: tuple[Mount, ...]
    namespace: int | None
    """The number of its own cgroup namespace."""
    inits_namespace: int | None
    """That of the process that is number 1 to it; None: it may not ask."""
    inits_cgroup: str | None
    """The cgroup of that process; None: it may not ask."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The node's cgroup."""

    mount: Mount | None
    """Where it is to be had; None: nowhere yet."""
    private: Literal["", "own", "init"]
    """Whose namespace's root is mounted if it is nowhere."""
    below: str
    """The node's cgroup within that; empty: all of it."""
    why: str


def choose(view: View) -> Choice:
    """Choose the node's cgroup."""
    node = _node(view.inits_cgroup)
    own = view.inits_namespace in {None, view.namespace}
    if node is None:
        return _highest(view, own=own)
    covering = [each for each in view.mounts if _below(node, each.root) is not None]
    if covering:
        chosen = min(covering, key=_preference)
        below = _below(node, chosen.root) or ""
        return Choice(chosen, "", below, _why(chosen, below))
    if not own:
        why = "the root of process 1's cgroup namespace, mounted privately"
        return Choice(None, "init", "", why)
    return _highest(view, own=own)


def _highest(view: View, *, own: bool) -> Choice:
    """The most of the hierarchy that there is to be seen."""
    if view.mounts:
        chosen = min(view.mounts, key=_preference)
        return Choice(chosen, "", "", _why(chosen, ""))
    whose = "this process's" if own else "process 1's"
    why = f"the root of {whose} cgroup namespace, mounted privately: it is mounted nowhere here"
    return Choice(None, "own" if own else "init", "", why)


def _why(mount: Mount, below: str) -> str:
    if below:
        return f"process 1 has {below} for its root, within what is mounted at {mount.point}"
    if mount.id == _ROOT_ID:
        return "the machine's root"
    if mount.root == "/":
        return "the root of the cgroup namespace, which isn't the machine's"
    return f"the highest cgroup that is mounted here ({mount.root}), which isn't the machine's root"


# ---- Names ---------------------------------------------------------------------------------------


def _parts(name: str) -> tuple[int, tuple[str, ...]]:
    """How many levels up from the namespace's root, and then the names down."""
    words = [word for word in name.split("/") if word]
    up = sum(word == ".." for word in words)
    return up, tuple(words[up:])


def _node(inits_cgroup: str | None) -> tuple[int, tuple[str, ...]] | None:
    """The cgroup that process 1 has for its root. None: it can't be told from where that is."""
    if inits_cgroup is None:
        return None
    up, names = _parts(inits_cgroup)
    if names and names[-1] == _INIT_SCOPE:
        return up, names[:-1]
    # In the root of a namespace it may be an init, or a container's only program.
    return (up, names) if up and not names else None


def _below(node: tuple[int, tuple[str, ...]], root: str) -> str | None:
    """The node's cgroup, relative to a mount's root. None: it isn't in there, or not by name."""
    up, names = _parts(root)
    if node[0] != up or node[1][: len(names)] != names:
        return None
    return "/".join(node[1][len(names) :])


def _preference(mount: Mount) -> tuple[bool, int, int, int]:
    """The machine's root first, then the highest, then where everybody looks."""
    up, names = _parts(mount.root)
    usual = _USUAL.index(mount.point) if mount.point in _USUAL else len(_USUAL)
    return mount.id != _ROOT_ID, -up, len(names), usual
