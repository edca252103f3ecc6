# SPDX-License-Identifier: Apache-2.0
"""Where programs of cgroups run."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CgroupProgram:
    """A program that runs at a hook of a cgroup, whoever has attached it."""

    hook: str
    """As libbpf calls it: connect4, sendmsg6, ingress, device."""
    cgroup: str
    """What it is attached to: the cgroup that was asked for, or one that it is in; empty if that
    lies above what is mounted here."""
    how: str
    """multi: others may be beside it. preorder: as well, and it runs before those of cgroups below.
    override: one that is attached below takes its place there. exclusive: no other can be below."""
    program_id: int
    name: str
    link_id: int | None
    """0: attached without a link. null: not known."""
    pins: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CgroupAncestor:
    """A cgroup by its place among those that a process is in."""

    level: int
    """How far below the machine's root."""
    id: int


@dataclass(frozen=True, slots=True)
class CgroupRoot:
    """Where programs of cgroups are attached, and whether they were seen to run."""

    cgroup: str | None
    """The cgroup whose processes they are for. null: there is none."""
    id: int | None
    """Its number; 1 is the machine's root."""
    why: str
    """Why it is that one; or why there is none."""
    within: CgroupAncestor | None
    """They are attached to the machine's root, and leave alone what isn't in this one."""
    fault: bool | None
    """Whether tags of net_cls and net_prio make this kernel's sockets forget their cgroup. null:
    that can't be told."""
    proven: bool
    """Whether a process in a cgroup below was seen to have a program run for it."""
    proof: str
    """What was seen; or what is in the way, and what to do."""
    tried: str | None
    """When, ISO 8601."""
    programs: tuple[CgroupProgram, ...]
    """All that run there, hook by hook in the order of running."""
